"""All sessions in three flat arrays, from which whole batches are gathered at once."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipcl_lightning._checks import check_integer
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.data.vocabulary import ItemVocabulary

__all__ = ["SessionStore"]


@dataclass(frozen=True, eq=False)
class SessionStore:
    """Sessions one after the other: session ``s`` is ``items[offsets[s]:offsets[s + 1]]``.

    The arrays are only read, so they may be memory-mapped, and worker processes share them.

    Args:
        items: [tracks] int32 item indices in 1..V.
        feedback: [tracks] float32 in [-1, 1].
        offsets: [sessions + 1] int64, rising from 0 to the number of tracks; no session is empty.
        session_ids: The external id of each session.
        explicit_feedback: [tracks] float32 in [-1, 1], below 0 disliked, above 0 liked; None where the
            source has none.

    Raises:
        TypeError: An array has another dtype.
        ValueError: The lengths disagree or a session is empty.

    Example:
        >>> store = SessionStore(
        ...     items=np.array([5, 3, 4, 2], dtype=np.int32),
        ...     feedback=np.array([1, -1, 1, 1], dtype=np.float32),
        ...     offsets=np.array([0, 3, 4]),
        ...     session_ids=pl.Series(["a", "b"]),
        ... )
        >>> items, feedback = store.gather(np.array([0, 1]), np.array([3, 1]), max_length=2)
        >>> items
        tensor([[3, 4],
                [2, 0]])
    """

    items: NDArray[np.int32]
    feedback: NDArray[np.float32]
    offsets: NDArray[np.int64]
    session_ids: pl.Series
    explicit_feedback: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for name, dtype in (("items", np.int32), ("feedback", np.float32), ("offsets", np.int64)):
            found = getattr(self, name).dtype
            if found != dtype:
                raise TypeError(f"`{name}` must be {dtype.__name__}, got {found}. Cast it with `astype`.")
        explicit = self.explicit_feedback
        if explicit is not None and (explicit.dtype != np.float32 or len(explicit) != len(self.items)):
            raise ValueError(
                f"`explicit_feedback` must be float32 and as long as `items`, got {explicit.dtype} and "
                f"{len(explicit)} for {len(self.items)}. Take both from one table."
            )
        tracks = len(self.items)
        lengths = np.diff(self.offsets)
        if len(self.feedback) != tracks or len(self.session_ids) != len(lengths):
            raise ValueError(
                "`feedback` must be as long as `items`, and `session_ids` one shorter than `offsets`, got "
                f"{len(self.feedback)} and {tracks}, {len(self.session_ids)} and {len(self.offsets)}. "
                "Take them from one table."
            )
        if not len(lengths) or self.offsets[0] != 0 or self.offsets[-1] != tracks or lengths.min() < 1:
            raise ValueError(
                f"`offsets` must rise from 0 to {tracks}, got {self.offsets}. Leave empty sessions out."
            )

    @classmethod
    def from_table(cls, table: pl.DataFrame, vocabulary: ItemVocabulary) -> "SessionStore":
        """Lay a prepared table out flat.

        Args:
            table: ``session_id``, ``item_id`` and ``feedback``, each session's rows together and in order,
                as :func:`~skipcl_lightning.data.prepare_sessions` gives them.
            vocabulary: The items' indices.

        Returns:
            The store, sessions in the order of the table.

        Raises:
            ValueError: An item is not in the vocabulary, or a session's rows are not together.

        Example:
            >>> table = pl.DataFrame(
            ...     {"session_id": [7, 7, 9], "item_id": [1, 2, 1], "feedback": [1.0, 0.0, 1.0]}
            ... )
            >>> SessionStore.from_table(table, ItemVocabulary([1, 2])).offsets
            array([0, 2, 3])
        """
        runs = table.select(pl.col("session_id").rle().struct.unnest())
        if runs["value"].n_unique() != runs.height:
            raise ValueError(
                "`table` must have each session's rows together, got a session in two places. "
                "Sort it, or use `prepare_sessions`."
            )
        explicit = table["explicit_feedback"] if "explicit_feedback" in table.columns else None
        return cls(
            items=vocabulary.encode(table["item_id"]).astype(np.int32),
            feedback=table["feedback"].cast(pl.Float32).to_numpy(),
            offsets=np.concatenate(([0], np.cumsum(runs["len"].to_numpy(), dtype=np.int64))),
            session_ids=runs["value"].alias("session_id"),
            explicit_feedback=None if explicit is None else explicit.cast(pl.Float32).to_numpy(),
        )

    def __len__(self) -> int:
        return len(self.session_ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[sessions] int64: the number of tracks of each session."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of tracks of some sessions, without a look at all of them.

        Args:
            rows: [B] which sessions.

        Returns:
            [B] int64.

        Example:
            >>> store = SessionStore(
            ...     items=np.array([5, 3, 4], dtype=np.int32), feedback=np.ones(3, dtype=np.float32),
            ...     offsets=np.array([0, 3]), session_ids=pl.Series(["a"]),
            ... )
            >>> store.lengths_of(np.array([0, 0]))
            array([3, 3])
        """
        return self.offsets[rows + 1] - self.offsets[rows]

    def gather(
        self, rows: NDArray[np.int64], ends: NDArray[np.int64], *, max_length: int
    ) -> tuple[Tensor, Tensor]:
        """The tracks of several sessions before given ends, padded on the right to the longest.

        Args:
            rows: [B] which sessions; a session may come more than once.
            ends: [B] how many of each session's tracks may be seen, from 1 to all.
            max_length: The most tracks to keep; of a longer session the latest are kept.

        Returns:
            [B, L] int64 items and [B, L] float32 feedback; both 0 at padding.

        Raises:
            TypeError: ``max_length`` is no integer.
            ValueError: A row or an end does not exist, or ``max_length`` is below 1.

        Example:
            >>> store = SessionStore(
            ...     items=np.array([5, 3, 4], dtype=np.int32), feedback=np.ones(3, dtype=np.float32),
            ...     offsets=np.array([0, 3]), session_ids=pl.Series(["a"]),
            ... )
            >>> store.gather(np.array([0, 0]), np.array([3, 1]), max_length=50)[0]
            tensor([[5, 3, 4],
                    [5, 0, 0]])
        """
        places, valid = self._places(rows, ends, max_length)
        items = np.where(valid, self.items[places], PADDING_INDEX).astype(np.int64)
        feedback = np.where(valid, self.feedback[places], np.float32(0))
        return torch.from_numpy(items), torch.from_numpy(feedback)

    def gather_explicit(
        self, rows: NDArray[np.int64], ends: NDArray[np.int64], *, max_length: int
    ) -> Tensor | None:
        """The explicit feedback on the tracks that :meth:`gather` gives.

        Args:
            rows: [B] which sessions.
            ends: [B] how many of each session's tracks may be seen.
            max_length: The most tracks to keep.

        Returns:
            [B, L] float32, 0 at padding; None where the store has none.

        Raises:
            TypeError: ``max_length`` is no integer.
            ValueError: As for :meth:`gather`.

        Example:
            >>> store = SessionStore(
            ...     items=np.array([5, 3], dtype=np.int32), feedback=np.ones(2, dtype=np.float32),
            ...     offsets=np.array([0, 2]), session_ids=pl.Series(["a"]),
            ...     explicit_feedback=np.array([-1, 0], dtype=np.float32),
            ... )
            >>> store.gather_explicit(np.array([0]), np.array([2]), max_length=50)
            tensor([[-1.,  0.]])
        """
        if self.explicit_feedback is None:
            return None
        places, valid = self._places(rows, ends, max_length)
        return torch.from_numpy(np.where(valid, self.explicit_feedback[places], np.float32(0)))

    def _places(
        self, rows: NDArray[np.int64], ends: NDArray[np.int64], max_length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """[B, L] places in the flat arrays, and which of them are tracks."""
        check_integer("max_length", max_length)
        rows, ends = np.asarray(rows, dtype=np.int64), np.asarray(ends, dtype=np.int64)
        self._check_ends(rows, ends)
        lengths = np.minimum(ends, max_length)
        first = self.offsets[rows] + ends - lengths
        columns = np.arange(lengths.max(initial=0))
        valid = columns < lengths[:, None]  # [B, L]
        # Padding reads track 0 of the store, which always exists, and is overwritten.
        return np.where(valid, first[:, None] + columns, 0), valid

    def _check_ends(self, rows: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        # Without it a negative row, or an end past the session, would silently read another session.
        if rows.shape != ends.shape or rows.ndim != 1:
            raise ValueError(
                f"`rows` and `ends` must have the same length, got shapes {rows.shape} and {ends.shape}. "
                "Give one end a row."
            )
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise ValueError(f"`rows` must be in 0..{len(self) - 1}, got {rows}. Count sessions from 0.")
        if (ends < 1).any() or (ends > self.lengths_of(rows)).any():
            raise ValueError(f"`ends` must be from 1 to each session's length, got {ends}. Check the split.")
