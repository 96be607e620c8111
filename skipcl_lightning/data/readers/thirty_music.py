"""Reader of the 30Music listening sessions."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl

from skipcl_lightning._checks import check_number
from skipcl_lightning.data.prepare.sessions import feedback_from_ratio
from skipcl_lightning.data.readers.parsing import (
    Paths,
    list_files,
    parse_lines,
    require,
    scan_parquet,
)

__all__ = ["read_30music"]

_COLUMNS = ("session_id", "item_id", "timestamp", "user_id")
_EVENTS = ("event.session", "event.play_session")
_PLAY = pl.Struct({**dict.fromkeys(_COLUMNS, pl.Int64), "play_ratio": pl.Float64})
_DECODER = json.JSONDecoder()
_LARGEST = 2**62  # a start plus a time after it still fits into an Int64


def read_30music(
    paths: Paths, *, label: str = "binary", skip_ratio: float = 0.5, max_damaged: float = 0.001
) -> pl.LazyFrame:
    r"""Read 30Music's sessions: items and the played share of each.

    Few plays of the data set are short, and many have no play time, so it suits next-item learning better
    than learning from skips.

    Args:
        paths: `sessions.idomaar`, gzipped or not: lines of `event.session`, id, start in seconds, and two
            JSON objects, the second with the user (`subjects`) and the tracks (`objects`, each with `id`,
            `playstart` in seconds after the start, `playratio`); or a Parquet file with `session_id`,
            `item_id`, `timestamp`, `user_id`, `play_ratio`; or a folder that is searched for
            `sessions.idomaar`, `sessions.idomaar.gz` and `sessions*.parquet`.
        label: `binary`: -1 if at most `skip_ratio` of the item was played, else +1; `ratio`: the distance
            from `skip_ratio`, from -1 for nothing to +1 for the whole. A missing or negative ratio gives 0,
            unknown.
        skip_ratio: The largest share that counts as skipped, in (0, 1).
        max_damaged: The largest share of lines with broken JSON, in [0, 1), among those read at once; 10 are
            always accepted, and 0 accepts none. Such lines are dropped with a warning.

    Returns:
        A canonical table in the order of the files: `session_id`, `item_id` (both Int64), `feedback`,
        `timestamp` (Int64, seconds since 1970), `user_id` (Int64), `copy_key` (the play ratio).

    Raises:
        TypeError: `skip_ratio` is no number.
        ValueError: A path does not exist, a folder has no sessions, a Parquet file lacks a column or has it
            in another type, or a setting is wrong. When collected: a line has another form; the message names
            the file and the line.

    Reference:
        Turrin, Quadrana, Condorelli, Pagano, Cremonesi, "30Music Listening and Playlists Dataset", RecSys
        2015 posters, CEUR-WS vol. 1441.

    Examples:
        >>> import tempfile
        >>> play = {"type": "track", "id": 5, "playstart": 60, "playtime": 9, "playratio": 0.05}
        >>> told = {"subjects": [{"type": "user", "id": 3}], "objects": [play]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "sessions.idomaar"
        ...     _ = file.write_text(f"event.session\t8\t1400000000\t{{}} {json.dumps(told)}\n")
        ...     read_30music(folder).collect().rows()
        [(8, 5, -1.0, 1400000060, 3, 0.05)]
    """
    feedback = feedback_from_ratio(pl.col("play_ratio"), label=label, skip_ratio=skip_ratio).alias("feedback")
    files = list_files(paths, ["sessions.idomaar", "sessions.idomaar.gz", "sessions*.parquet"])
    check_number("max_damaged", max_damaged, minimum=0, maximum=1, open_maximum=True)
    plays = pl.concat([_scan(file, max_damaged) for file in files])
    return plays.select(
        "session_id", "item_id", feedback, "timestamp", "user_id", pl.col("play_ratio").alias("copy_key")
    )


def _scan(file: Path, max_damaged: float) -> pl.LazyFrame:
    """Return one file's plays."""
    if file.suffix == ".parquet":
        table = scan_parquet(file, _COLUMNS, ["play_ratio"])
        return table.select(pl.col(_COLUMNS).cast(pl.Int64), pl.col("play_ratio").cast(pl.Float64))
    return (
        parse_lines(file, _parse_session, pl.List(_PLAY), max_damaged=max_damaged)
        .explode("line", empty_as_null=False)
        .unnest("line")
    )


def _parse_session(line: str) -> list[dict[str, Any]]:
    """Return the plays of one line."""
    fields = line.split("\t", 3)
    right = len(fields) == 4 and fields[0] in _EVENTS
    require(right, "it does not start with 'event.session', an id and a time, with tabs between")
    session, start = _to_integer(fields[1]), _to_integer(fields[2])
    _, end = _DECODER.raw_decode(fields[3])
    # The two objects are separated by a blank in some copies, by a tab in others.
    told = json.loads(fields[3][end:])
    users = [subject["id"] for subject in _find(told, "subjects", "user")]
    require(len(users) == 1, f"it names {len(users)} users")
    user = _to_integer(users[0])
    return [
        {
            "session_id": session,
            "item_id": _to_integer(track["id"]),
            "timestamp": start + _to_integer(track.get("playstart")),
            "user_id": user,
            "play_ratio": _to_ratio(track.get("playratio")),
        }
        for track in _find(told, "objects", "track")
    ]


def _find(told: Any, part: str, kind: str) -> list[dict[str, Any]]:
    """Return the entries of a kind in one object of a line."""
    entries = told.get(part) if isinstance(told, dict) else None
    right = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    require(right, f"its second object has no list of {part!r}")
    found = [entry for entry in entries or [] if entry.get("type") == kind]
    require(all("id" in entry for entry in found), f"a {kind} has no 'id'")
    return found


def _to_integer(value: Any) -> int:
    require(isinstance(value, str | int | float) and not isinstance(value, bool), f"{value!r} is no integer")
    number = int(value)
    right = -_LARGEST < number < _LARGEST and not (isinstance(value, float) and number != value)
    require(right, f"{value!r} is no integer")
    return number


def _to_ratio(value: Any) -> float | None:
    if value is None:
        return None
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    require(right, f"the ratio {value!r} is no number")
    return float(value)
