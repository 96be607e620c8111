"""Who listened to each session and when, and the histories of listeners before each session."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipcl_lightning.batch import is_rejected
from skipcl_lightning.data.canonical_table import count_within
from skipcl_lightning.data.store.folder import map_array
from skipcl_lightning.data.store.session_store import SessionStore

__all__ = ["ListenerHistories", "Listeners"]

# Sessions whose items are in memory at once.
_BLOCK = 1 << 16


@dataclass(frozen=True, eq=False)
class Listeners:
    """The listener and the time of each session of a store.

    Args:
        listener: [sessions] int32, a number for each different listener, without further meaning; -1 if
            unknown.
        began: [sessions] int64, the time of the first play in microseconds.
        ended: [sessions] int64, the time of the last play.
        shown: [sessions] int64, the number of items of each session that are in the training or the
            validation set.
    """

    listener: NDArray[np.int32]
    began: NDArray[np.int64]
    ended: NDArray[np.int64]
    shown: NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path) -> "Listeners | None":
        """Map the files of a store; None if its log had no listeners or no times."""
        if not (folder / "listener.npy").exists():
            return None
        return cls(*(map_array(folder / f"{name}.npy") for name in cls.__dataclass_fields__))

    def histories(
        self, store: SessionStore, visible: NDArray[np.int64], *, skip_threshold: float = 0.0
    ) -> "ListenerHistories":
        """Return what each session's listener listened to before it began.

        Args:
            store: The sessions.
            visible: [sessions] int64, the number of items of each session that histories may hold.
            skip_threshold: Feedback below it is a skip. Rejected items are left out.

        Returns:
            The histories: of the sessions of the same listener whose last play came before this session's
            first one, the visible items that were not rejected. Sessions are in the order of their ends.

        Examples:
            >>> import polars as pl
            >>> store = SessionStore(
            ...     items=np.array([5, 3, 4], dtype=np.int32),
            ...     feedback=np.array([1, -1, 1], dtype=np.float32),
            ...     offsets=np.array([0, 2, 3]),
            ...     session_ids=pl.Series(["a", "b"]),
            ... )
            >>> times = np.array([0, 60]), np.array([30, 60])
            >>> listeners = Listeners(np.array([0, 0], dtype=np.int32), *times, store.lengths)
            >>> histories = listeners.histories(store, store.lengths)
            >>> histories.gather(np.array([0, 1]), max_length=20)
            tensor([[0],
                    [5]])
        """
        count = len(self.listener)
        # All ends and beginnings by listener and time; a beginning comes before an end at the same time.
        is_end = np.repeat([True, False], count)
        order = np.lexsort((is_end, np.concatenate([self.ended, self.began]), np.tile(self.listener, 2)))
        ends_before = np.empty(2 * count, dtype=np.int64)
        ends_before[order] = np.cumsum(is_end[order])
        by_end = order[is_end[order]]
        items, counts = _listened(store, by_end, visible, skip_threshold)
        offsets = np.concatenate(([0], np.cumsum(counts)))
        first = np.searchsorted(self.listener[by_end], self.listener)
        stops = offsets[ends_before[count:]]
        starts = np.where(self.listener < 0, stops, offsets[first])
        return ListenerHistories(items, starts, stops)


@dataclass(frozen=True, eq=False)
class ListenerHistories:
    """The history of session `s` is `items[starts[s]:stops[s]]`; those of one listener overlap.

    Args:
        items: [items] int32 item indices in 1..V, each listener's together.
        starts: [sessions] int64.
        stops: [sessions] int64.
    """

    items: NDArray[np.int32]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    def gather(self, rows: NDArray[np.int64], *, max_length: int) -> Tensor:
        """Return the latest items of the histories of some sessions.

        Args:
            rows: [B] session numbers.
            max_length: n, the largest number of items of a history.

        Returns:
            [B, H] int64, padded on the right with 0; H is the longest history, at most n, perhaps 0.
        """
        stops = self.stops[rows]
        lengths = np.minimum(stops - self.starts[rows], max_length)
        columns = np.arange(lengths.max(initial=0))
        taken = self.items.take((stops - lengths)[:, None] + columns, mode="clip").astype(np.int64)
        np.copyto(taken, 0, where=columns >= lengths[:, None])
        return torch.from_numpy(taken)


def _listened(
    store: SessionStore, rows: NDArray[np.int64], visible: NDArray[np.int64], skip_threshold: float
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the visible items of sessions `rows` that were not rejected, and their counts."""
    items, counts = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int64)]
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        lengths = visible[block]
        owner = np.repeat(np.arange(len(block)), lengths)
        places = store.offsets[block][owner] + count_within(lengths)
        explicit = None if store.explicit_feedback is None else store.explicit_feedback[places]
        listened = ~is_rejected(store.feedback[places], explicit, skip_threshold)
        items.append(store.items[places[listened]])
        counts.append(np.bincount(owner[listened], minlength=len(block)))
    return np.concatenate(items), np.concatenate(counts)
