"""From a canonical table to checked, sorted and filtered sessions, and the report of what was dropped."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning._checks import check_flag, check_integer, check_number
from skipcl_lightning.batch import PADDING_INDEX, is_rejected
from skipcl_lightning.data.canonical_table import (
    Progress,
    Table,
    TableParts,
    arrange_parts,
    check_log_columns,
    count_missing,
    drop_copies,
    drop_repeated,
    in_listening_order,
    no_progress,
    order_rows,
    read_chunks,
    refuse_compact_dates,
    run_lengths,
    sum_counts,
    to_frame,
)
from skipcl_lightning.data.prepare.inputs import NewItems
from skipcl_lightning.data.prepare.sessions import label_by_next_play, sessionise
from skipcl_lightning.data.vocabulary import ItemVocabulary

__all__ = [
    "DropReport",
    "FeedbackWarning",
    "HistoryRules",
    "SessionFilter",
    "find_rejected",
    "prepare_parts",
    "prepare_sessions",
]

_REASONS = (
    "rows_of_rare_items",
    "rows_of_dropped_sessions",
    "sessions_too_short",
    "sessions_without_listened",
    "sessions_without_skip",
)


@dataclass(frozen=True)
class SessionFilter:
    """The sessions and items of a log that are kept.

    Dropping rare items shortens sessions, and dropping sessions makes items rarer, so both repeat until
    nothing changes. The result is the largest part of the log that satisfies all settings; the order of the
    drops has no effect.

    Args:
        min_session_length: Items that a session needs, at least 2; `LeaveOneOut` needs 3: one for training,
            one for validation and one for test.
        min_item_count: Rows that an item needs, at least 1.
        require_skip: Whether a session needs a rejected item (skipped or disliked, and not liked). It always
            needs one that was not rejected.
        skip_threshold: Feedback below it is a skip, in (-1, 1].

    Raises:
        TypeError: A count is no integer, the threshold no number, or `require_skip` no bool.
        ValueError: One is out of range.

    Examples:
        >>> SessionFilter(min_session_length=1)
        Traceback (most recent call last):
            ...
        ValueError: `min_session_length` must be at least 2, got 1. ...
    """

    min_session_length: int = 3
    min_item_count: int = 1
    require_skip: bool = False
    skip_threshold: float = 0.0

    def __post_init__(self) -> None:
        check_integer(
            "min_session_length",
            self.min_session_length,
            minimum=2,
            cure="One track alone says nothing of what comes next.",
        )
        check_integer("min_item_count", self.min_item_count)
        check_number("skip_threshold", self.skip_threshold, minimum=-1, maximum=1, open_minimum=True)
        check_flag("require_skip", self.require_skip)

    def apply_to_parts(
        self, parts: TableParts, *, known: ItemVocabulary | None = None, on_progress: Progress = no_progress
    ) -> dict[str, int]:
        """Filter a table in parts of whole sessions, in place; return counts of drops as in `DropReport`.

        Items of `known` are never rare, since their model learned them elsewhere.

        Examples:
            >>> session = {"session_id": 2, "item_id": [5, 6, 7], "feedback": 1.0}
            >>> parts = TableParts([pl.DataFrame(session)])
            >>> SessionFilter().apply_to_parts(parts)["rows_of_rare_items"]
            0
        """
        dropped = dict.fromkeys(_REASONS, 0)
        for number in count(1):
            rare, before = self._rare_items(parts, known), sum(dropped.values())
            parts.replace(
                partial(self._apply_once, rare=rare, dropped=dropped),
                step=f"Filtering, round {number}",
                on_progress=on_progress,
            )
            # Without rare items, one pass over the sessions is enough.
            if self.min_item_count == 1 or sum(dropped.values()) == before:
                break
        return dropped

    def _rare_items(self, parts: TableParts, known: ItemVocabulary | None) -> pl.Series:
        """Return the items below `min_item_count` that are not known."""
        if self.min_item_count == 1:
            return pl.Series([], dtype=pl.Null)
        counts = sum_counts(
            part.select("item_id", pl.lit(1, dtype=pl.Int64).alias("count")) for part in parts
        )
        rare = counts.filter(pl.col("count") < self.min_item_count)["item_id"]
        if known is None:
            return rare
        return rare.filter(pl.Series(known.encode(rare, unknown="ignore") == PADDING_INDEX))

    def _apply_once(self, part: pl.DataFrame, rare: pl.Series, dropped: dict[str, int]) -> pl.DataFrame:
        """Apply every filter once, and add the drops to the counts."""
        sessions = len(run_lengths(part["session_id"]))
        kept = part.filter(~pl.col("item_id").is_in(rare.implode())) if len(rare) else part
        dropped["rows_of_rare_items"] += part.height - kept.height
        lengths = run_lengths(kept["session_id"])
        # Sessions without a row left count as too short.
        dropped["sessions_too_short"] += sessions - len(lengths)
        satisfied = np.ones(len(lengths), dtype=np.bool_)
        for reason, right in self._session_rules(kept, lengths).items():
            dropped[reason] += int((satisfied & ~right).sum())
            satisfied &= right
        if not satisfied.all():
            rows = kept.height
            kept = kept.filter(pl.Series(np.repeat(satisfied, lengths)))
            dropped["rows_of_dropped_sessions"] += rows - kept.height
        return part if kept.height == part.height else kept

    def _session_rules(self, table: pl.DataFrame, lengths: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
        """[sessions] whether each satisfies a rule, by the name of its count."""
        owner = np.repeat(np.arange(len(lengths)), lengths)
        rejected = find_rejected(table, self.skip_threshold)
        num_rejected = np.bincount(owner[rejected], minlength=len(lengths))
        rules = {
            "sessions_too_short": lengths >= self.min_session_length,
            "sessions_without_listened": num_rejected < lengths,
        }
        if self.require_skip:
            rules["sessions_without_skip"] = num_rejected > 0
        return rules


def find_rejected(table: pl.DataFrame, skip_threshold: float) -> NDArray[np.bool_]:
    """[rows] bool, the rejected items."""
    # numpy, like torch and unlike polars, rounds the threshold to float32 first.
    explicit = table["explicit_feedback"].to_numpy() if "explicit_feedback" in table.columns else None
    rejected: NDArray[np.bool_] = is_rejected(table["feedback"].to_numpy(), explicit, skip_threshold)
    return rejected


@dataclass(frozen=True)
class DropReport:
    """Counts of the rows and sessions of a log, read, dropped and kept.

    `rows_read` equals `rows_kept` plus the five counts of dropped rows; `sessions_read` equals
    `sessions_kept` plus the three counts of dropped sessions. A row or session with several reasons counts
    under the first: rows without an item, duplicates, unknown items, rare items, short sessions, sessions
    without a listened item, sessions without a skip.

    Args:
        rows_read: Rows of the log.
        sessions_read: Sessions of the log.
        rows_without_item: Rows whose item is null.
        duplicate_rows: Rows that repeat another in every canonical column.
        rows_of_rare_items: Rows of items below `min_item_count`.
        rows_of_dropped_sessions: Rows of dropped sessions.
        sessions_too_short: Sessions below `min_session_length`, perhaps after other drops.
        sessions_without_listened: Sessions with only rejected items.
        sessions_without_skip: Sessions without a rejected item, if `require_skip`.
        rows_kept: Rows left.
        sessions_kept: Sessions left.
        items_kept: Different items left.
        share_skipped: The share of skipped rows among the kept ones, in [0, 1]; 0 without any.
        share_unknown: The share of kept rows with feedback 0, in [0, 1].
        rows_of_unknown_items: Rows of items that a given vocabulary does not have.
        unknown_items: Different items of these rows.

    Examples:
        >>> print(DropReport(
        ...     rows_read=12, sessions_read=3, rows_without_item=1, duplicate_rows=0, rows_of_rare_items=0,
        ...     rows_of_dropped_sessions=1, sessions_too_short=1, sessions_without_listened=0,
        ...     sessions_without_skip=0, rows_kept=10, sessions_kept=2, items_kept=7, share_skipped=0.4,
        ...     share_unknown=0.0,
        ... ))
        Read 12 rows of 3 sessions.
        Dropped 1 row without an item, 1 row of dropped sessions; 1 session too short.
        Kept 10 rows of 2 sessions and 7 items: 40.0 % skipped, 0.0 % unknown.
    """

    rows_read: int
    sessions_read: int
    rows_without_item: int
    duplicate_rows: int
    rows_of_rare_items: int
    rows_of_dropped_sessions: int
    sessions_too_short: int
    sessions_without_listened: int
    sessions_without_skip: int
    rows_kept: int
    sessions_kept: int
    items_kept: int
    share_skipped: float
    share_unknown: float
    rows_of_unknown_items: int = 0
    unknown_items: int = 0

    def __str__(self) -> str:
        return (
            f"Read {_count(self.rows_read, 'row')} of {_count(self.sessions_read, 'session')}.\n"
            f"Dropped {self._describe_drops()}.\n"
            f"Kept {_count(self.rows_kept, 'row')} of {_count(self.sessions_kept, 'session')} and "
            f"{_count(self.items_kept, 'item')}: {self.share_skipped:.1%} skipped, "
            f"{self.share_unknown:.1%} unknown.".replace("%", " %")
        )

    def _describe_drops(self) -> str:
        rows = {
            "without an item": self.rows_without_item,
            "repeated": self.duplicate_rows,
            f"of {_count(self.unknown_items, 'unknown item')}": self.rows_of_unknown_items,
            "of rare items": self.rows_of_rare_items,
            "of dropped sessions": self.rows_of_dropped_sessions,
        }
        sessions = {
            "too short": self.sessions_too_short,
            "without a listened track": self.sessions_without_listened,
            "without a skip": self.sessions_without_skip,
        }
        parts = [_list(rows, "row"), _list(sessions, "session")]
        return "; ".join(part for part in parts if part) or "nothing"


def _list(counts: dict[str, int], noun: str) -> str:
    return ", ".join(f"{_count(count, noun)} {reason}" for reason, count in counts.items() if count)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class FeedbackWarning(UserWarning):
    """The feedback of a log has no skip, although it seems to record skips."""


def _warn_without_sign(lowest: float, highest: float, skip_threshold: float) -> None:
    """Warn if feedback varies within [0, 1], like a flag or a share, so nothing is a skip."""
    if max(0, skip_threshold) <= lowest < highest:
        from lightning.pytorch.utilities import rank_zero_warn  # slow to import, and seldom needed

        rank_zero_warn(
            f"The column 'feedback' lies in [{lowest:g}, {highest:g}], so it has no skip: "
            f"only feedback below {skip_threshold:g} is one. Map a flag with `read_table(..., skipped=...)`, "
            "played time with `played=...`, and a share of listening x with `2 * x - 1`.",
            category=FeedbackWarning,
        )


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
    _warn_without_sign(lowest, highest, session_filter.skip_threshold)
    return parts, report


def _read_checked(
    log: pl.LazyFrame | pl.DataFrame, columns: list[str], rows_in_memory: int | None, on_progress: Progress
) -> Iterator[pl.DataFrame]:
    """Return the canonical columns with checked contents and without nulls in the feedback."""
    signals = [name for name in ("feedback", "explicit_feedback") if name in columns]
    rows = 0
    for chunk in read_chunks(log.lazy().select(columns), rows_in_memory):
        if not rows and "timestamp" in columns:
            refuse_compact_dates("log", chunk["timestamp"])
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
    if owner in table.columns and (missing := count_missing(table[owner])):
        raise ValueError(
            f"`log` must have a {owner.removesuffix('_id')} in every row, got null or blank in at least "
            f"{missing}. {cure}"
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
