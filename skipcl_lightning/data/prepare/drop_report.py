"""The report of what the preparation of a log read, dropped and kept."""

from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_warn

__all__ = ["DropReport", "FeedbackWarning", "warn_without_sign"]


@dataclass(frozen=True)
class DropReport:
    """Counts of the rows and sessions of a log, read, dropped and kept.

    `rows_read` equals `rows_kept` plus the four counts of dropped rows; `sessions_read` equals
    `sessions_kept` plus the three counts of dropped sessions. A row or session with several reasons counts
    under the first: rows without an item, duplicates, rare items, short sessions, sessions without a listened
    item, sessions without a skip.

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


def warn_without_sign(lowest: float, highest: float, skip_threshold: float = 0.0) -> None:
    """Warn if feedback varies within [0, 1], like a flag or a share, so nothing is a skip.

    Args:
        lowest: The lowest feedback of a log, in [-1, 1].
        highest: The highest.
        skip_threshold: Feedback below it is a skip.

    Examples:
        >>> warn_without_sign(-1.0, 1.0)
        >>> warn_without_sign(1.0, 1.0)
    """
    if max(0, skip_threshold) <= lowest < highest:
        rank_zero_warn(
            f"The column 'feedback' lies in [{lowest:g}, {highest:g}], so it has no skip: "
            f"only feedback below {skip_threshold:g} is one. Map a flag with `read_table(..., skipped=...)`, "
            "played time with `played=...`, and a share of listening x with `2 * x - 1`.",
            category=FeedbackWarning,
        )
