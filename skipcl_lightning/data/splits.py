"""Splits: training sessions and held-out targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from skipcl_lightning._checks import check_choice, check_integer, check_number
from skipcl_lightning.data.canonical_table import count_within
from skipcl_lightning.data.store.session_store import SessionStore, SessionView

__all__ = [
    "LeaveOneOut",
    "Rows",
    "SessionBlock",
    "Split",
    "SplitBySession",
    "SplitByTime",
    "Targets",
    "check_split",
    "leave_one_out",
    "shuffled_rows",
]

Targets = Literal["last", "every"]
Rows = tuple[NDArray[np.int64], NDArray[np.int64]]

_HELD_OUT = 2
_SHORTEST_INPUT = 2
_MICROSECONDS = 1_000_000
# Makes these draws independent of others with the same seed.
_PURPOSE = 2


@dataclass(frozen=True, eq=False)
class SessionBlock:
    """Some consecutive sessions of a log, with what a split needs to know.

    Args:
        lengths: [n] int64, the number of items of each.
        first_row: The number of the first session in the log.
        total: The number of sessions of the log.
        times: [items] int64, the time of each play in microseconds; None without times.
    """

    lengths: NDArray[np.int64]
    first_row: int
    total: int
    times: NDArray[np.int64] | None = None

    @property
    def starts(self) -> NDArray[np.int64]:
        """[n] int64: the position of the first item of each."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def rows(self) -> NDArray[np.int64]:
        """[n] int64: their numbers in the log."""
        return self.first_row + np.arange(len(self.lengths))


class Split(Protocol):
    """Protocol of a way to hold out targets."""

    min_session_length: ClassVar[int]
    needs_time: ClassVar[bool]
    # How its figures can mislead.
    caution: ClassVar[str]

    def cut(self, block: SessionBlock) -> Mapping[str, Rows]:
        """Return the input and the target of each split.

        Args:
            block: n sessions.

        Returns:
            By `train`, `validation` and `test`: session numbers, and how many items of each are input. For
            the latter two, the next item is the target. Each session is in `train` at most once.
        """
        ...


@dataclass(frozen=True)
class LeaveOneOut:
    """Hold out each session's last item for test and the one before it for validation.

    Of a session of n items, `train` sees the first n - 2; `validation` the same, with the next item as
    target; `test` the first n - 1, with the last as target. This is the papers' protocol. It leaks the
    future: popularity that only came after a test item may have been learned, so its figures tend to be
    higher than those of a split by time. Compare them only with figures of the same protocol.

    Reference:
        Seshadri, Shashaani, Knees, "Enhancing Sequential Music Recommendation with Negative Feedback-informed
        Contrastive Learning", RecSys 2024, arXiv 2409.07367. On the leak: Ji, Sun, Zhang, Li, "A Critical
        Study on Data Leakage in Recommender System Offline Evaluation", TOIS 41(3), 2023, doi
        10.1145/3569930.

    Examples:
        >>> cut = LeaveOneOut().cut(SessionBlock(np.array([5]), first_row=7, total=8))
        >>> {name: (int(rows[0]), int(ends[0])) for name, (rows, ends) in cut.items()}
        {'train': (7, 3), 'validation': (7, 3), 'test': (7, 4)}
    """

    min_session_length: ClassVar[int] = 3
    needs_time: ClassVar[bool] = False
    caution: ClassVar[str] = (
        "Leave-one-out leaks the future: popularity that came after a test track may have been learned. "
        "Compare its figures with those of the same protocol only."
    )

    def cut(self, block: SessionBlock) -> Mapping[str, Rows]:
        """Return the parts; see `Split`."""
        rows, ends = block.rows, block.lengths - _HELD_OUT
        return {"train": (rows, ends), "validation": (rows, ends), "test": (rows, ends + 1)}


@dataclass(frozen=True)
class SplitBySession:
    """Hold out whole sessions, drawn at random.

    No item of a test session is in training. Sessions of the same time are in both sets, so popularity that
    came later still leaks, but not what the same session did later.

    Args:
        validation_share: The share of validation sessions, in [0, 1].
        test_share: The share of test sessions, in [0, 1]; the sum is at most 1. Only data with a given
            vocabulary may have an empty set: `SplitBySession(0, 1)` holds out a whole log, for a model that
            was trained on an earlier one.
        targets: `last`: the last item of each held-out session; `every`: every item but the first, each after
            the items before it. The targets of one session then depend on each other.
        seed: 0 or more.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: One is out of range.

    Examples:
        >>> split = SplitBySession(validation_share=0.2, test_share=0.2, targets="every")
        >>> cut = split.cut(SessionBlock(np.full(10, 3), first_row=0, total=10))
        >>> {name: len(rows) for name, (rows, _) in cut.items()}
        {'train': 6, 'validation': 4, 'test': 4}
    """

    validation_share: float = 0.1
    test_share: float = 0.1
    targets: Targets = "last"
    seed: int = 0

    min_session_length: ClassVar[int] = 2
    needs_time: ClassVar[bool] = False
    caution: ClassVar[str] = (
        "A split by session leaks the future: sessions that came after a test session may have been learned. "
        "What is asked of a new day needs a split by time."
    )

    def __post_init__(self) -> None:
        for name in ("validation_share", "test_share"):
            check_number(name, getattr(self, name), minimum=0, maximum=1)
        check_number("validation_share + test_share", self.validation_share + self.test_share, maximum=1)
        check_choice("targets", self.targets, get_args(Targets))
        check_integer("seed", self.seed, minimum=0)

    def cut(self, block: SessionBlock) -> Mapping[str, Rows]:
        """Return the parts; see `Split`."""
        place = shuffled_rows(block.rows, block.total, seed=(_PURPOSE, self.seed))
        validation = round(block.total * self.validation_share)
        held_out = validation + round(block.total * self.test_share)
        seen = place >= held_out
        return {
            "train": (block.rows[seen], block.lengths[seen]),
            "validation": self._ask(block, place < validation),
            "test": self._ask(block, (place >= validation) & ~seen),
        }

    def _ask(self, block: SessionBlock, chosen: NDArray[np.bool_]) -> Rows:
        rows, most = block.rows[chosen], block.lengths[chosen] - 1
        if self.targets == "last":
            return rows, most
        # 1, 2, … up to each session's length minus one.
        return np.repeat(rows, most), count_within(most) + 1


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
        "known from the whole log."
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
        place = count_within(lengths)
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


def check_split(split: Split, min_session_length: int, columns: Sequence[str]) -> None:
    """Raise unless `split` can cut the sessions of a log."""
    if isinstance(split, type) or not callable(getattr(split, "cut", None)):
        raise TypeError(
            f"`split` must be LeaveOneOut(), SplitBySession() or SplitByTime(…), got {split!r}. "
            "One of your own needs what the protocol `Split` has."
        )
    name = type(split).__name__
    check_integer(
        "min_session_length",
        min_session_length,
        minimum=split.min_session_length,
        cure=f"{name} cuts no shorter ones.",
    )
    if split.needs_time and "timestamp" not in columns:
        raise ValueError(
            f"`log` must have a column 'timestamp' for {name}, got {', '.join(columns)}. "
            "Split it by session, or read the time with it."
        )


def leave_one_out(store: SessionStore) -> dict[str, SessionView]:
    """Return the views `train`, `validation` and `test` of sessions of at least 3 items by `LeaveOneOut`.

    Raises:
        ValueError: A session has fewer than 3 tracks.

    Examples:
        >>> import polars as pl
        >>> store = SessionStore(
        ...     items=np.array([5, 3, 4], dtype=np.int32), feedback=np.ones(3, dtype=np.float32),
        ...     offsets=np.array([0, 3]), session_ids=pl.Series(["a"]),
        ... )
        >>> {name: int(view.ends[0]) for name, view in leave_one_out(store).items()}
        {'train': 1, 'validation': 1, 'test': 2}
    """
    lengths = store.lengths
    if lengths.min() < LeaveOneOut.min_session_length:
        raise ValueError(
            f"`store` must hold sessions of at least {LeaveOneOut.min_session_length} tracks, got one of "
            f"{lengths.min()}. Raise `min_session_length`."
        )
    cut = LeaveOneOut().cut(SessionBlock(lengths, first_row=0, total=len(store)))
    return {
        name: SessionView(store, rows, ends, with_target=name != "train")
        for name, (rows, ends) in cut.items()
    }


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
        return (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    check_number(name, moment)
    return round(moment * _MICROSECONDS)


_ROUNDS = 6
_STORED = 1 << 16


def shuffled_rows(places: NDArray[np.int64], size: int, *, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the rows at some places, [n] int64 in 0..size - 1, of a shuffled order of `size` rows.

    Up to 65,536 rows it is a random permutation. For more rows it is computed place by place: a Feistel
    network over the least power of four that holds `size`, applied again to results outside. A stored
    permutation would need 8 bytes a row, 1.3 GB for 160 million sessions, in each process.

    Reference:
        Black, Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002 (cycle walking), doi
        10.1007/3-540-45760-7_9. The mixing function: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
        Generators", OOPSLA 2014, doi 10.1145/2660193.2660195.
    """
    check_integer("size", size)
    places = np.asarray(places, dtype=np.int64)
    if places.size and not (places.min() >= 0 and places.max() < size):
        raise ValueError(f"`places` must be in 0..{size - 1}, got {places}. Count them from 0.")
    if size <= _STORED:
        return np.random.default_rng(seed).permutation(size)[places]
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64).astype(np.uint64)
    rows = _encrypt(places.astype(np.uint64), half, keys)
    outside = np.flatnonzero(rows >= size)
    while outside.size:
        rows[outside] = _encrypt(rows[outside], half, keys)
        outside = outside[rows[outside] >= size]
    return rows.astype(np.int64)


def _encrypt(values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a permutation of the integers of twice `half` bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << half) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 bits, each of which depends on all of the input: SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
