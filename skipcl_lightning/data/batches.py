"""Batches of sessions: the data set that gathers them, samplers, and a loader that resumes in mid-epoch."""

import zlib
from collections.abc import Iterator, Sequence, Sized
from itertools import chain
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from skipcl_lightning._checks import check_integer, check_number
from skipcl_lightning.batch import SessionBatch, is_rejected
from skipcl_lightning.data.mining import MinedItems, sample_mined
from skipcl_lightning.data.splits import shuffled_rows
from skipcl_lightning.data.store.listeners import ListenerHistories
from skipcl_lightning.data.store.session_store import SessionStore, SessionView

__all__ = ["EvaluationSampler", "ResumableLoader", "SessionDataset", "TrainingSampler", "keep_batch"]


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
        view, histories = self.view, self.histories
        rows, ends = view.rows[chosen], view.ends[chosen]
        gathered = view.store.gather(rows, ends, max_length=self.max_length)
        batch = SessionBatch(
            **gathered,
            session_index=torch.from_numpy(rows),
            skip_threshold=self.skip_threshold,
            num_tracks=int(np.minimum(ends, self.max_length).sum()),
            history=None if histories is None else histories.gather(rows, max_length=self.history_length),
            **self._draw_mined(gathered["items"], chosen),
        )
        longest = int(ends.max(initial=0))
        if self.with_seen and longest > self.max_length:
            batch = batch.replace(seen=view.store.gather(rows, ends, max_length=longest)["items"])
        if not view.with_target:
            return batch
        places = view.store.offsets[rows] + ends
        target = torch.from_numpy(view.store.items[places].astype(np.int64))
        return batch.replace(
            target=target,
            cold_target=None if self.num_warm_items is None else target > self.num_warm_items,
            target_feedback=torch.from_numpy(_target_feedback(view.store, places, self.skip_threshold)),
        )

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


# Rows whose order is computed at once; no effect on the order.
_BLOCK = 1 << 16
# Makes these draws independent of others with the same seed.
_PURPOSE = 1


class _SharedSampler(DistributedSampler[int]):
    """Base of the samplers whose rows the processes share.

    A loader is often made before Lightning or Fabric starts the processes. So their number and the rank are
    those of `torch.distributed` when rows are drawn, unless they were given.
    """

    def __init__(
        self, dataset: Dataset[object] | Sized, num_replicas: int | None, rank: int | None, **settings: Any
    ) -> None:
        self._is_given = num_replicas is not None or rank is not None
        self.size = len(cast("Sized", dataset))
        if not self._is_given:
            num_replicas, rank = 1, 0
        super().__init__(cast("Dataset[int]", dataset), num_replicas=num_replicas, rank=rank, **settings)
        self._share_rows()

    def _follow_processes(self) -> None:
        """Take the present number of processes and the rank of this one, unless they were given."""
        if not self._is_given and dist.is_available() and dist.is_initialized():
            self.num_replicas, self.rank = dist.get_world_size(), dist.get_rank()
            self._share_rows()

    def _share_rows(self) -> None:
        """Set `num_samples`, the rows of this process, and `total_size`."""
        raise NotImplementedError

    def __len__(self) -> int:
        self._follow_processes()
        return self.num_samples


class TrainingSampler(_SharedSampler):
    """All rows in a new order each epoch, shared evenly by the processes, from any batch on.

    The order is computed on the fly, without memory for the rows, from `seed`, epoch, settings and rank only.
    As with torch's sampler, all processes get equally many rows, because one without a batch would block the
    others: up to `num_replicas` - 1 rows are repeated in an epoch.

    With `bucket_batches`, sessions of similar length share a batch, so batches have less padding: the rows of
    this many batches are taken from the shuffled order, cut into batches by length, and shuffled.

    Args:
        dataset: The rows.
        batch_size: Rows in a batch of one process; used for buckets and for `start_from`.
        lengths: [rows] the length of each session, an array or memory map; needed for buckets only.
        bucket_batches: The number of batches, over all processes, that are sorted together; 0 for none.
        seed: 0 or more.
        num_replicas: The number of processes; None for that of `torch.distributed` when rows are drawn.
        rank: This process; None for that of `torch.distributed`.

    Raises:
        TypeError: A number is no integer.
        ValueError: One is out of range, or there are buckets without lengths.

    Examples:
        >>> sampler = TrainingSampler(range(5), batch_size=2, num_replicas=1, rank=0)
        >>> first, again = list(sampler), list(sampler)
        >>> first == again, sorted(first)
        (True, [0, 1, 2, 3, 4])
        >>> sampler.start_from(1)
        >>> list(sampler) == first[2:]
        True
    """

    def __init__(
        self,
        dataset: Dataset[object] | Sized,
        *,
        batch_size: int,
        lengths: NDArray[np.int64] | None = None,
        bucket_batches: int = 0,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        check_integer("batch_size", batch_size)
        check_integer("bucket_batches", bucket_batches, minimum=0)
        check_integer("seed", seed, minimum=0)
        super().__init__(dataset, num_replicas, rank, seed=seed)
        if bucket_batches and lengths is None:
            raise ValueError(
                "`lengths` must be given with `bucket_batches`, got None. Rows are sorted by them."
            )
        self.batch_size = batch_size
        self.bucket_batches = bucket_batches
        self.lengths = lengths
        self._first_batch = 0

    @property
    def settings(self) -> dict[str, int]:
        """The settings on which the order of an epoch depends."""
        self._follow_processes()
        return {
            "rows": self.size,
            "batch_size": self.batch_size,
            "bucket_batches": self.bucket_batches,
            "seed": self.seed,
            "num_replicas": self.num_replicas,
        }

    def start_from(self, batch: int) -> None:
        """Begin the next iteration, and only that one, after `batch` batches, 0 or more.

        Raises:
            TypeError: It is no integer.
            ValueError: It is negative.
        """
        check_integer("batch", batch, minimum=0)
        self._first_batch = batch

    def _share_rows(self) -> None:
        self.num_samples = -(-self.size // self.num_replicas)
        self.total_size = self.num_samples * self.num_replicas

    def __iter__(self) -> Iterator[int]:
        self._follow_processes()
        skipped, self._first_batch = self._first_batch * self.batch_size, 0
        return chain.from_iterable(self._shares(skipped))

    def _shares(self, skipped: int) -> Iterator[list[int]]:
        """Yield this process's rows, a window at a time."""
        # A window is a whole number of batches, and so is the rest of the first one.
        window, within = divmod(skipped, self._window // self.num_replicas)
        for number in range(window, -(-self.total_size // self._window)):
            rows = self._window_rows(number)[self.rank :: self.num_replicas]
            yield rows[within:].tolist()
            within = 0

    @property
    def _window(self) -> int:
        """Return the number of rows, of all processes, that are ordered at once."""
        batch = self.batch_size * self.num_replicas
        return batch * (self.bucket_batches or max(1, _BLOCK // batch))

    def _window_rows(self, number: int) -> NDArray[np.int64]:
        first = number * self._window
        places = np.arange(first, min(first + self._window, self.total_size))
        rows = shuffled_rows(places % self.size, self.size, seed=(_PURPOSE, self.seed, self.epoch))
        if not self.bucket_batches or self.lengths is None:
            return rows
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        batch = self.batch_size * self.num_replicas
        # The batch that is not full stays the last, where the DataLoader cuts it.
        whole = len(rows) // batch
        order = np.random.default_rng((_PURPOSE, self.seed, self.epoch, number)).permutation(whole)
        shuffled = rows[: whole * batch].reshape(whole, batch)[order].ravel()
        return np.concatenate((shuffled, rows[whole * batch :]))


class EvaluationSampler(_SharedSampler):
    """Adjacent rows for each process, none repeated and none dropped.

    torch's own sampler repeats rows until all processes have equally many, and metrics then count them twice.
    Here the shares differ by at most one row, and the shares of all ranks in turn have the order of one
    process. It is a `DistributedSampler`, because Lightning replaces all others.

    Args:
        dataset: The rows, at least one for each process.
        num_replicas: The number of processes; None for that of `torch.distributed` when rows are drawn.
        rank: This process; None for that of `torch.distributed`.

    Raises:
        ValueError: There are fewer rows than processes, or `rank` is none of them.

    Examples:
        >>> list(EvaluationSampler(range(5), num_replicas=2, rank=1))
        [2, 3, 4]
    """

    def __init__(
        self, dataset: Dataset[object] | Sized, num_replicas: int | None = None, rank: int | None = None
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)

    def _share_rows(self) -> None:
        self.total_size = self.size
        # A process without a batch would block the others.
        if self.total_size < self.num_replicas:
            raise ValueError(
                f"`dataset` must have a row for each of the {self.num_replicas} processes, got "
                f"{self.total_size}. Evaluate on fewer devices."
            )
        self.num_samples = len(self._rows)

    @property
    def _rows(self) -> range:
        first, end = (self.total_size * rank // self.num_replicas for rank in (self.rank, self.rank + 1))
        return range(first, end)

    def __iter__(self) -> Iterator[int]:
        self._follow_processes()
        return iter(self._rows)


class ResumableLoader(DataLoader[SessionBatch]):
    """A `DataLoader` over a `TrainingSampler` that counts the batches it has returned.

    Lightning saves its state in each checkpoint and restores it when a run resumes, so the epoch continues
    with the batch after the last trained one. Batches that workers have only prepared do not count.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._given = 0
        self._epoch = 0
        self._resumed: dict[str, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, its batches so far and the order's settings; empty without our sampler."""
        sampler = self.sampler
        if not isinstance(sampler, TrainingSampler):
            return {}
        # An epoch that is set but not begun has returned no batch.
        given = self._given if self._epoch == sampler.epoch else 0
        return {"epoch": sampler.epoch, "batches": given, **sampler.settings}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration at the saved batch, if it is of the saved epoch."""
        # Compared at the first batch, because Lightning sets the epoch after it loads the state.
        self._resumed = state

    def __iter__(self) -> Iterator[SessionBatch]:  # type: ignore[override]  # torch names its own class
        state, self._resumed = self._resumed, None
        self._given = 0
        sampler = self.sampler
        if isinstance(sampler, TrainingSampler):
            self._epoch = sampler.epoch
            # A finished epoch has no batches left.
            if state and state["epoch"] == sampler.epoch and 0 < state["batches"] < len(self):
                _check_same_order(state, sampler.settings)
                self._given = state["batches"]
            sampler.start_from(self._given)
        for batch in super().__iter__():
            self._given += 1
            yield batch


def _check_same_order(state: dict[str, int], settings: dict[str, int]) -> None:
    """Raise if the rest of the epoch would have other rows than the untrained ones."""
    for name, value in settings.items():
        if state.get(name) != value:
            raise ValueError(
                f"`{name}` must be {state.get(name)}, as where the checkpoint was written in mid-epoch, got "
                f"{value}. What is left of the epoch cannot be told otherwise: resume with the same data "
                "and settings, or from a checkpoint of an epoch's end."
            )
