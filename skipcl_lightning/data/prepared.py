"""All that is made from a log, once: items, sessions, splits and what the training part counts."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning.data.drop_report import DropReport
from skipcl_lightning.data.filters import SessionFilter
from skipcl_lightning.data.preparation import prepare_sessions
from skipcl_lightning.data.split import (
    SessionView,
    count_items,
    leave_one_out,
    mark_training,
    whole_sessions,
)
from skipcl_lightning.data.store import SessionStore
from skipcl_lightning.data.vocabulary import ItemVocabulary

__all__ = ["PreparedData"]


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A log as batches need it.

    Args:
        vocabulary: The items, the most frequent in the training part first.
        store: The sessions.
        views: By split, ``train``, ``validation``, ``test`` and ``predict``, what is seen of them.
        item_counts: [V + 1] int64, how often each item occurs in the training part.
        drop_report: What was read, dropped and kept.
    """

    vocabulary: ItemVocabulary
    store: SessionStore
    views: dict[str, SessionView]
    item_counts: NDArray[np.int64]
    drop_report: DropReport

    @classmethod
    def from_log(cls, log: pl.LazyFrame | pl.DataFrame, session_filter: SessionFilter) -> "PreparedData":
        """Read, check, filter, number and split a log.

        Args:
            log: A canonical table.
            session_filter: What is kept of it.

        Returns:
            The data.

        Raises:
            ValueError: As for :func:`~skipcl_lightning.data.prepare_sessions`.

        Example:
            >>> log = pl.DataFrame(
            ...     {"session_id": 1, "item_id": [7, 8, 9], "feedback": 1.0, "position": [1, 2, 3]}
            ... )
            >>> PreparedData.from_log(log, SessionFilter()).num_cold_targets
            {'validation': 1, 'test': 1}
        """
        table, report = prepare_sessions(log, session_filter)
        in_training = table.select(mark_training()).to_series()
        vocabulary = ItemVocabulary.from_log(table["item_id"], in_training=in_training)
        store = SessionStore.from_table(table, vocabulary)
        views = leave_one_out(store) | {"predict": whole_sessions(store)}
        return cls(vocabulary, store, views, count_items(views["train"], len(vocabulary)), report)

    @property
    def num_cold_targets(self) -> dict[str, int]:
        """By split, the held-out targets whose item never occurs in the training part."""
        return {
            split: int((self.item_counts[self.store.items[view.targets]] == 0).sum())
            for split, view in self.views.items()
            if view.with_target
        }

    def __str__(self) -> str:
        cold = ", ".join(f"{count:,} in {split}" for split, count in self.num_cold_targets.items())
        return f"{self.drop_report}\nTargets never seen in training: {cold}."
