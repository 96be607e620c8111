"""The reader of a listening history from ListenBrainz."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from skipcl_lightning.data.readers.files import Paths, list_files, read_first_line
from skipcl_lightning.data.readers.parsing import ARTIST_TRACK_DASH, parse_lines, require
from skipcl_lightning.data.sessions import label_and_cut

__all__ = ["read_listenbrainz"]

# By number: the export's feedback.jsonl and pinned_recording.jsonl hold no listens.
_NAMES = ("[0-9]*.jsonl", "[0-9]*.jsonl.gz", "[0-9]*.listens", "[0-9]*.listens.gz")
_LISTEN = pl.Struct({"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64})
_LATEST = 253_402_300_799  # the end of the year 9999


def read_listenbrainz(
    paths: Paths, *, skip_seconds: float = 30.0, gap_minutes: float | None = 20.0
) -> pl.LazyFrame:
    r"""Read listens that ListenBrainz exports: one listener's, or a dump of many.

    The log has no skip flag: a track is skipped (-1) if the same listener's next one starts within
    ``skip_seconds``, else listened to (+1); the last listen is unknown (0). The item is the MusicBrainz id of
    the recording, the one that ListenBrainz found before the one that came with the listen, else artist and
    track with an en dash between. A listener's export does not name them: read one at a time.

    Args:
        paths: Files with one JSON object a line, gzipped or not, with ``listened_at`` (when it started, in
            seconds since 1970), ``track_metadata`` and perhaps ``user_name``; or a folder that is searched
            for ``1.jsonl`` and so on (an export: ``listens/2024/1.jsonl``) and ``1.listens`` (a dump).
        skip_seconds: The longest time in seconds from the start of a skipped track to that of the next,
            above 0.
        gap_minutes: The longest pause within a session, from start to start, above 0. None for the plain
            history, which polars can stream: ``label_by_next_play`` and ``sessionise`` then do the rest.

    Returns:
        A canonical table, sorted by user and time: ``session_id`` (String, or Int64 without users),
        ``item_id`` (String), ``feedback``, ``timestamp`` (Datetime in UTC), and where the listens name
        their user ``user_id`` (String). With ``gap_minutes=None`` only ``user_id``, ``item_id``,
        ``timestamp``, in the order of the files.

    Raises:
        TypeError: A setting is no number.
        ValueError: A path does not exist, a folder has no such file, a file's first line is no listen, some
            files name users and others do not, or a setting is not above 0. When collected: another line is
            no listen; the message names the file and the line.

    Reference:
        MetaBrainz Foundation, ListenBrainz: https://listenbrainz.readthedocs.io, "JSON Documentation".

    Example:
        >>> import tempfile
        >>> song = {"artist_name": "A", "track_name": "T", "mbid_mapping": {"recording_mbid": "m"}}
        >>> listens = [{"listened_at": time, "track_metadata": song} for time in (1700000000, 1700000010)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "1.jsonl").write_text("\n".join(map(json.dumps, listens)))
        ...     read_listenbrainz(folder).select("session_id", "item_id", "feedback").collect().rows()
        [(0, 'm', -1.0), (0, 'm', 0.0)]
    """
    files = list_files(paths, _NAMES)
    named = [_names_user(file) for file in files]
    tables = [
        parse_lines(file, partial(_parse_listen, named=names), _LISTEN)
        for file, names in zip(files, named, strict=True)
    ]
    if len(set(named)) == 2:
        raise ValueError(
            "`paths` must hold listens that all name their user, or none, got "
            f"{str(files[named.index(True)])!r} with a 'user_name' and {str(files[named.index(False)])!r} "
            "without. Read them one by one."
        )
    listens = pl.concat(tables).unnest("line")
    timed = listens.with_columns(pl.from_epoch("timestamp", time_unit="us").dt.replace_time_zone("UTC"))
    history = timed if named[0] else timed.drop("user_id")
    return label_and_cut(history, skip_seconds=skip_seconds, gap_minutes=gap_minutes)


def _names_user(file: Path) -> bool:
    """Whether the first listen says whose it is; the rest must do likewise."""
    first = read_first_line(file)
    try:
        listen = json.loads(first)
    except (ValueError, RecursionError):
        # What is wrong with the line is told where it is parsed.
        return False
    return isinstance(listen, dict) and bool(listen.get("user_name"))


def _parse_listen(line: str, *, named: bool) -> dict[str, Any]:
    """User, item and time in microseconds of one line."""
    listen = json.loads(line)
    track = listen.get("track_metadata") if isinstance(listen, dict) else None
    require(isinstance(track, dict), "it is no JSON object with a 'track_metadata'")
    user = _to_text(listen, "user_name")
    require(bool(user) == named, f"its 'user_name' is {user!r}; either all listens have one or none")
    time = _to_microseconds(listen.get("listened_at"))
    return {"user_id": user, "item_id": _find_item(track or {}), "timestamp": time}


def _find_item(track: dict[str, Any]) -> str | None:
    """The recording's id, else artist and track, else none."""
    for part in ("mbid_mapping", "additional_info"):
        told = track.get(part) or {}
        require(isinstance(told, dict), f"its {part!r} is no JSON object")
        found = _to_text(told, "recording_mbid")
        if found:
            return found
    artist, name = _to_text(track, "artist_name"), _to_text(track, "track_name")
    return artist + ARTIST_TRACK_DASH + name if artist and name else None


def _to_text(told: dict[str, Any], field: str) -> str | None:
    value = told.get(field)
    require(value is None or isinstance(value, str), f"its {field!r} is {value!r} and no text")
    # JSON can escape half a character, which no table can hold.
    (value or "").encode()
    return value


def _to_microseconds(value: Any) -> int:
    # An export writes whole seconds with a decimal point.
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    require(right, f"its 'listened_at' is {value!r} and no number of seconds")
    require(0 <= value <= _LATEST, f"its 'listened_at' is {value!r} and not in seconds since 1970")
    microseconds: int = round(value * 1_000_000)
    return microseconds
