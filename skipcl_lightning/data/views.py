"""Parts of a store: which tracks of which sessions are seen, and which one is asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipcl_lightning.data.storage import map_array
from skipcl_lightning.data.store import SessionStore

__all__ = ["SessionView", "whole_sessions"]

_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class SessionView:
    """A part of a store: of session `rows[n]` the tracks before `ends[n]` and perhaps the one there.

    Args:
        store: The sessions.
        rows: [N] int64, which sessions.
        ends: [N] int64, how many of each session's tracks are input.
        with_target: Whether the track after the input is the held-out target.
        name: What it is called among the files of a store that is mapped; None where it is in memory.

    Raises:
        ValueError: The lengths differ, or a row or an end does not exist.

    Examples:
        >>> import polars as pl
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
    name: str | None = None

    def __post_init__(self) -> None:
        fits = self.rows.shape == self.ends.shape
        for rows, ends in self.blocks() if fits else ():
            last = ends + 1 if self.with_target else ends
            fits &= bool(np.all((rows >= 0) & (rows < len(self.store)) & (ends >= 1)))
            fits = fits and bool(np.all(last <= self.store.lengths_of(rows)))
        if not fits:
            raise ValueError(
                "`rows` and `ends` must point at tracks of the store, got some that do not. "
                "A target needs a track after the input."
            )

    @classmethod
    def open(cls, store: SessionStore, name: str, *, with_target: bool) -> "SessionView":
        """Map a view from the files beside a store's.

        Args:
            store: A store that is mapped.
            name: What the view is called.
            with_target: As for the class.

        Returns:
            The view.
        """
        assert store.folder is not None, "only the views of a mapped store have files"  # noqa: S101
        rows, ends = (map_array(store.folder / f"{name}_{part}.npy") for part in ("rows", "ends"))
        return cls(store, rows, ends, with_target=with_target, name=name)

    def __reduce__(self) -> Any:
        if self.name is None:
            return super().__reduce__()
        return partial(type(self).open, with_target=self.with_target), (self.store, self.name)

    def blocks(self, size: int = _BLOCK) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The rows and ends, some at a time: there may be more of them than memory holds.

        Args:
            size: How many.

        Yields:
            [n] int64 rows, [n] int64 ends.
        """
        for start in range(0, len(self.rows), size):
            yield self.rows[start : start + size], self.ends[start : start + size]

    @property
    def targets(self) -> NDArray[np.int64]:
        """[N] int64: where each held-out target stands in the store's flat arrays."""
        return self.store.offsets[self.rows] + self.ends

    def __len__(self) -> int:
        return len(self.rows)


def whole_sessions(store: SessionStore) -> SessionView:
    """Every session to its end, without a target: what is known when the next track is asked for.

    Args:
        store: The sessions.

    Returns:
        The view.

    Examples:
        >>> import polars as pl
        >>> store = SessionStore(
        ...     items=np.array([5, 3, 4], dtype=np.int32), feedback=np.ones(3, dtype=np.float32),
        ...     offsets=np.array([0, 3]), session_ids=pl.Series(["a"]),
        ... )
        >>> whole_sessions(store).ends
        array([3])
    """
    return SessionView(store, np.arange(len(store)), store.lengths, with_target=False)
