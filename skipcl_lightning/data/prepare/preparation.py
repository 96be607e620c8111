"""From a canonical table to checked, sorted and filtered sessions."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from skipcl_lightning._checks import check_number
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.data.prepare.filters import DropReport, SessionFilter, warn_without_sign
from skipcl_lightning.data.prepare.given_vocabulary import NewItems
from skipcl_lightning.data.prepare.parts import (
    Progress,
    TableParts,
    arrange_parts,
    drop_copies,
    drop_repeated,
    in_listening_order,
    no_progress,
    order_rows,
    read_chunks,
    run_lengths,
)
from skipcl_lightning.data.prepare.sessions import label_by_next_play, sessionise
from skipcl_lightning.data.schema import Table, check_log_columns, to_frame
from skipcl_lightning.data.vocabulary import ItemVocabulary

__all__ = ["HistoryRules", "prepare_parts", "prepare_sessions"]

_MOST_SECONDS = 10**11


@dataclass(frozen=True)
class HistoryRules:
    """The rules that turn a listening history into sessions: `sessionise` and `label_by_next_play`.

    `skip_seconds` is None if the log has feedback; without either, all feedback is unknown.
    """

    gap_minutes: float
    skip_seconds: float | None = None

    def __post_init__(self) -> None:
        check_number("gap_minutes", self.gap_minutes, minimum=0, open_minimum=True)
        if self.skip_seconds is not None:
            check_number("skip_seconds", self.skip_seconds, minimum=0, open_minimum=True)

    def apply(self, plays: pl.DataFrame) -> pl.DataFrame:
        """Return the plays of whole users, sorted by user and time, with `session_id` and `feedback`."""
        labelled = plays.lazy()
        if self.skip_seconds is not None:
            labelled = label_by_next_play(labelled, skip_seconds=self.skip_seconds)
        elif "feedback" not in plays.columns:
            labelled = labelled.with_columns(pl.lit(0.0, dtype=pl.Float32).alias("feedback"))
        return sessionise(labelled, gap_minutes=self.gap_minutes).collect()


def prepare_sessions(
    log: Table, session_filter: SessionFilter | None = None
) -> tuple[pl.DataFrame, DropReport]:
    """Read a log, check its contents once, sort it and keep the sessions that satisfy the filter.

    Rows may come in any order. They are sorted by session and, within one, by `position` or else by
    `timestamp`; equal times keep the order of the rows. Rows without an item and repeated rows are dropped.
    Null feedback becomes 0, unknown.

    Everything is in memory; `prepare_store` does the same in parts.

    Args:
        log: A canonical table.
        session_filter: The filter; None for the default.

    Returns:
        The kept rows with the canonical columns, and the report of what was dropped.

    Raises:
        TypeError: `log` is no table.
        ValueError: A column is missing or of another type, a file cannot be read, a session, position or
            timestamp is null, feedback is NaN or outside [-1, 1], two rows of a session share a position, a
            session belongs to two users, or nothing is left.

    Examples:
        >>> log = pl.DataFrame({
        ...     "session_id": ["s"] * 4, "item_id": ["b", "a", None, "c"],
        ...     "feedback": [-1.0, 1.0, 1.0, 0.5], "position": [2, 1, 3, 4],
        ... })
        >>> table, report = prepare_sessions(log)
        >>> table["item_id"].to_list(), report.rows_without_item
        (['a', 'b', 'c'], 1)
    """
    parts, report = prepare_parts(to_frame("log", log), session_filter or SessionFilter())
    (table,) = parts
    return table, report


def prepare_parts(
    log: pl.LazyFrame | pl.DataFrame,
    session_filter: SessionFilter,
    *,
    history: HistoryRules | None = None,
    known: ItemVocabulary | None = None,
    new_items: NewItems | None = None,
    context: Iterable[str] = (),
    rows_in_memory: int | None = None,
    folder: Path | None = None,
    on_progress: Progress = no_progress,
) -> tuple[TableParts, DropReport]:
    """Prepare a log like `prepare_sessions`, about `rows_in_memory` rows at a time (None for all).

    Unless `new_items` is `append`, rows of items outside `known` are dropped, after skips are derived from
    the next play and before the filter, which counts what a model sees. Parts are kept in `folder`. The
    result does not depend on `rows_in_memory`: sessions are ordered by their ids, those of a history by user
    and time. The columns that `context` names are kept too.
    """
    columns = check_log_columns(log, history=history is not None)
    columns += [column for column in context if column not in columns]
    if history is not None and history.skip_seconds is not None and "feedback" in columns:
        raise ValueError(
            f"`skip_seconds` must be None where the log has feedback of its own, got {history.skip_seconds}. "
            "Leave it out, or drop the column."
        )
    key = "session_id" if history is None else "user_id"
    chunks = _read_checked(log, columns, rows_in_memory, on_progress)
    parts = arrange_parts(chunks, key if key in columns else None, rows_in_memory, folder)
    among = None if new_items == "append" else known
    dropped: Counter[str] = Counter()
    unknown: list[pl.Series] = []

    def clean(part: pl.DataFrame) -> pl.DataFrame:
        cleaned, counts, foreign = _clean_part(part, history, among)
        dropped.update(counts)
        # One row for each item, so memory does not grow with the log.
        unknown.append(pl.concat([*unknown, foreign]).unique())
        del unknown[:-1]
        return cleaned

    parts.replace(clean, step="Sorting sessions", on_progress=on_progress)
    if among is not None:
        _check_any_known(dropped, unknown[0], among)
    filtered = session_filter.apply_to_parts(parts, known=known, on_progress=on_progress)
    # Sessions without any item count as too short.
    filtered["sessions_too_short"] += dropped.pop("sessions_without_item")
    kept = _describe_kept(parts, session_filter.skip_threshold)
    lowest, highest = kept.pop("feedback_range")
    report = DropReport(**dropped, **filtered, **kept, unknown_items=len(unknown[0]))
    if not report.rows_kept:
        raise ValueError(
            f"`log` must have at least one session that satisfies the filter, got none.\n{report}\n"
            "Loosen the filter, or check how the sessions were made."
        )
    warn_without_sign(lowest, highest, session_filter.skip_threshold)
    return parts, report


def _read_checked(
    log: pl.LazyFrame | pl.DataFrame, columns: list[str], rows_in_memory: int | None, on_progress: Progress
) -> Iterator[pl.DataFrame]:
    """Return the canonical columns with checked contents and without nulls in the feedback."""
    signals = [name for name in ("feedback", "explicit_feedback") if name in columns]
    rows = 0
    for chunk in read_chunks(log.lazy().select(columns), rows_in_memory):
        rows += chunk.height
        on_progress("Reading rows", rows, None)
        checked = chunk.with_columns(pl.col(signals).fill_null(0))
        _check_contents(checked)
        yield checked.with_columns(pl.col(signals).cast(pl.Float32))


def _clean_part(
    part: pl.DataFrame, history: HistoryRules | None, known: ItemVocabulary | None
) -> tuple[pl.DataFrame, dict[str, int], pl.Series]:
    """Return whole sessions in their order, the counts of dropped rows, and the unknown items."""
    order = "position" if "position" in part.columns else "timestamp"
    part = in_listening_order(part)
    if history is None:
        read = order_rows(part, "session_id", order)
        with_item = read.filter(pl.col("item_id").is_not_null())
        kept = drop_repeated(with_item, "session_id", order).drop("copy_key", strict=False)
        repeated = with_item.height - kept.height
        _check_order(kept)
    else:
        # Before sessions are cut, because a repeated row would seem to end its own play at once.
        read = history.apply(drop_copies(part).drop("copy_key", strict=False))
        kept = read.filter(pl.col("item_id").is_not_null())
        repeated = part.height - read.height
    sessions = len(run_lengths(read["session_id"]))
    with_item, unknown = kept, kept["item_id"].clear()
    if known is not None:
        is_known = pl.Series(known.encode(kept["item_id"], unknown="ignore") != PADDING_INDEX)
        kept, unknown = kept.filter(is_known), kept["item_id"].filter(~is_known).unique()
    counts = {
        "rows_read": part.height,
        "sessions_read": sessions,
        "rows_without_item": part.height - with_item.height - repeated,
        "duplicate_rows": repeated,
        "rows_of_unknown_items": with_item.height - kept.height,
        "sessions_without_item": sessions - len(run_lengths(kept["session_id"])),
    }
    return kept, counts, unknown


def _check_any_known(dropped: Mapping[str, int], unknown: pl.Series, known: ItemVocabulary) -> None:
    """Raise if all items of a log are unknown."""
    without = dropped["rows_without_item"] + dropped["duplicate_rows"] + dropped["rows_of_unknown_items"]
    if len(unknown) and without == dropped["rows_read"]:
        raise ValueError(
            f"`vocabulary` must have an item of the log, got none of {len(unknown):,}, such as "
            f"{unknown.min()!r}: it has {known.ids[0]!r} and others. Check that both name items in the same "
            "way, or append them with `new_items='append'`."
        )


def _describe_kept(parts: TableParts, skip_threshold: float) -> dict[str, Any]:
    """Return the report's figures of the kept rows, and the lowest and highest feedback."""
    rows = sessions = skipped = unknown = 0
    lowest, highest = 1.0, -1.0
    items: pl.Series | None = None
    for part in parts:
        rows += part.height
        sessions += len(run_lengths(part["session_id"]))
        skipped += int((part["feedback"] < skip_threshold).sum())
        unknown += int((part["feedback"] == 0).sum())
        if part.height:
            low, high = part.select(low=pl.col("feedback").min(), high=pl.col("feedback").max()).row(0)
            lowest, highest = min(lowest, low), max(highest, high)
        items = part["item_id"].unique() if items is None else items.append(part["item_id"]).unique()
    return {
        "rows_kept": rows,
        "sessions_kept": sessions,
        "items_kept": 0 if items is None else len(items),
        "share_skipped": skipped / max(rows, 1),
        "share_unknown": unknown / max(rows, 1),
        "feedback_range": (lowest, highest),
    }


def _check_contents(table: pl.DataFrame) -> None:
    """Raise if a row is wrong, and name its session."""
    owner, cure = (
        ("session_id", "Drop these rows, or cut sessions with `sessionise`.")
        if "session_id" in table.columns
        else ("user_id", "Drop these rows: nobody is known to have listened.")
    )
    if owner in table.columns and table[owner].null_count():
        raise ValueError(
            f"`log` must have a {owner.removesuffix('_id')} in every row, got null in at least "
            f"{table[owner].null_count()}. {cure}"
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
    if "timestamp" in table.columns and table.schema["timestamp"].is_numeric():
        # Later than any real time; in microseconds it would not fit into 64 bits.
        late = ~pl.col("timestamp").is_between(-_MOST_SECONDS, _MOST_SECONDS)
        cure = "Divide it by a thousand, a million or a billion, if it is in smaller units."
        _refuse(table, late, "timestamp", "a number of seconds", cure)
    # Not `< -1 | > 1`, which would accept NaN.
    for column, cure in (
        ("feedback", "Scale it: -1 is a skip at once, 1 a whole play."),
        ("explicit_feedback", "Scale it: -1 is a dislike, 1 a like, 0 unknown."),
    ):
        if column in table.columns:
            right = pl.col(column).is_between(-1, 1)
            _refuse(table, ~right, column, "a number in [-1, 1]", cure)


def _check_order(table: pl.DataFrame) -> None:
    """Raise if the order of a sorted table, or the owner of a session, is ambiguous."""
    together = pl.col("session_id") == pl.col("session_id").shift(1)
    if "position" in table.columns:
        shared = together & (pl.col("position") == pl.col("position").shift(1))
        cure = "Its rows differ, so neither can be left out: number them anew."
        _refuse(table, shared, "position", "each value once in a session", cure)
    if "user_id" in table.columns:
        several = together & pl.col("user_id").ne_missing(pl.col("user_id").shift(1))
        cure = "Make session ids unique over users, as in 'user/session'."
        _refuse(table, several, "user_id", "one value in a session", cure)


def _refuse(table: pl.DataFrame, wrong: pl.Expr, column: str, wanted: str, cure: str) -> None:
    """Raise a ValueError that shows the first row for which `wrong` holds."""
    found = table.filter(wrong).head(1)
    if found.height:
        row = found.row(0, named=True)
        owner = next((name for name in ("session_id", "user_id") if name in row), None)
        where = "" if owner is None else f" in {owner.removesuffix('_id')} {row[owner]!r}"
        raise ValueError(f"`log` must have {wanted} in column {column!r}, got {row[column]!r}{where}. {cure}")
