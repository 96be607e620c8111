"""Simulated listening logs of any size, in the format of the Music Streaming Sessions Dataset (MSSD).

python tests/benchmarks/mssd_logs.py FOLDER --num_sessions 1000000    # 16 million rows, 600 MB, a minute or
so
"""

import gzip
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import polars as pl
from jsonargparse import auto_cli
from mssd_marginals import (
    LONGEST,
    NAMED,
    draw_ids,
    draw_lengths,
    flag_skips,
    surround_tracks,
    tell_severity,
)
from numpy.typing import NDArray

from skipcl_lightning._checks import check_integer, check_number
from skipcl_lightning.data.simulate import Catalogue, Habits, Integers, listen

__all__ = ["write_mssd_logs"]

# Sessions that are simulated at once. Another number gives another log, so it is no setting.
_BLOCK = 4096
_FIRST_DAY, _NUM_DAYS, _LOGS_A_DAY = date(2018, 7, 15), 66, 10  # as in the published logs

# Fitted: with them the shares of tracks gone back to and of repeats are those of the complete excerpt, and
# sessions differ in their share of skips.
_SKIP_BIAS, _SPREAD, _GOING_BACK = 0.37, 2.0, 0.3
_FOLLOW, _EXPLORE, _DRIFT, _RESPONSE = 0.55, 0.2, 0.05, 0.8  # those of `simulate_sessions`


def write_mssd_logs(
    folder: str | Path,
    *,
    num_sessions: int,
    num_items: int = 50_000,
    sessions_per_file: int = 100_000,
    num_moods: int = 20,
    popularity_exponent: float = 0.88,
    skip_bias: float = 0.0,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> list[Path]:
    """Write simulated listening logs of any size, as `read_mssd` reads them.

    The logs come in a stream: however many sessions there are, only 4,096 of them and the catalogue are in
    memory. They have all 21 columns of the dataset's training logs, and its names of files.

    The planted truth is that of `simulate_sessions`: moods, successors, and a player that heeds skips. Here
    each session also has a listener of its own, whose log-odds of a skip are shifted by a normal number of
    standard deviation 2. How early a track is skipped decides between skip_1, skip_2 and skip_3; a track
    that was neither skipped nor played to its end has no flag. After three skip_1 in ten the listener goes
    back to the track before, which is where most repeats come from.

    Marginals by default, beside those counted in the two excerpts that they were calibrated to (201 rows of
    11 complete sessions; 1,180 rows of the first halves of 169), as shares of rows:

    =================================== ======== ============ =========
    share of rows, %                    complete first halves simulated
    =================================== ======== ============ =========
    skip_1                                  34.3         36.2      34.1
    skip_2                                  40.8         49.1      40.6
    skip_3                                  50.7         64.8      50.7
    not_skipped                             44.8         33.7      44.8
    no flag                                  4.5          1.4       4.5
    a track that the session had before     11.4          7.5      11.4
    ended by trackdone                      44.8         34.3      45.6
    ended by fwdbtn                         39.3         49.0      37.1
    ended by backbtn                         8.0          7.2       9.8
    ended by endplay                         7.5          9.3       7.4
    no pause before                         68.7         80.6      72.4
    a short pause before                    20.4         16.4      18.2
    the context switches                     3.5          4.6       2.9
    played in shuffle                       31.8         27.8      28.2
    of a premium account                    90.0         82.3      82.3
    sought back in                           2.5          3.2       3.1
    the hour goes on                         3.2          2.7       3.3
    =================================== ======== ============ =========

    Skips hang together less than they do there: a skip_2 is followed by another in 58 % of cases (73 and
    72 % in the excerpts), a track without it in 31 % (20 and 30 %).

    A session has 10 to 20 tracks, 20 in 47 % and 16.4 on average, counted over both excerpts. So were the
    other columns: how a track ends by its flags, how the next starts by that end, the pause and the switch
    of context by that start, shuffle by context. The context and the shuffle change only where the context
    switches, the hour and the date go on with the tracks played, and the evening hours are mostly of the day
    before the log's, as they are there.

    Args:
        folder: Where; made if need be. It may hold no `*.csv` nor `*.csv.gz`, also below it.
        num_sessions: How many sessions. A longer log begins with the sessions of a shorter one.
        num_items: V, at least `num_moods`. Repeats are a bit more frequent in a smaller catalogue.
        sessions_per_file: How many sessions a file has; the last may have fewer. The day of a session and
            the digit before its id are those of its file; nothing else depends on it.
        num_moods: How many moods, at least 2.
        popularity_exponent: How skewed popularity is (Zipf), 0 or more. With the default, two plays of
            different sessions are of one track as often as in the excerpts: 7 times in 10,000.
        skip_bias: Added to the log-odds of every skip: above 0 there are more of them than in the excerpt.
        seed: The same seed and settings give the same logs.
        progress: Called with the sessions and the rows written since the last call.

    Returns:
        The files, in the order in which they were written: `log_0_20180715_000000000000.csv.gz`, and so
        on; ten logs a day for 66 days, then each day's second shards.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range, or `folder` is a file or holds logs.
        OSError: A file cannot be written, as when the disk is full. Then the files of this call are removed.

    Reference:
        Brost, Mehrotra, Jehan, "The Music Streaming Sessions Dataset", WWW 2019, doi
        10.1145/3308558.3313641.

    Examples:
        >>> import tempfile
        >>> from skipcl_lightning.data import read_mssd
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = write_mssd_logs(folder, num_sessions=50, num_items=100)
        ...     log = read_mssd(folder).collect()
        >>> [file.name for file in files], log["session_id"].n_unique()
        (['log_0_20180715_000000000000.csv.gz'], 50)
    """
    check_integer("num_sessions", num_sessions)
    check_integer("num_moods", num_moods, minimum=2)
    check_integer("num_items", num_items, minimum=num_moods, cure="Every mood needs an item.")
    check_integer("sessions_per_file", sessions_per_file)
    check_integer("seed", seed, minimum=0)
    check_number("popularity_exponent", popularity_exponent, minimum=0)
    check_number("skip_bias", skip_bias)
    folder = _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    blocks = _Blocks(seed, num_items, num_moods, popularity_exponent, skip_bias)
    written: list[Path] = []
    try:
        for number, start in enumerate(range(0, num_sessions, sessions_per_file)):
            digit, day, name = _name_log(number)
            with _open_whole(folder / name) as stream:
                for sessions, rows in blocks.cut(start, min(start + sessions_per_file, num_sessions)):
                    _write_rows(stream, rows, digit, day)
                    if progress is not None:
                        progress(sessions, rows.height)
            written.append(folder / name)
    except BaseException:
        # The first files of a log that was broken off look like a whole log of fewer sessions.
        for file in written:
            file.unlink(missing_ok=True)
        raise
    return written


def _name_log(number: int) -> tuple[int, date, str]:
    """The digit before the ids of a log's sessions, its day, and its name."""
    day, digit = divmod(number, _LOGS_A_DAY)
    shard, day = divmod(day, _NUM_DAYS)
    when = _FIRST_DAY + timedelta(days=day)
    return digit, when, f"log_{digit}_{when:%Y%m%d}_{shard:012d}.csv.gz"


def _check_folder(folder: str | Path) -> Path:
    """The folder as a path, if logs can be written there without joining others."""
    if not isinstance(folder, str | Path):
        raise TypeError(f"`folder` must be a string or a `pathlib.Path`, got {type(folder).__name__}.")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`folder` must be a folder, got the file {str(folder)!r}. Name another place.")
    found = next((file for pattern in ("*.csv", "*.csv.gz") for file in folder.rglob(pattern)), None)
    if found is not None:
        raise ValueError(
            f"`folder` must hold no logs yet, got {str(folder)!r} with {found.name!r}. "
            "They would be read together: name an empty or a new folder, or delete the old logs."
        )
    return folder


@contextmanager
def _open_whole(path: Path) -> Iterator[IO[bytes]]:
    """A gzip stream to a temporary file, which gets its name when all is written."""
    # Not of `tempfile`, whose files only their owner may read.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Without the time and the name in its header the same log is the same bytes.
        with (
            temporary.open("wb") as raw,
            gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0) as stream,
        ):
            yield cast("IO[bytes]", stream)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_rows(stream: IO[bytes], rows: pl.DataFrame, digit: int, day: date) -> None:
    """Append rows, below the header in a stream that has none yet."""
    table = rows.with_columns(
        session_id=pl.format("{}_{}", pl.lit(digit), "session_id"), date=day + pl.duration(days="date")
    )
    # By way of the memory: polars makes an `OSError` without its number of whatever a stream raises.
    text = io.BytesIO()
    table.write_csv(text, include_header=stream.tell() == 0)
    stream.write(text.getbuffer())


class _Blocks:
    """The sessions of a log, made in blocks, each by a generator of its own."""

    def __init__(
        self, seed: int, num_items: int, num_moods: int, popularity_exponent: float, skip_bias: float
    ) -> None:
        random = np.random.default_rng([seed, 0])
        self.seed = seed
        self.skip_bias = skip_bias
        self.catalogue = Catalogue.make(random, num_items, num_moods, popularity_exponent)
        self.tracks = "t_" + draw_ids(random, num_items)
        self.number = -1
        self.offsets: Integers
        self.rows: pl.DataFrame

    def cut(self, start: int, stop: int) -> Iterator[tuple[int, pl.DataFrame]]:
        """The number of sessions and their rows, block by block, for the sessions of a range."""
        for number in range(start // _BLOCK, (stop - 1) // _BLOCK + 1):
            if number != self.number:
                self.number, (self.offsets, self.rows) = number, self.make(number)
            low, high = (min(max(end - number * _BLOCK, 0), _BLOCK) for end in (start, stop))
            yield high - low, self.rows[int(self.offsets[low]) : int(self.offsets[high])]

    def make(self, number: int) -> tuple[Integers, pl.DataFrame]:
        """[_BLOCK + 1] where a block's sessions begin, and its rows."""
        random = np.random.default_rng([self.seed, 1, number])
        lengths = draw_lengths(random, _BLOCK)
        ids = draw_ids(random, _BLOCK)
        heard = self.listen(random)
        severities = tell_severity(heard["feedback"])
        columns = {
            "track_id_clean": heard["track"],
            **flag_skips(severities),
            **surround_tracks(random, severities, heard["goes_back"] == 1),
        }
        sessions, positions = np.nonzero(np.arange(LONGEST) < lengths[:, None])
        table = pl.DataFrame(
            {
                "session_id": ids.gather(sessions),
                "session_position": positions + 1,
                "session_length": lengths[sessions],
                **{
                    name: np.broadcast_to(values, severities.shape)[sessions, positions]
                    for name, values in columns.items()
                },
            }
        )
        named = {"track_id_clean": self.tracks, **NAMED}
        table = table.with_columns(names.gather(table[name]).alias(name) for name, names in named.items())
        return np.concatenate(([0], np.cumsum(lengths))), table

    def listen(self, random: np.random.Generator) -> dict[str, NDArray[Any]]:
        """[_BLOCK, LONGEST] what a block's sessions hear, longer ones than are kept."""
        bias = _SKIP_BIAS + self.skip_bias + _SPREAD * random.standard_normal(_BLOCK)
        habits = Habits(_FOLLOW, _EXPLORE, _DRIFT, _RESPONSE, bias, _GOING_BACK)
        moods = random.integers(self.catalogue.num_moods, size=_BLOCK)
        heard = listen(random, self.catalogue, habits, moods, LONGEST)
        return {name: np.stack(values, axis=1) for name, values in heard.items()}


if __name__ == "__main__":
    auto_cli(write_mssd_logs)
