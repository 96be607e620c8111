"""Reader of a listener's own streaming history, as Spotify exports it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from skipcl_lightning._checks import check_choice, check_number
from skipcl_lightning.data.canonical_table import check_names, describe_polars_error
from skipcl_lightning.data.prepare.sessions import cut_at_gaps, flag_to_feedback, times_fall, to_microseconds
from skipcl_lightning.data.readers.parsing import (
    ARTIST_TRACK_DASH,
    PLACEHOLDER_NAMES,
    Paths,
    known,
    list_files,
    read_bytes,
)

__all__ = ["SKIP_RULES", "read_streaming_history"]

SKIP_RULES = ("skipped", "fwdbtn", "ms_played")
_NAMES = (
    "Streaming_History_Audio_*.json",
    "endsong_*.json",
    # Not StreamingHistory*.json: the basic export's StreamingHistory_podcast files have other fields.
    "StreamingHistory_music_*.json",
    "StreamingHistory[0-9]*.json",
)
_PATTERNS = (*_NAMES, *(f"{name}.gz" for name in _NAMES), "*.zip")
_EXTENDED: Mapping[str, type[pl.DataType]] = {
    "ts": pl.String,
    "ms_played": pl.Int64,
    "spotify_track_uri": pl.String,
}
_RULE_FIELDS: Mapping[str, tuple[str, type[pl.DataType]]] = {
    "skipped": ("skipped", pl.Boolean),
    "fwdbtn": ("reason_end", pl.String),
}
# Other fields of the extended export.
_CONTEXT: Mapping[str, type[pl.DataType]] = {
    "shuffle": pl.Boolean,
    "offline": pl.Boolean,
    "incognito_mode": pl.Boolean,
    "platform": pl.String,
    "conn_country": pl.String,
    "reason_start": pl.String,
    "reason_end": pl.String,
}
_BASIC: Mapping[str, type[pl.DataType]] = {
    "endTime": pl.String,
    "artistName": pl.String,
    "trackName": pl.String,
    "msPlayed": pl.Int64,
}
# The fields that describe a play, by which copies are found. Others, such as the
# country or the platform, may differ between two exports of one account.
_PLAY = (
    *("ts", "ms_played", "spotify_track_uri", "reason_start", "reason_end", "shuffle", "skipped"),
    *("offline", "offline_timestamp", "incognito_mode"),
)
_LONG_PLAY = 60_000
# A year, in milliseconds.
_LONGEST_PLAY = 366 * 86_400_000
# No play was recorded before the service began, in October 2008.
_FIRST_PLAY = 1_222_819_200_000_000
# Smaller numbers are seconds, larger ones milliseconds.
_LEAST_MILLISECONDS = 10**11


def read_streaming_history(
    folder_or_paths: Paths,
    *,
    skip_rule: str = "skipped",
    skip_seconds: float = 30.0,
    gap_minutes: float = 20.0,
    columns: Sequence[str] = (),
) -> pl.LazyFrame:
    """Read one listener's extended or basic streaming history and cut it into sessions.

    The time of an export is the END of a play, to the second or the minute, and becomes the `timestamp`;
    computed starts would put short plays in the wrong order. A pause lasts from the end of one play to the
    start (end minus length) of the next. Podcasts and lost tracks have no id; the preparation drops and
    counts them, and the copies of plays that two files share. Two plays are copies if all fields that
    describe them are equal.

    Extended export: an offline play has the time when the device was online again. The reader computes its
    end from `offline_timestamp`, its start. That field is ignored if the play would end after `ts`, or begin
    before October 2008.

    Basic export: times are whole minutes. A play of 60 s or more began before the minute in which it ended,
    so it comes before the shorter plays of that minute. The order among several short plays of one minute is
    unknown; they stay in the order of the file.

    Args:
        folder_or_paths: A folder that is searched for `Streaming_History_Audio_*.json`, `endsong_*.json`
            (extended), `StreamingHistory_music_*.json` and `StreamingHistory0.json` and so on (basic),
            gzipped or not, and for `*.zip` with these names in it; or the files. All must be of one export,
            extended or basic.
        skip_rule: `skipped`: the export's own flag, which is also set if the listener stopped, and is null
            (feedback 0, unknown) in old exports; `fwdbtn`: the play ended with the forward button;
            `ms_played`: it was shorter than `skip_seconds`, the only rule for the basic export. A skip gives
            -1, all else +1.
        skip_seconds: The length of a play in seconds below which `ms_played` counts it as skipped, above 0.
        gap_minutes: The longest pause within a session, above 0.
        columns: Other fields of the extended export to keep, for `SessionDataModule(context=...)`: `shuffle`,
            `offline`, `incognito_mode`, `platform`, `conn_country`, `reason_start`, `reason_end`.

    Returns:
        A canonical table, in the order of time: `session_id` (Int64), `item_id` (String: the track's uri, or
        artist and track with an en dash between), `feedback`, `timestamp` (Datetime in UTC), `copy_key`
        (UInt64); then `columns`.

    Raises:
        TypeError: A setting is no number, or `columns` no list of names.
        ValueError: A file is no JSON list of plays, lacks a needed field or has it in another type, both
            exports are mixed, there are no plays, the rule or `columns` needs a field that the basic export
            lacks, or one of `columns` is unknown.

    Examples:
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
    files = list_files(folder_or_paths, _PATTERNS, name="folder_or_paths", archives=True)
    check_names("columns", columns, choices=_CONTEXT)
    plays, extended = _read_plays(files, skip_rule, columns)
    if not extended and columns:
        raise ValueError(
            f"`columns` must be empty for the basic export, got {list(columns)}. Only the extended export "
            "has these fields."
        )
    if not extended and skip_rule != "ms_played":
        raise ValueError(
            f"`skip_rule` must be 'ms_played' for the basic export, got {skip_rule!r}. "
            "It says neither what was skipped nor why a play ended; the extended export does."
        )
    table = _to_extended(plays) if not extended else plays
    # Whole minutes are too coarse for starts, but long plays of a minute come before short ones.
    within = pl.col("start") if extended else pl.col("ms_played") < _LONG_PLAY
    timed = _parse_time(table).sort(pl.col("timestamp"), within, maintain_order=True)
    end = to_microseconds(pl.col("timestamp"), timed.schema["timestamp"])
    cut = cut_at_gaps(timed.lazy(), pl.col("start"), end, gap_minutes)
    return cut.select(
        "session_id",
        pl.col("spotify_track_uri").alias("item_id"),
        flag_to_feedback(_is_skipped(skip_rule, skip_seconds)).alias("feedback"),
        "timestamp",
        "copy_key",
        *columns,
    )


def _read_plays(files: Sequence[Path], skip_rule: str, columns: Sequence[str]) -> tuple[pl.DataFrame, bool]:
    """Return all files' plays in one table, and whether they are of the extended export."""
    tables: dict[bool, list[pl.DataFrame]] = {}
    for name, content in (
        part for file in files for part in read_bytes(file, _NAMES, name="folder_or_paths")
    ):
        records = _load(content, name)
        if records:
            extended = "endTime" not in records[0]
            fields = dict(_EXTENDED if extended else _BASIC)
            if extended and skip_rule in _RULE_FIELDS:
                fields |= [_RULE_FIELDS[skip_rule]]
            if extended:
                fields |= {field: _CONTEXT[field] for field in columns}
            table = _to_table(records, fields, name)
            # Equal times stay in the order of listening, for either direction of the file.
            backwards = times_fall(table["ts" if extended else "endTime"])
            tables.setdefault(extended, []).append(table.reverse() if backwards else table)
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


def _load(content: bytes, name: str) -> list[dict[str, Any]]:
    """Return the records of one file."""
    try:
        records = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"`folder_or_paths` must hold JSON files, got {name!r}: {error}. "
            "Fetch it again if it was cut short."
        ) from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(
            f"`folder_or_paths` must hold JSON lists of plays, got something else in {name!r}. "
            "Name only the history files of the export."
        )
    return records


def _to_table(
    records: Sequence[Mapping[str, Any]], fields: Mapping[str, type[pl.DataType]], name: str
) -> pl.DataFrame:
    """Return the needed fields of one file's records."""
    missing = [field for field in fields if not all(field in record for record in records)]
    if missing:
        raise ValueError(
            f"`folder_or_paths` must hold plays with {', '.join(map(repr, missing))}, got some without "
            f"in {name!r}. Name only the music history files of the export."
        )
    try:
        table = pl.DataFrame(
            {
                field: _to_series([record[field] for record in records], dtype)
                for field, dtype in fields.items()
            }
        )
        # UnicodeEncodeError: JSON can escape half a character, which a table cannot hold.
    except (TypeError, OverflowError, UnicodeEncodeError, pl.exceptions.PolarsError) as error:
        raise ValueError(
            f"`folder_or_paths` must hold plays of the export's own types, got another in {name!r}: "
            f"{describe_polars_error(error)}. Fetch the file again."
        ) from error
    described = _PLAY if "ts" in fields else tuple(fields)
    keys = pl.Series([json.dumps([record.get(field) for field in described]) for record in records])
    began = pl.Series([_offline_start(record) for record in records], dtype=pl.Int64)
    return table.with_columns(keys.hash().alias("copy_key"), began.alias("began"))


def _to_series(values: list[Any], dtype: type[pl.DataType]) -> pl.Series:
    # polars takes True for the integer 1.
    if dtype != pl.Boolean and any(isinstance(value, bool) for value in values):
        raise TypeError(f"a value of {dtype.__name__} must not be true or false")
    return pl.Series(values, dtype=dtype)


def _offline_start(record: Mapping[str, Any]) -> int | None:
    """Return the start of an offline play in microseconds; the export has it in seconds or milliseconds."""
    began = record.get("offline_timestamp")
    if record.get("offline") is not True or isinstance(began, bool) or not isinstance(began, int | float):
        return None
    microseconds = began * (1_000_000 if began < _LEAST_MILLISECONDS else 1000)
    return int(microseconds) if 0 < microseconds < 2**62 else None


def _to_extended(plays: pl.DataFrame) -> pl.DataFrame:
    """Return the basic export with the extended one's fields."""
    return plays.select(
        pl.col("endTime").alias("ts"),
        pl.col("msPlayed").alias("ms_played"),
        # Null, and so dropped and counted, if either name is null.
        pl.concat_str(
            [known(name, PLACEHOLDER_NAMES) for name in ("artistName", "trackName")],
            separator=ARTIST_TRACK_DASH,
        ).alias("spotify_track_uri"),
        "copy_key",
        "began",
    )


def _parse_time(plays: pl.DataFrame) -> pl.DataFrame:
    """Add `timestamp`, the end of a play, and `start`, in microseconds."""
    extended = pl.col("ts").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", strict=False)
    basic = pl.col("ts").str.to_datetime("%Y-%m-%d %H:%M", time_unit="us", strict=False)
    timed = plays.with_columns(pl.coalesce(extended, basic).alias("timestamp"))
    right_length = pl.col("ms_played").is_between(0, _LONGEST_PLAY).fill_null(False)
    wrong = timed.filter(pl.col("timestamp").is_null() | ~right_length)
    if wrong.height:
        time, played = wrong.row(0, named=True)["ts"], wrong.row(0, named=True)["ms_played"]
        raise ValueError(
            "`folder_or_paths` must hold plays with an end, as in '2024-05-01T10:00:00Z' (extended) or "
            f"'2024-05-01 10:00' (basic), and a length in milliseconds, got {time!r} and {played!r}. "
            "Mend or remove that play."
        )
    clock, length = pl.col("timestamp").dt.epoch("us"), pl.col("ms_played") * 1000
    end_offline = pl.col("began") + length
    plausible = (pl.col("began") >= _FIRST_PLAY) & (end_offline <= clock)
    end = pl.when(plausible).then(end_offline).otherwise(clock)
    return timed.with_columns(
        pl.from_epoch(end, time_unit="us").dt.replace_time_zone("UTC").alias("timestamp"),
        (end - length).alias("start"),
    )


def _is_skipped(skip_rule: str, skip_seconds: float) -> pl.Expr:
    """Return whether a play was skipped; null if the rule's field is."""
    if skip_rule == "ms_played":
        return pl.col("ms_played") < skip_seconds * 1000
    return pl.col("reason_end") == "fwdbtn" if skip_rule == "fwdbtn" else pl.col("skipped")
