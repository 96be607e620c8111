"""The reader of any other log: a table whose columns are mapped to the canonical names."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from skipcl_lightning.data.readers.files import Paths, list_files, read_header
from skipcl_lightning.data.schema import CANONICAL_COLUMNS, describe_columns, resolve_schema
from skipcl_lightning.data.sessions import sessionise

__all__ = ["read_table"]

_INFERRED_ROWS = 10_000


def read_table(
    source: Paths | pl.LazyFrame | pl.DataFrame,
    *,
    item: str,
    session: str | None = None,
    feedback: str | None = None,
    explicit_feedback: str | None = None,
    timestamp: str | None = None,
    position: str | None = None,
    user: str | None = None,
    separator: str = ",",
    gap_minutes: float | None = None,
) -> pl.LazyFrame:
    r"""Map a table's columns to the canonical names, and cut sessions where it has none.

    Ids from a CSV file stay strings, so that "007" is not 7; the types of its other columns are guessed
    from the first 10,000 rows. Parquet files and frames keep their types.

    Args:
        source: CSV files (gzipped or not), Parquet files, a folder with either, or a polars frame.
        item: The column with the track's id.
        session: The column with the session's id; without it ``timestamp`` and ``gap_minutes`` are needed.
        feedback: The column with what the listener did, in [-1, 1]; null becomes 0, unknown. Without it
            all is unknown: next-track learning only.
        explicit_feedback: The column with what the listener said, in [-1, 1]: below 0 disliked, above 0
            liked; null becomes 0, unknown.
        timestamp: The column with the time, Datetime or a number of SECONDS.
        position: The column with the order within a session.
        user: The column with the listener's id.
        separator: What stands between the columns of a CSV file, as in ``"\t"``.
        gap_minutes: The longest pause within a session, where sessions are cut here.

    Returns:
        A canonical table.

    Raises:
        TypeError: ``source`` is neither paths nor a frame.
        ValueError: A column is missing (the message lists those there are), CSV and Parquet are mixed, a
            path does not exist, or the settings leave the sessions or their order open.

    Example:
        >>> log = pl.DataFrame(
        ...     {"track": ["a", "b"], "who": ["u", "u"], "time": [0, 60], "stars": [1.0, None]}
        ... )
        >>> read_table(
        ...     log, item="track", user="who", timestamp="time", feedback="stars", gap_minutes=30
        ... ).collect().rows()
        [('u/0', 'a', 1.0, 0, 'u'), ('u/0', 'b', 0.0, 60, 'u')]
    """
    _check_order(session, timestamp, position, gap_minutes)
    names = {
        "session_id": session,
        "item_id": item,
        "position": position,
        "timestamp": timestamp,
        "user_id": user,
    }
    wanted = {canonical: name for canonical, name in names.items() if name is not None}
    ids = [name for canonical, name in wanted.items() if canonical.endswith("_id")]
    needed = list(
        dict.fromkeys([*wanted.values(), *(name for name in (feedback, explicit_feedback) if name)])
    )
    log = _scan(source, needed, ids, separator)
    signals = {"feedback": pl.lit(0.0) if feedback is None else pl.col(feedback)}
    if explicit_feedback is not None:
        signals["explicit_feedback"] = pl.col(explicit_feedback)
    columns = [pl.col(name).alias(canonical) for canonical, name in wanted.items()]
    mapped = log.select(
        *columns, *(signal.fill_null(0).cast(pl.Float32).alias(name) for name, signal in signals.items())
    )
    if gap_minutes is not None:
        mapped = sessionise(mapped, gap_minutes=gap_minutes)
    return mapped.select(
        name for name in CANONICAL_COLUMNS if name == "session_id" or name in wanted or name in signals
    )


def _check_order(
    session: str | None, timestamp: str | None, position: str | None, gap_minutes: float | None
) -> None:
    """Raise where the sessions, or the order within them, are open or told twice."""
    if session is None and (timestamp is None or gap_minutes is None):
        raise ValueError(
            "`session` must name a column, got None. Without one, give `timestamp` and `gap_minutes`: "
            "pauses then tell sessions apart."
        )
    if session is not None and gap_minutes is not None:
        raise ValueError(
            "`gap_minutes` must be None where `session` names a column, got both. Drop one of them."
        )
    if timestamp is None and position is None:
        raise ValueError(
            "`timestamp` or `position` must name a column, got None for both. A session's order needs one."
        )


def _scan(
    source: Paths | pl.LazyFrame | pl.DataFrame, needed: Sequence[str], ids: Sequence[str], separator: str
) -> pl.LazyFrame:
    """The source as one lazy table with the needed columns."""
    if isinstance(source, pl.LazyFrame | pl.DataFrame):
        return _select(source.lazy(), needed, "`source`")
    if not isinstance(source, str | Path | Sequence):
        raise TypeError(
            f"`source` must be paths or a polars frame, got {type(source).__name__}. "
            "`polars.from_pandas` and the like convert other tables."
        )
    files = list_files(source, ["*.csv", "*.csv.gz", "*.parquet"])
    parquet = {file.suffix == ".parquet" for file in files}
    if len(parquet) == 2:
        raise ValueError("`source` must hold CSV or Parquet files, got both. Read them one kind at a time.")
    if True in parquet:
        return pl.concat(
            [_select(pl.scan_parquet(file, glob=False), needed, repr(str(file))) for file in files]
        )
    return pl.concat([_scan_csv(file, needed, ids, separator) for file in files], how="vertical_relaxed")


def _scan_csv(file: Path, needed: Sequence[str], ids: Sequence[str], separator: str) -> pl.LazyFrame:
    """One CSV file, its ids as strings."""
    read_header(file, needed, separator=separator)
    return pl.scan_csv(
        file,
        separator=separator,
        schema_overrides=dict.fromkeys(ids, pl.String),
        infer_schema_length=_INFERRED_ROWS,
        try_parse_dates=True,
        glob=False,
    ).select(needed)


def _select(frame: pl.LazyFrame, needed: Sequence[str], where: str) -> pl.LazyFrame:
    """The needed columns of a frame."""
    schema = resolve_schema("source", frame)
    missing = [name for name in needed if name not in schema]
    if missing:
        raise ValueError(
            f"`source` must have the column {', '.join(map(repr, missing))}, got {describe_columns(schema)} "
            f"in {where}. Name one of these instead."
        )
    return frame.select(needed)
