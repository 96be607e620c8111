"""The filter of sessions and items, and the report of what was read, dropped and kept."""

from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning._checks import check_integer, check_number
from skipcl_lightning.batch import PADDING_INDEX, is_rejected
from skipcl_lightning.data.prepare.parts import Progress, TableParts, no_progress, run_lengths, sum_counts
from skipcl_lightning.data.vocabulary import ItemVocabulary

__all__ = ["DropReport", "FeedbackWarning", "SessionFilter", "find_rejected", "warn_without_sign"]

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
        if not isinstance(self.require_skip, bool):
            raise TypeError(
                f"`require_skip` must be True or False, got {self.require_skip!r}. "
                "It does not take a number of skips."
            )

    def apply(self, table: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
        """Drop what does not satisfy the settings, until everything does.

        Args:
            table: Rows with `session_id`, `item_id` and `feedback`, each session's together.

        Returns:
            The kept rows in their order, and the counts of drops by the names in `DropReport`.

        Examples:
            >>> table = pl.DataFrame(
            ...     {"session_id": [1, 2, 2, 2], "item_id": [5, 5, 6, 7], "feedback": [1.0] * 4}
            ... )
            >>> SessionFilter().apply(table)[1]["sessions_too_short"]
            1
        """
        parts = TableParts([table])
        dropped = self.apply_to_parts(parts)
        (kept,) = parts
        return kept, dropped

    def apply_to_parts(
        self, parts: TableParts, *, known: ItemVocabulary | None = None, on_progress: Progress = no_progress
    ) -> dict[str, int]:
        """Filter a table in parts of whole sessions, in place, and return the counts of `apply`.

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
        starts = (np.cumsum(lengths) - lengths).astype(np.int64)

        def count_in_sessions(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
            # `reduceat` needs a row at every start.
            return np.add.reduceat(mask, starts, dtype=np.int64) if len(starts) else lengths

        rejected = find_rejected(table, self.skip_threshold)
        rules = {
            "sessions_too_short": lengths >= self.min_session_length,
            "sessions_without_listened": count_in_sessions(rejected) < lengths,
        }
        if self.require_skip:
            rules["sessions_without_skip"] = count_in_sessions(rejected) > 0
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


def warn_without_sign(lowest: float, highest: float, skip_threshold: float) -> None:
    """Warn if feedback varies within [0, 1], like a flag or a share, so nothing is a skip."""
    if max(0, skip_threshold) <= lowest < highest:
        from lightning.pytorch.utilities import rank_zero_warn  # slow to import, and seldom needed

        rank_zero_warn(
            f"The column 'feedback' lies in [{lowest:g}, {highest:g}], so it has no skip: "
            f"only feedback below {skip_threshold:g} is one. Map a flag with `read_table(..., skipped=...)`, "
            "played time with `played=...`, and a share of listening x with `2 * x - 1`.",
            category=FeedbackWarning,
        )
