"""Which sessions and items of a log are kept."""

from dataclasses import dataclass

import polars as pl

from skipcl_lightning._checks import check_integer, check_number

__all__ = ["SessionFilter"]

_SHORTEST = 3


@dataclass(frozen=True)
class SessionFilter:
    """Which sessions and items of a log are kept.

    Dropping rare items shortens sessions, and dropping sessions makes items rarer, so both repeat until
    nothing changes. The result is the largest part of the log that satisfies everything at once, whatever
    is dropped first.

    Args:
        min_session_length: Tracks that a session needs, at least 3: one to learn from, one for validation,
            one for test.
        min_item_count: Rows that an item needs, at least 1.
        require_skip: Whether a session needs a skipped track. It always needs a listened one, since there
            is nothing to recommend from skips only.
        skip_threshold: The feedback under which a track counts as skipped, in (-1, 1].

    Raises:
        TypeError: A count is no integer, the threshold no number, or ``require_skip`` no bool.
        ValueError: One is out of range.

    Example:
        >>> SessionFilter(min_session_length=2)
        Traceback (most recent call last):
            ...
        ValueError: `min_session_length` must be at least 3, got 2. ...
    """

    min_session_length: int = _SHORTEST
    min_item_count: int = 1
    require_skip: bool = False
    skip_threshold: float = 0.0

    def __post_init__(self) -> None:
        check_integer(
            "min_session_length",
            self.min_session_length,
            minimum=_SHORTEST,
            cure="One track is to learn from, one for validation, one for test.",
        )
        check_integer("min_item_count", self.min_item_count)
        check_number("skip_threshold", self.skip_threshold, minimum=-1, maximum=1, open_minimum=True)
        if not isinstance(self.require_skip, bool):
            raise TypeError(
                f"`require_skip` must be True or False, got {self.require_skip!r}. "
                "It does not take a number of skips."
            )

    def apply(self, table: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
        """Drop what does not satisfy the settings, until all that is left does.

        Args:
            table: Rows with ``session_id``, ``item_id`` and ``feedback``.

        Returns:
            The rows that are kept, in their order, and how many rows of rare items, rows of dropped
            sessions, and sessions for each reason went, by the names in
            :class:`~skipcl_lightning.data.DropReport`.

        Example:
            >>> table = pl.DataFrame(
            ...     {"session_id": [1, 2, 2, 2], "item_id": [5, 5, 6, 7], "feedback": [1.0] * 4}
            ... )
            >>> SessionFilter().apply(table)[1]["sessions_too_short"]
            1
        """
        dropped = dict.fromkeys(
            [
                "rows_of_rare_items",
                "rows_of_dropped_sessions",
                "sessions_too_short",
                "sessions_without_listened",
                "sessions_without_skip",
            ],
            0,
        )
        while True:
            kept = self._apply_once(table, dropped)
            if kept.height == table.height:
                return kept, dropped
            table = kept

    def _apply_once(self, table: pl.DataFrame, dropped: dict[str, int]) -> pl.DataFrame:
        """Apply every filter once and add what went to the counts."""
        sessions = table["session_id"].n_unique()
        kept = table.filter(pl.len().over("item_id") >= self.min_item_count)
        dropped["rows_of_rare_items"] += table.height - kept.height
        rows = kept.height
        for reason, satisfied in self._session_rules().items():
            kept = kept.filter(satisfied.over("session_id"))
            left = kept["session_id"].n_unique()
            dropped[reason] += sessions - left
            sessions = left
        dropped["rows_of_dropped_sessions"] += rows - kept.height
        return kept

    def _session_rules(self) -> dict[str, pl.Expr]:
        """What a session must satisfy, by the reason for which it goes."""
        skipped = pl.col("feedback") < self.skip_threshold
        rules = {
            "sessions_too_short": pl.len() >= self.min_session_length,
            "sessions_without_listened": (~skipped).any(),
        }
        if self.require_skip:
            rules["sessions_without_skip"] = skipped.any()
        return rules
