"""The reader of a listening history from ListenBrainz."""

import json
import math
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from skipcl_lightning._checks import check_number
from skipcl_lightning.data.prepare.sessions import label_and_cut
from skipcl_lightning.data.readers.parsing import (
    ARTIST_TRACK_DASH,
    PLACEHOLDER_IDS,
    PLACEHOLDER_NAMES,
    ROW,
    Paths,
    is_placeholder,
    list_files,
    parse_frame,
    parse_lines,
    read_bytes,
    read_first_line,
    require,
)

__all__ = ["read_listenbrainz"]

# Names with a number; the export's feedback.jsonl and pinned_recording.jsonl hold no listens.
_NAMES = ("[0-9]*.jsonl", "[0-9]*.jsonl.gz", "[0-9]*.listens", "[0-9]*.listens.gz")
_LISTEN = pl.Struct({"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64})
_LATEST = 253_402_300_799  # the end of the year 9999


def read_listenbrainz(
    paths: Paths,
    *,
    skip_seconds: float = 30.0,
    gap_minutes: float | None = 20.0,
    max_damaged: float = 0.001,
) -> pl.LazyFrame:
    r"""Read listens that ListenBrainz exports: one listener's, or a dump of many.

    The log has no skips. An item is skipped (-1) if the same listener's next listen starts within
    `skip_seconds`, otherwise listened (+1); the last listen is unknown (0). The item is the MusicBrainz id of
    the recording (the one that ListenBrainz mapped, or else the submitted one), otherwise artist and track
    with an en dash between. A listener's export does not name the listener, so read one at a time.

    Args:
        paths: Files with one JSON object in each line, gzipped or not, with `listened_at` (the start, in
            seconds since 1970), `track_metadata` and perhaps `user_name`; or a folder that is searched for
            `1.jsonl` and so on (an export: `listens/2024/1.jsonl`) and `1.listens` (a dump); or the ZIP
            archive of an export, of at most 4 GiB unpacked.
        skip_seconds: The longest time in seconds from the start of a skipped item to the next start, above 0.
        gap_minutes: The longest pause within a session, from start to start, above 0. None for the plain
            history, which polars can stream; use `label_by_next_play` and `sessionise` then.
        max_damaged: The largest share of lines that are no JSON, in [0, 1), among those read at once; 10 are
            always accepted, and 0 accepts none. Such lines are dropped with a warning.

    Returns:
        A canonical table, sorted by user and time: `session_id` (String, or Int64 without users), `item_id`
        (String), `feedback`, `timestamp` (Datetime in UTC), and where the listens name their user `user_id`
        (String). With `gap_minutes=None` only `user_id`, `item_id`, `timestamp`, in the order of the files.

    Raises:
        TypeError: A setting is no number.
        ValueError: A path does not exist, a folder has no such file, a file's first line is no listen, some
            files name users and others do not, or a setting is not above 0. When collected: another line is
            no listen; the message names the file and the line.

    Reference:
        MetaBrainz Foundation, ListenBrainz: https://listenbrainz.readthedocs.io, "JSON Documentation".

    Examples:
        >>> import tempfile
        >>> song = {"artist_name": "A", "track_name": "T", "mbid_mapping": {"recording_mbid": "m"}}
        >>> listens = [{"listened_at": time, "track_metadata": song} for time in (1700000000, 1700000010)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "1.jsonl").write_text("\n".join(map(json.dumps, listens)))
        ...     read_listenbrainz(folder).select("session_id", "item_id", "feedback").collect().rows()
        [(0, 'm', -1.0), (0, 'm', 0.0)]
    """
    check_number("max_damaged", max_damaged, minimum=0, maximum=1, open_maximum=True)
    sources = _list_sources(paths)
    named = [_names_user(first) for _, first, _ in sources]
    if len(set(named)) == 2:
        raise ValueError(
            "`paths` must hold listens that all name their user, or none, got "
            f"{sources[named.index(True)][0]!r} with a 'user_name' and {sources[named.index(False)][0]!r} "
            "without. Read them one by one."
        )
    parse = partial(_parse_listen, named=named[0])
    time = pl.from_epoch("timestamp", time_unit="us").dt.replace_time_zone("UTC")
    tables = [_scan(name, lines, parse, max_damaged).with_columns(time) for name, _, lines in sources]
    histories = tables if named[0] else [table.drop("user_id") for table in tables]
    return label_and_cut(histories, skip_seconds=skip_seconds, gap_minutes=gap_minutes)


def _list_sources(paths: Paths) -> list[tuple[str, str, Path | pl.DataFrame]]:
    """Return the name and first line of each file or member, and the file or the member's lines."""
    sources: list[tuple[str, str, Path | pl.DataFrame]] = []
    for file in list_files(paths, _NAMES, archives=True):
        if not zipfile.is_zipfile(file):
            sources.append((str(file), read_first_line(file), file))
            continue
        for name, content in read_bytes(file, _NAMES[::2]):
            lines = _to_lines(name, content)
            if lines.height:
                sources.append((name, lines["line"][0], lines))
    if not sources:
        raise ValueError(f"`paths` must hold at least one listen, got none in {paths!r}. Download it again.")
    return sources


def _to_lines(name: str, content: bytes) -> pl.DataFrame:
    try:
        texts = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`paths` must hold readable text files in UTF-8, got {name!r}: {error}. Download it again."
        ) from error
    rows = [(row, text) for row, text in enumerate(texts, start=1) if text.strip("\r")]
    return pl.DataFrame(rows, schema={ROW: pl.UInt32, "line": pl.String}, orient="row")


def _scan(
    name: str, lines: Path | pl.DataFrame, parse: Callable[[str], Any], max_damaged: float
) -> pl.LazyFrame:
    """Return the listens of a file, or of a member of an archive, which is in memory."""
    if isinstance(lines, Path):
        parsed = parse_lines(lines, parse, _LISTEN, max_damaged=max_damaged)
    else:
        parsed = parse_frame(lines, parse=parse, file=name, dtype=_LISTEN, max_damaged=max_damaged).lazy()
    return parsed.unnest("line")


def _names_user(first: str) -> bool:
    """Return whether the first listen names its user; the others must do the same."""
    try:
        listen = json.loads(first)
    except (ValueError, RecursionError):
        # A wrong line is reported when it is parsed.
        return False
    return isinstance(listen, dict) and bool(listen.get("user_name"))


def _parse_listen(line: str, *, named: bool) -> dict[str, Any]:
    """Return user, item and time in microseconds of one line."""
    listen = json.loads(line)
    track = listen.get("track_metadata") if isinstance(listen, dict) else None
    require(isinstance(track, dict), "it is no JSON object with a 'track_metadata'")
    user = _to_text(listen, "user_name")
    require(bool(user) == named, f"its 'user_name' is {user!r}; either all listens have one or none")
    time = _to_microseconds(listen.get("listened_at"))
    return {"user_id": user, "item_id": _find_item(track or {}), "timestamp": time}


def _find_item(track: dict[str, Any]) -> str | None:
    """Return the recording's id, else artist and track, else None."""
    for part in ("mbid_mapping", "additional_info"):
        told = track.get(part) or {}
        require(isinstance(told, dict), f"its {part!r} is no JSON object")
        found = _to_text(told, "recording_mbid")
        if not is_placeholder(found, PLACEHOLDER_IDS):
            return found
    texts = (_to_text(track, field) for field in ("artist_name", "track_name"))
    known = [text for text in texts if text is not None and not is_placeholder(text, PLACEHOLDER_NAMES)]
    return ARTIST_TRACK_DASH.join(known) if len(known) == 2 else None


def _to_text(told: dict[str, Any], field: str) -> str | None:
    value = told.get(field)
    require(value is None or isinstance(value, str), f"its {field!r} is {value!r} and no text")
    # JSON can escape half a character, which a table cannot hold.
    (value or "").encode()
    return value


def _to_microseconds(value: Any) -> int:
    # An export writes whole seconds with a decimal point.
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    require(right, f"its 'listened_at' is {value!r} and no number of seconds")
    require(0 <= value <= _LATEST, f"its 'listened_at' is {value!r} and not in seconds since 1970")
    microseconds: int = round(value * 1_000_000)
    return microseconds
