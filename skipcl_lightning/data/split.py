"""Which part of each session is learned from, and which track of it is held out."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning.data.store import SessionStore

__all__ = ["SessionView", "count_items", "leave_one_out", "mark_training", "whole_sessions"]

_HELD_OUT = 2


@dataclass(frozen=True, eq=False)
class SessionView:
    """A part of a store: of session ``rows[n]`` the tracks before ``ends[n]`` and perhaps the one there.

    Args:
        store: The sessions.
        rows: [N] int64, which sessions.
        ends: [N] int64, how many of each session's tracks are input.
        with_target: Whether the track after the input is the held-out target.

    Raises:
        ValueError: The lengths differ, or a row or an end does not exist.

    Example:
        >>> store = SessionStore(
        ...     items=np.array([5, 3, 4], dtype=np.int32), feedback=np.ones(3, dtype=np.float32),
        ...     offsets=np.array([0, 3]), session_ids=pl.Series(["a"]),
        ... )
        >>> SessionView(store, np.array([0]), np.array([2]), with_target=True).targets
        array([2])
    """

    store: SessionStore
    rows: NDArray[np.int64]
    ends: NDArray[np.int64]
    with_target: bool

    def __post_init__(self) -> None:
        last = self.ends + 1 if self.with_target else self.ends
        if self.rows.shape != self.ends.shape or not (
            np.all((self.rows >= 0) & (self.rows < len(self.store)) & (self.ends >= 1))
            and np.all(last <= self.store.lengths_of(self.rows))
        ):
            raise ValueError(
                "`rows` and `ends` must point at tracks of the store, got some that do not. "
                "A target needs a track after the input."
            )

    @property
    def targets(self) -> NDArray[np.int64]:
        """[N] int64: where each held-out target stands in the store's flat arrays."""
        return self.store.offsets[self.rows] + self.ends

    def __len__(self) -> int:
        return len(self.rows)


def leave_one_out(store: SessionStore) -> dict[str, SessionView]:
    """Hold out each session's last track for test and the one before it for validation.

    This is the papers' protocol. It leaks the future: what one session is trained on may have been played
    after what another is tested on, so popularity that only came later helps, and its numbers tend to be
    higher than those of a split by time. Compare them with numbers of the same protocol only.

    Args:
        store: Sessions of at least 3 tracks.

    Returns:
        Of a session of n tracks: ``train`` the first n - 2 as input; ``validation`` the same input with
        the next track as target; ``test`` the first n - 1 as input with the last as target.

    Raises:
        ValueError: A session has fewer than 3 tracks.

    Reference:
        Seshadri, Shashaani, Knees, "Enhancing Sequential Music Recommendation with Negative
        Feedback-informed Contrastive Learning", RecSys 2024, arXiv 2409.07367.

    Example:
        >>> store = SessionStore(
        ...     items=np.array([5, 3, 4], dtype=np.int32), feedback=np.ones(3, dtype=np.float32),
        ...     offsets=np.array([0, 3]), session_ids=pl.Series(["a"]),
        ... )
        >>> {name: int(view.ends[0]) for name, view in leave_one_out(store).items()}
        {'train': 1, 'validation': 1, 'test': 2}
    """
    lengths = store.lengths
    if lengths.min() <= _HELD_OUT:
        raise ValueError(
            f"`store` must hold sessions of at least {_HELD_OUT + 1} tracks, got one of {lengths.min()}. "
            "Raise `min_session_length`."
        )
    rows = np.arange(len(store))
    return {
        "train": SessionView(store, rows, lengths - _HELD_OUT, with_target=False),
        "validation": SessionView(store, rows, lengths - _HELD_OUT, with_target=True),
        "test": SessionView(store, rows, lengths - 1, with_target=True),
    }


def whole_sessions(store: SessionStore) -> SessionView:
    """Every session to its end, without a target: what is known when the next track is asked for.

    Args:
        store: The sessions.

    Returns:
        The view.

    Example:
        >>> store = SessionStore(
        ...     items=np.array([5, 3, 4], dtype=np.int32), feedback=np.ones(3, dtype=np.float32),
        ...     offsets=np.array([0, 3]), session_ids=pl.Series(["a"]),
        ... )
        >>> whole_sessions(store).ends
        array([3])
    """
    return SessionView(store, np.arange(len(store)), store.lengths, with_target=False)


def mark_training() -> pl.Expr:
    """The rows of a prepared table that :func:`leave_one_out` trains on.

    Returns:
        A Boolean expression, for tables with ``session_id`` in which each session is in order.

    Example:
        >>> pl.DataFrame({"session_id": [1, 1, 1]}).select(mark_training()).to_series().to_list()
        [True, False, False]
    """
    return (
        (pl.int_range(pl.len()) < pl.len().cast(pl.Int64) - _HELD_OUT).over("session_id").alias("in_training")
    )


def count_items(view: SessionView, num_items: int) -> NDArray[np.int64]:
    """How often each item occurs in the inputs of a view.

    Args:
        view: The sessions; each counts once for every row it has.
        num_items: V.

    Returns:
        [V + 1] int64; index 0, padding, has none.

    Example:
        >>> store = SessionStore(
        ...     items=np.array([2, 2, 1], dtype=np.int32), feedback=np.ones(3, dtype=np.float32),
        ...     offsets=np.array([0, 3]), session_ids=pl.Series(["a"]),
        ... )
        >>> count_items(whole_sessions(store), num_items=3)
        array([0, 1, 2, 0])
    """
    # One step up where an input begins and one down where it ends; the running sum is each track's weight.
    steps = np.zeros(len(view.store.items) + 1, dtype=np.int64)
    np.add.at(steps, view.store.offsets[view.rows], 1)
    np.add.at(steps, view.targets, -1)
    weights = np.cumsum(steps[:-1])
    counts = np.bincount(view.store.items, weights=weights, minlength=num_items + 1)
    return counts.astype(np.int64)
