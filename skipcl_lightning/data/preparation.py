"""From a canonical table to checked, sorted and filtered sessions."""

from typing import Any

import polars as pl

from skipcl_lightning.data.drop_report import DropReport
from skipcl_lightning.data.filters import SessionFilter
from skipcl_lightning.data.schema import check_log_columns, collect_log

__all__ = ["prepare_sessions"]


def prepare_sessions(
    log: pl.LazyFrame | pl.DataFrame, session_filter: SessionFilter | None = None
) -> tuple[pl.DataFrame, DropReport]:
    """Read a log, check its contents once, sort it and keep the sessions that satisfy the filter.

    Rows may come in any order: they are sorted by session and, within one, by ``position`` if there is one,
    else by ``timestamp``, equal times in the order of the rows. Rows without an item and rows that repeat
    another in every canonical column are dropped. Null feedback, explicit or not, becomes 0, unknown.

    Args:
        log: A canonical table.
        session_filter: What is kept; the default filter if None.

    Returns:
        The kept rows with the canonical columns, and the report of what was dropped.

    Raises:
        TypeError: ``log`` is no polars frame.
        ValueError: A column is missing or of another type, a file cannot be read, a session, position or
            timestamp is null, feedback is NaN or outside [-1, 1], two rows of a session share a position,
            a session belongs to two users, or nothing is left.

    Example:
        >>> log = pl.DataFrame({
        ...     "session_id": ["s"] * 4, "item_id": ["b", "a", None, "c"],
        ...     "feedback": [-1.0, 1.0, 1.0, 0.5], "position": [2, 1, 3, 4],
        ... })
        >>> table, report = prepare_sessions(log)
        >>> table["item_id"].to_list(), report.rows_without_item
        (['a', 'b', 'c'], 1)
    """
    session_filter = session_filter or SessionFilter()
    columns = check_log_columns(log)
    signals = [name for name in ("feedback", "explicit_feedback") if name in columns]
    read = collect_log(log.lazy().select(columns)).with_columns(pl.col(signals).fill_null(0))
    _check_contents(read)
    with_item = read.filter(pl.col("item_id").is_not_null())
    unique = with_item.unique(maintain_order=True)
    _check_order(unique)
    order = "position" if "position" in columns else "timestamp"
    table = unique.sort("session_id", order, maintain_order=True).with_columns(
        pl.col(signals).cast(pl.Float32)
    )
    kept, dropped = session_filter.apply(table)
    # Sessions in which no row had an item end as too short ones: they have no track at all.
    sessions_read = read["session_id"].n_unique()
    dropped["sessions_too_short"] += sessions_read - table["session_id"].n_unique()
    report = DropReport(
        rows_read=read.height,
        sessions_read=sessions_read,
        rows_without_item=read.height - with_item.height,
        duplicate_rows=with_item.height - unique.height,
        **dropped,
        **_describe_kept(kept, session_filter.skip_threshold),
    )
    if not kept.height:
        raise ValueError(
            f"`log` must have at least one session that satisfies the filter, got none.\n{report}\n"
            "Loosen the filter, or check how the sessions were made."
        )
    return kept, report


def _describe_kept(kept: pl.DataFrame, skip_threshold: float) -> dict[str, Any]:
    """The report's figures of what is left."""
    feedback = kept["feedback"]
    rows = max(kept.height, 1)
    return {
        "rows_kept": kept.height,
        "sessions_kept": kept["session_id"].n_unique(),
        "items_kept": kept["item_id"].n_unique(),
        "share_skipped": int((feedback < skip_threshold).sum()) / rows,
        "share_unknown": int((feedback == 0).sum()) / rows,
    }


def _check_contents(table: pl.DataFrame) -> None:
    """Raise where a row cannot be right, naming its session."""
    if table["session_id"].null_count():
        raise ValueError(
            f"`log` must have a session in every row, got null in {table['session_id'].null_count()} of "
            f"{table.height} rows. Drop these rows, or cut sessions with `sessionise`."
        )
    for column in ("position", "timestamp"):
        if column not in table.columns:
            continue
        unordered = pl.col(column).is_null()
        if table.schema[column].is_float():
            unordered |= ~pl.col(column).is_finite()
        _refuse(
            table, unordered, column, "a finite value", "Drop these rows, or order them by another column."
        )
    # Not `< -1 | > 1`: only a check for what is right refuses NaN, which polars sorts above all numbers.
    for column, cure in (
        ("feedback", "Scale it: -1 is a skip at once, 1 a whole play."),
        ("explicit_feedback", "Scale it: -1 is a dislike, 1 a like, 0 unknown."),
    ):
        if column in table.columns:
            right = pl.col(column).is_between(-1, 1)
            _refuse(table, ~right, column, "a number in [-1, 1]", cure)


def _check_order(table: pl.DataFrame) -> None:
    """Raise where a session's order or its owner is in doubt."""
    if "position" in table.columns:
        shared = pl.struct("session_id", "position").is_duplicated()
        cure = "Its rows differ, so neither can be left out: number them anew."
        _refuse(table, shared, "position", "each value once in a session", cure)
    if "user_id" in table.columns:
        several = pl.col("user_id").n_unique().over("session_id") > 1
        cure = "Make session ids unique over users, as in 'user/session'."
        _refuse(table, several, "user_id", "one value in a session", cure)


def _refuse(table: pl.DataFrame, wrong: pl.Expr, column: str, wanted: str, cure: str) -> None:
    """Raise a ValueError with the first row for which ``wrong`` holds."""
    found = table.filter(wrong).head(1)
    if found.height:
        row = found.row(0, named=True)
        raise ValueError(
            f"`log` must have {wanted} in column {column!r}, got {row[column]!r} in session "
            f"{row['session_id']!r}. {cure}"
        )
