"""The dataset that returns whole batches to a torch DataLoader."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from skipcl_lightning._checks import check_integer, check_number
from skipcl_lightning.batch import SessionBatch, is_rejected
from skipcl_lightning.data.mining import MinedItems, sample_mined
from skipcl_lightning.data.store.listeners import ListenerHistories
from skipcl_lightning.data.store.session_store import SessionStore, SessionView

__all__ = ["SessionDataset", "keep_batch"]


class SessionDataset(Dataset[SessionBatch]):
    """Sessions as batches, each gathered at once.

    A `DataLoader` requests the rows of a batch in one call of `__getitems__`, so an ordinary one works, with
    its samplers and Lightning's; its `collate_fn` must be `keep_batch`. A disliked target has the feedback
    -1, and a liked skip +1, so evaluation counts the first as rejected and the second as listened to.

    Args:
        view: The rows: sessions and their ends.
        max_length: The largest number of items of a session; the latest are kept.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        mined: The items mined from the training set, from which samples are drawn; None for none.
        mined_negatives: M, the number of items drawn, with replacement, for each item from those skipped
            after it.
        mined_positives: P, the number drawn from those listened to after it.
        seed: Seed of these draws, in 0..2^32 - 1. They depend only on it and on the rows of the batch, so
            they are equal in every process and in a resumed run.
        num_warm_items: The number of items of the training set; they have the indices 1 to this. Targets
            above are cold and rank last. None if unknown.
        with_seen: Whether a batch has all items of its sessions so far (`seen`) if some are longer than
            `max_length`, so that all can be excluded.
        histories: What the listener of each session listened to before it; None for no `history`.
        history_length: n, the largest number of items of a history.

    Raises:
        TypeError: A setting is no number.
        ValueError: One is out of range.

    Examples:
        >>> import polars as pl
        >>> from skipcl_lightning.data import SessionStore, leave_one_out
        >>> store = SessionStore(
        ...     items=np.array([5, 3, 4], dtype=np.int32), feedback=np.ones(3, dtype=np.float32),
        ...     offsets=np.array([0, 3]), session_ids=pl.Series(["a"]),
        ... )
        >>> batch = SessionDataset(leave_one_out(store)["test"], max_length=50)[0]
        >>> batch.items, batch.target
        (tensor([[5, 3]]), tensor([4]))
    """

    def __init__(
        self,
        view: SessionView,
        *,
        max_length: int,
        skip_threshold: float = 0.0,
        with_seen: bool = False,
        mined: MinedItems | None = None,
        mined_negatives: int = 0,
        mined_positives: int = 0,
        num_warm_items: int | None = None,
        seed: int = 0,
        histories: ListenerHistories | None = None,
        history_length: int = 0,
    ) -> None:
        check_integer("max_length", max_length)
        check_integer("mined_negatives", mined_negatives, minimum=0)
        check_integer("mined_positives", mined_positives, minimum=0)
        check_integer("history_length", history_length, minimum=0)
        check_number("skip_threshold", skip_threshold, minimum=-1, maximum=1, open_minimum=True)
        check_integer("seed", seed, minimum=0, maximum=2**32 - 1)
        self.view = view
        self.max_length = max_length
        self.skip_threshold = skip_threshold
        self.with_seen = with_seen
        self.num_warm_items = num_warm_items
        self.seed = seed
        self.histories = histories
        self.history_length = history_length
        self.mined: dict[str, tuple[Tensor, int]] = {}
        if mined is not None and mined_negatives:
            self.mined["mined_negatives"] = (torch.from_numpy(mined.skipped_after), mined_negatives)
        if mined is not None and mined_positives:
            self.mined["mined_positives"] = (torch.from_numpy(mined.listened_after), mined_positives)

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: int) -> SessionBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> SessionBatch:
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.size and not (chosen.min() >= -len(self) and chosen.max() < len(self)):
            # An IndexError, which also ends a `for` loop over the dataset.
            raise IndexError(f"`indices` must be below {len(self)}, got {chosen}. Count rows from 0.")
        view = self.view
        rows, ends = view.rows[chosen], view.ends[chosen]
        items, feedback = view.store.gather(rows, ends, max_length=self.max_length)
        batch = SessionBatch(
            items,
            feedback,
            session_index=torch.from_numpy(rows),
            explicit_feedback=view.store.gather_explicit(rows, ends, max_length=self.max_length),
            context=view.store.gather_context(rows, ends, max_length=self.max_length),
            skip_threshold=self.skip_threshold,
            num_tracks=int(np.minimum(ends, self.max_length).sum()),
            history=self._gather_histories(rows),
            **self._draw_mined(items, chosen),
        )
        longest = int(ends.max(initial=0))
        if self.with_seen and longest > self.max_length:
            batch = batch.replace(seen=view.store.gather(rows, ends, max_length=longest)[0])
        if not view.with_target:
            return batch
        places = view.store.offsets[rows] + ends
        target = torch.from_numpy(view.store.items[places].astype(np.int64))
        return batch.replace(
            target=target,
            cold_target=None if self.num_warm_items is None else target > self.num_warm_items,
            target_feedback=torch.from_numpy(_target_feedback(view.store, places, self.skip_threshold)),
        )

    def _gather_histories(self, rows: NDArray[np.int64]) -> Tensor | None:
        if self.histories is None:
            return None
        return self.histories.gather(rows, max_length=self.history_length)

    def _draw_mined(self, items: Tensor, chosen: NDArray[np.int64]) -> dict[str, Tensor]:
        if not self.mined:
            return {}
        # Mixed into 32 bits, because torch's generator uses no more of a seed.
        mixed = np.random.SeedSequence((self.seed, zlib.crc32(chosen.tobytes())))
        generator = torch.Generator().manual_seed(int(mixed.generate_state(1)[0]))
        return {
            name: sample_mined(table, items, count, generator=generator)
            for name, (table, count) in self.mined.items()
        }


def _target_feedback(
    store: SessionStore, places: NDArray[np.int64], skip_threshold: float
) -> NDArray[np.float32]:
    """[B] feedback, below the threshold exactly if the target was rejected."""
    feedback = store.feedback[places]
    if store.explicit_feedback is None:
        return feedback
    rejected = is_rejected(feedback, store.explicit_feedback[places], skip_threshold)
    consistent = (feedback < skip_threshold) == rejected
    return np.where(consistent, feedback, np.where(rejected, np.float32(-1), np.float32(1)))


def keep_batch(batch: SessionBatch) -> SessionBatch:
    """Return the batch of a `SessionDataset` unchanged; its `collate_fn`.

    Examples:
        >>> keep_batch(SessionBatch(torch.ones(2, 3, dtype=torch.int64), torch.zeros(2, 3))).lengths
        tensor([3, 3])
    """
    return batch
