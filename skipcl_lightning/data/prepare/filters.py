"""The filter of sessions and items."""

from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning._checks import check_integer, check_number
from skipcl_lightning.batch import is_rejected
from skipcl_lightning.data.prepare.ordering import run_lengths
from skipcl_lightning.data.prepare.parts import Progress, TableParts, no_progress

__all__ = ["SessionFilter"]

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
            The kept rows in their order, and the counts of dropped rows and sessions by the names in
            `DropReport`.

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

    def apply_to_parts(self, parts: TableParts, *, on_progress: Progress = no_progress) -> dict[str, int]:
        """Filter a table in parts, in place.

        Args:
            parts: The rows, each session's together in one part.
            on_progress: Called after each part.

        Returns:
            The counts.

        Examples:
            >>> session = {"session_id": 2, "item_id": [5, 6, 7], "feedback": 1.0}
            >>> parts = TableParts([pl.DataFrame(session)])
            >>> SessionFilter().apply_to_parts(parts)["rows_of_rare_items"]
            0
        """
        dropped = dict.fromkeys(_REASONS, 0)
        for number in count(1):
            rare, before = self._rare_items(parts), sum(dropped.values())
            parts.replace(
                partial(self._apply_once, rare=rare, dropped=dropped),
                step=f"Filtering, round {number}",
                on_progress=on_progress,
            )
            # Without rare items, one pass over the sessions is enough.
            if self.min_item_count == 1 or sum(dropped.values()) == before:
                break
        return dropped

    def _rare_items(self, parts: TableParts) -> pl.Series:
        """Return the items below `min_item_count`."""
        if self.min_item_count == 1:
            return pl.Series([], dtype=pl.Null)
        counts: pl.DataFrame | None = None
        for part in parts:
            added = part.group_by("item_id").agg(pl.len().cast(pl.Int64))
            # Added up part by part, so memory holds one row for each item.
            both = added if counts is None else pl.concat([counts, added])
            counts = both.group_by("item_id").agg(pl.col("len").sum())
        assert counts is not None, "a table has at least one part"  # noqa: S101
        return counts.filter(pl.col("len") < self.min_item_count)["item_id"]

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
        # numpy, like torch and unlike polars, rounds the threshold to float32 first.
        feedback = table["feedback"].to_numpy()
        explicit = table["explicit_feedback"].to_numpy() if "explicit_feedback" in table.columns else None
        starts = (np.cumsum(lengths) - lengths).astype(np.int64)

        def count_in_sessions(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
            # `reduceat` needs a row at every start.
            return np.add.reduceat(mask, starts, dtype=np.int64) if len(starts) else lengths

        rejected = is_rejected(feedback, explicit, self.skip_threshold)
        rules = {
            "sessions_too_short": lengths >= self.min_session_length,
            "sessions_without_listened": count_in_sessions(rejected) < lengths,
        }
        if self.require_skip:
            rules["sessions_without_skip"] = count_in_sessions(rejected) > 0
        return rules
