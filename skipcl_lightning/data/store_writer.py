"""From tables to the flat arrays of a store."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning.data.storage import Growing, Storage
from skipcl_lightning.data.store import SessionStore
from skipcl_lightning.data.vocabulary import ItemVocabulary

__all__ = ["StoreWriter"]


class StoreWriter:
    """Lays tables out flat, one after the other.

    Args:
        storage: Where to.
        vocabulary: The items' indices.

    Examples:
        >>> from skipcl_lightning.data.storage import MemoryStorage
        >>> writer = StoreWriter(MemoryStorage(), ItemVocabulary(["a", "b"]))
        >>> session = {"session_id": 7, "item_id": ["b", "a"], "feedback": [1.0, 0.0]}
        >>> writer.append(pl.DataFrame(session)).tolist()
        [2, 1]
        >>> writer.finish().offsets
        array([0, 2])
    """

    def __init__(self, storage: Storage, vocabulary: ItemVocabulary) -> None:
        self.vocabulary = vocabulary
        self._storage = storage
        self._items = storage.array("items", np.int32)
        self._feedback = storage.array("feedback", np.float32)
        self._offsets = storage.array("offsets", np.int64)
        self._offsets.append(np.zeros(1, dtype=np.int64))
        self._session_ids = storage.column("session_id")
        self._explicit: Growing[NDArray[Any], NDArray[Any]] | None = None
        self._tracks = 0

    def append(self, table: pl.DataFrame) -> NDArray[np.int64]:
        """Add the sessions of a table, in its order.

        Args:
            table: `session_id`, `item_id`, `feedback` and perhaps `explicit_feedback`, each session's
                rows together and in order; all tables with the same columns, and no session in two.

        Returns:
            [rows] int64, the items' indices.

        Raises:
            ValueError: An item is not in the vocabulary, or a session's rows are not together.
        """
        runs = table.select(pl.col("session_id").rle().struct.unnest())
        if runs["value"].n_unique() != runs.height:
            raise ValueError(
                "`table` must have each session's rows together, got a session in two places. "
                "Sort it, or use `prepare_sessions`."
            )
        items = self.vocabulary.encode(table["item_id"])
        self._items.append(items)
        self._feedback.append(table["feedback"].cast(pl.Float32).to_numpy())
        if "explicit_feedback" in table.columns:
            if self._explicit is None:
                self._explicit = self._storage.array("explicit_feedback", np.float32)
            self._explicit.append(table["explicit_feedback"].cast(pl.Float32).to_numpy())
        self._offsets.append(self._tracks + np.cumsum(runs["len"].to_numpy(), dtype=np.int64))
        self._session_ids.append(runs["value"].alias("session_id"))
        self._tracks += table.height
        return items

    def finish(self) -> SessionStore:
        """The store.

        Returns:
            All sessions that were added.
        """
        return SessionStore(
            items=self._items.finish(),
            feedback=self._feedback.finish(),
            offsets=self._offsets.finish(),
            session_ids=self._session_ids.finish(),
            explicit_feedback=None if self._explicit is None else self._explicit.finish(),
            folder=getattr(self._storage, "folder", None),
        )
