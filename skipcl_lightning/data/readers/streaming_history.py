"""The reader of a listener's own streaming history, as Spotify exports it on request."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from skipcl_lightning._checks import check_choice, check_number
from skipcl_lightning.data.readers.files import Paths, list_files
from skipcl_lightning.data.readers.parsing import ARTIST_TRACK_DASH
from skipcl_lightning.data.sessions import cut_at_gaps, to_microseconds

__all__ = ["SKIP_RULES", "read_streaming_history"]

SKIP_RULES = ("skipped", "fwdbtn", "ms_played")
_NAMES = (
    "Streaming_History_Audio_*.json",
    "endsong_*.json",
    # Not StreamingHistory*.json: the basic export's StreamingHistory_podcast files have other fields.
    "StreamingHistory_music_*.json",
    "StreamingHistory[0-9]*.json",
)
_EXTENDED: Mapping[str, type[pl.DataType]] = {
    "ts": pl.String,
    "ms_played": pl.Int64,
    "spotify_track_uri": pl.String,
    "reason_end": pl.String,
    "skipped": pl.Boolean,
}
_BASIC: Mapping[str, type[pl.DataType]] = {
    "endTime": pl.String,
    "artistName": pl.String,
    "trackName": pl.String,
    "msPlayed": pl.Int64,
}


def read_streaming_history(
    folder_or_paths: Paths,
    *,
    skip_rule: str = "skipped",
    skip_seconds: float = 30.0,
    gap_minutes: float = 20.0,
) -> pl.LazyFrame:
    """Read one listener's extended or basic streaming history and cut it into sessions.

    The clock of an export is the END of a play, to the second or the minute, and it is kept as the
    ``timestamp``: starts, computed from it, would put short plays in the wrong order. The pause that ends a
    session is counted from the end of one play to the start (end less length) of the next. Podcasts and
    lost tracks have no id and, like rows that two files share, are dropped and counted at the preparation.

    Args:
        folder_or_paths: A folder that is searched for ``Streaming_History_Audio_*.json``,
            ``endsong_*.json`` (extended), ``StreamingHistory_music_*.json`` and ``StreamingHistory0.json``
            and so on (basic), or the files. All must be of the same export, extended or basic.
        skip_rule: ``skipped``: the export's own flag, which also holds where the listener stopped, and is
            null (feedback 0, unknown) in old exports; ``fwdbtn``: the play ended with the forward button;
            ``ms_played``: it was shorter than ``skip_seconds``, the only rule for the basic export. A skip
            gives -1, all else +1.
        skip_seconds: The length of a play in seconds under which ``ms_played`` calls it skipped, above 0.
        gap_minutes: The longest pause within a session, above 0.

    Returns:
        A canonical table, in the order of time: ``session_id`` (Int64), ``item_id`` (String: the track's
        uri, or artist and track with an en dash between), ``feedback``, ``timestamp`` (Datetime in UTC).

    Raises:
        TypeError: A setting is no number.
        ValueError: A file is no JSON list of plays, lacks a field or has it in another type, both exports
            are mixed, nothing is in them, or the rule needs a field that the basic export lacks.

    Example:
        >>> import tempfile
        >>> play = {"artistName": "A", "trackName": "T", "endTime": "2024-05-01 10:00", "msPlayed": 9000}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "StreamingHistory_music_0.json"
        ...     _ = file.write_text(json.dumps([play]))
        ...     read_streaming_history(folder, skip_rule="ms_played").collect()["feedback"].to_list()
        [-1.0]
    """
    check_choice("skip_rule", skip_rule, SKIP_RULES)
    check_number("skip_seconds", skip_seconds, minimum=0, open_minimum=True)
    files = list_files(folder_or_paths, _NAMES)
    plays, extended = _read_plays(files)
    if not extended and skip_rule != "ms_played":
        raise ValueError(
            f"`skip_rule` must be 'ms_played' for the basic export, got {skip_rule!r}. "
            "It says neither what was skipped nor why a play ended; the extended export does."
        )
    table = _to_extended(plays) if not extended else plays
    # A clock of whole minutes says too little for starts; the basic export's own order says more.
    order = ["timestamp", "start"] if extended else ["timestamp"]
    timed = _parse_time(table).sort(order, maintain_order=True)
    cut = cut_at_gaps(
        timed.lazy(),
        pl.col("start"),
        to_microseconds(pl.col("timestamp"), timed.schema["timestamp"]),
        gap_minutes,
        timed.schema,
    )
    return cut.select(
        "session_id",
        pl.col("spotify_track_uri").alias("item_id"),
        _feedback(skip_rule, skip_seconds).cast(pl.Float32).alias("feedback"),
        "timestamp",
    )


def _read_plays(files: Sequence[Path]) -> tuple[pl.DataFrame, bool]:
    """All files' plays in one table, and whether they are of the extended export."""
    tables: dict[bool, list[pl.DataFrame]] = {}
    for file in files:
        records = _load(file)
        if records:
            extended = "endTime" not in records[0]
            tables.setdefault(extended, []).append(
                _to_table(records, _EXTENDED if extended else _BASIC, file)
            )
    if not tables:
        raise ValueError(
            "`folder_or_paths` must hold at least one play, got only empty lists. Fetch it again."
        )
    if len(tables) == 2:
        raise ValueError(
            "`folder_or_paths` must hold one export, got files of the extended and of the basic one. "
            "They name tracks differently: give only the files of the extended export."
        )
    ((extended, found),) = tables.items()
    return pl.concat(found), extended


def _load(file: Path) -> list[dict[str, Any]]:
    """The records of one file."""
    try:
        records = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"`folder_or_paths` must hold JSON files, got {str(file)!r}: {error}. "
            "Fetch it again if it was cut short."
        ) from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(
            f"`folder_or_paths` must hold JSON lists of plays, got something else in {str(file)!r}. "
            "Name only the history files of the export."
        )
    return records


def _to_table(
    records: Sequence[Mapping[str, Any]], fields: Mapping[str, type[pl.DataType]], file: Path
) -> pl.DataFrame:
    """The wanted fields of one file's records."""
    missing = [field for field in fields if not all(field in record for record in records)]
    if missing:
        raise ValueError(
            f"`folder_or_paths` must hold plays with {', '.join(map(repr, missing))}, got some without "
            f"in {str(file)!r}. Name only the music history files of the export."
        )
    try:
        return pl.DataFrame(
            {
                field: pl.Series([record[field] for record in records], dtype=dtype)
                for field, dtype in fields.items()
            }
        )
    except (TypeError, OverflowError, pl.exceptions.PolarsError) as error:
        raise ValueError(
            f"`folder_or_paths` must hold plays of the export's own types, got another in {str(file)!r}: "
            f"{error}. Fetch the file again."
        ) from error


def _to_extended(plays: pl.DataFrame) -> pl.DataFrame:
    """The basic export in the extended one's words."""
    return plays.select(
        pl.col("endTime").alias("ts"),
        pl.col("msPlayed").alias("ms_played"),
        # Null, and so dropped and counted, where either name is.
        pl.concat_str("artistName", "trackName", separator=ARTIST_TRACK_DASH).alias("spotify_track_uri"),
    )


def _parse_time(plays: pl.DataFrame) -> pl.DataFrame:
    """Add ``timestamp``, the end of a play, and ``start``, in microseconds."""
    extended = pl.col("ts").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", strict=False)
    basic = pl.col("ts").str.to_datetime("%Y-%m-%d %H:%M", time_unit="us", strict=False)
    timed = plays.with_columns(pl.coalesce(extended, basic).alias("timestamp"))
    wrong = timed.filter(pl.col("timestamp").is_null() | ~(pl.col("ms_played") >= 0).fill_null(False))
    if wrong.height:
        time, played = wrong.row(0, named=True)["ts"], wrong.row(0, named=True)["ms_played"]
        raise ValueError(
            "`folder_or_paths` must hold plays with an end, as in '2024-05-01T10:00:00Z' (extended) or "
            f"'2024-05-01 10:00' (basic), and a length in milliseconds, got {time!r} and {played!r}. "
            "Mend or remove that play."
        )
    start = pl.col("timestamp").dt.epoch("us") - pl.col("ms_played") * 1000
    return timed.with_columns(pl.col("timestamp").dt.replace_time_zone("UTC"), start.alias("start"))


def _feedback(skip_rule: str, skip_seconds: float) -> pl.Expr:
    """-1 for a skip, 0 where the rule's field is null, else +1."""
    if skip_rule == "ms_played":
        skipped = pl.col("ms_played") < skip_seconds * 1000
    elif skip_rule == "fwdbtn":
        skipped = pl.col("reason_end") == "fwdbtn"
    else:
        skipped = pl.col("skipped")
    return pl.when(skipped.is_null()).then(0.0).when(skipped).then(-1.0).otherwise(1.0)
