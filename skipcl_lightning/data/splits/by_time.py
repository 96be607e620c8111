"""The split by time, which trains on nothing later than its test set."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from skipcl_lightning._checks import check_choice, check_number
from skipcl_lightning.data.splits.splits import Rows, SessionBlock, Targets

__all__ = ["SplitByTime"]

_SHORTEST_INPUT = 2
_MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class SplitByTime:
    """Train on plays before one moment, validate on those before a second one, and test on the rest.

    No test target was played before any training item. The filter of sessions and items uses the whole log,
    though. A session that crosses a moment is trained up to it; its later items are targets, with all of the
    session before them as input. Training sessions of fewer than two items have nothing to predict and are
    left out.

    Args:
        validation_from: The start of validation: a `datetime`, an ISO 8601 text, or seconds since 1970 (or
            the log's own seconds, if it counts from another moment). Without a time zone it is UTC.
        test_from: The start of test, after `validation_from`.
        targets: `last`: the last item of each session within the period, unless it is the session's first;
            `every`: every such item.

    Raises:
        TypeError: A moment is neither a time nor a number, or `targets` is no string.
        ValueError: A text is no time, `test_from` is not after `validation_from`, or `targets` is unknown.

    Examples:
        >>> split = SplitByTime(validation_from=20, test_from=30)
        >>> seconds = np.array([5, 10, 22, 25, 31])
        >>> cut = split.cut(SessionBlock(np.array([5]), first_row=0, total=1, times=seconds * 1_000_000))
        >>> {name: ends.tolist() for name, (_, ends) in cut.items()}
        {'train': [2], 'validation': [3], 'test': [4]}
    """

    validation_from: datetime | str | float
    test_from: datetime | str | float
    targets: Targets = "last"

    min_session_length: ClassVar[int] = 2
    needs_time: ClassVar[bool] = True
    caution: ClassVar[str] = (
        "A split by time is learned from nothing later, but which sessions and items are kept at all was "
        "told from the whole log."
    )

    def __post_init__(self) -> None:
        bounds = self._bounds
        if not bounds[0] < bounds[1]:
            raise ValueError(
                f"`test_from` must be after `validation_from`, got {self.test_from!r} and "
                f"{self.validation_from!r}. Exchange them, or leave time between them."
            )
        check_choice("targets", self.targets, get_args(Targets))

    def cut(self, block: SessionBlock) -> Mapping[str, Rows]:
        """Return the parts; see `Split`."""
        assert block.times is not None, "a split by time is given times"  # noqa: S101
        lengths = block.lengths
        owner = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(owner)) - block.starts[owner]
        # If the log has another order than time, an item after a late one counts as late.
        period = np.searchsorted(np.array(self._bounds), block.times, side="right")
        latest = np.maximum.accumulate(period + owner * 3) - owner * 3
        seen = np.bincount(owner[latest == 0], minlength=len(lengths))
        learned = seen >= _SHORTEST_INPUT
        return {
            "train": (block.rows[learned], seen[learned]),
            "validation": self._ask(block, owner, place, latest == 1),
            "test": self._ask(block, owner, place, latest == 2),
        }

    def _ask(
        self,
        block: SessionBlock,
        owner: NDArray[np.int64],
        place: NDArray[np.int64],
        asked: NDArray[np.bool_],
    ) -> Rows:
        chosen = np.flatnonzero(asked & (place > 0))
        if self.targets == "last":
            # The last target of each session.
            chosen = chosen[np.append(np.diff(owner[chosen]) != 0, True)[: len(chosen)]]
        return block.first_row + owner[chosen], place[chosen]

    @property
    def _bounds(self) -> tuple[int, int]:
        """The two moments in microseconds."""
        return (
            _to_microseconds("validation_from", self.validation_from),
            _to_microseconds("test_from", self.test_from),
        )


def _to_microseconds(name: str, moment: datetime | str | float) -> int:
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError as error:
            raise ValueError(
                f"`{name}` must be a time as in '2019-07-01T00:00:00', got {moment!r}. Write it in ISO 8601."
            ) from error
    if isinstance(moment, datetime):
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        # Not `timestamp()`, because a float cannot hold microseconds.
        since = aware - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * 86_400 + since.seconds) * _MICROSECONDS + since.microseconds
    check_number(name, moment)
    return round(moment * _MICROSECONDS)
