"""Which rows each process sees, in which order: a function of the seed, the epoch and the process alone."""

from collections.abc import Iterator, Sized
from itertools import chain
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, DistributedSampler

from skipcl_lightning._checks import check_integer
from skipcl_lightning.data.splits.permutation import shuffled_rows

__all__ = ["EvaluationSampler", "TrainingSampler"]

# Rows whose order is computed at once; it has no effect on that order.
_BLOCK = 1 << 16
# Keeps these draws apart from those of other rooms with the same seed.
_PURPOSE = 1


class TrainingSampler(DistributedSampler[int]):
    """All rows in a new order each epoch, shared out evenly, from any batch on.

    The order is computed as it goes, so that it takes no memory, and depends on `seed`, the epoch, the
    settings and the process alone. As with torch's own sampler the processes get equally many rows, since
    one without a batch would wait for ever where the others meet: up to `num_replicas` - 1 rows come twice
    in an epoch.

    With `bucket_batches` sessions of like length share a batch, so that less of it is padding: of so many
    batches' rows at a time, taken from the shuffled order, batches are cut by length and then shuffled.

    Args:
        dataset: The rows.
        batch_size: Rows in a batch of one process; used for buckets and for `start_from`.
        lengths: [rows] the number of tracks of each, an array or memory map; needed for buckets only.
        bucket_batches: How many batches of all processes are sorted together; 0 for none.
        seed: 0 or more.
        num_replicas: The number of processes; from `torch.distributed` if None.
        rank: This process; from `torch.distributed` if None.

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
        super().__init__(cast("Dataset[int]", dataset), num_replicas=num_replicas, rank=rank, seed=seed)
        if bucket_batches and lengths is None:
            raise ValueError(
                "`lengths` must be given with `bucket_batches`, got None. Rows are sorted by them."
            )
        self.size = len(cast("Sized", dataset))
        self.batch_size = batch_size
        self.bucket_batches = bucket_batches
        self.lengths = lengths
        self._first_batch = 0

    @property
    def settings(self) -> dict[str, int]:
        """What the order of an epoch depends on."""
        return {
            "rows": self.size,
            "batch_size": self.batch_size,
            "bucket_batches": self.bucket_batches,
            "seed": self.seed,
            "num_replicas": self.num_replicas,
        }

    def start_from(self, batch: int) -> None:
        """Begin the next iteration, and only that, at a later batch.

        Args:
            batch: How many batches to leave out, 0 or more.

        Raises:
            TypeError: It is no integer.
            ValueError: It is negative.
        """
        check_integer("batch", batch, minimum=0)
        self._first_batch = batch

    def __iter__(self) -> Iterator[int]:
        skipped, self._first_batch = self._first_batch * self.batch_size, 0
        return chain.from_iterable(self._shares(skipped))

    def _shares(self, skipped: int) -> Iterator[list[int]]:
        """This process's rows, a window at a time."""
        # A window is a whole number of batches, so that what is left of the first one is, too.
        window, within = divmod(skipped, self._window // self.num_replicas)
        for number in range(window, -(-self.total_size // self._window)):
            rows = self._window_rows(number)[self.rank :: self.num_replicas]
            yield rows[within:].tolist()
            within = 0

    @property
    def _window(self) -> int:
        """How many rows, of all processes, are ordered at once."""
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
        # The one batch that is not full stays the last, where DataLoader cuts it.
        whole = len(rows) // batch
        order = np.random.default_rng((_PURPOSE, self.seed, self.epoch, number)).permutation(whole)
        shuffled = rows[: whole * batch].reshape(whole, batch)[order].ravel()
        return np.concatenate((shuffled, rows[whole * batch :]))


class EvaluationSampler(DistributedSampler[int]):
    """Every `num_replicas`-th row from `rank` on, none repeated and none dropped.

    torch's own sampler repeats rows until all processes have equally many, and metrics then count them
    twice. Here the shares differ by at most one row. Lightning replaces samplers unless they are
    `DistributedSampler`s, which is why this is one.

    Args:
        dataset: The rows, at least one a process.
        num_replicas: The number of processes; from `torch.distributed` if None.
        rank: This process; from `torch.distributed` if None.

    Raises:
        ValueError: There are fewer rows than processes, or `rank` is none of them.

    Examples:
        >>> list(EvaluationSampler(range(5), num_replicas=2, rank=1))
        [1, 3]
    """

    def __init__(
        self, dataset: Dataset[object] | Sized, num_replicas: int | None = None, rank: int | None = None
    ) -> None:
        super().__init__(cast("Dataset[int]", dataset), num_replicas=num_replicas, rank=rank, shuffle=False)
        self.total_size = len(cast("Sized", dataset))
        # A process without a batch would wait forever where the others meet.
        if self.total_size < self.num_replicas:
            raise ValueError(
                f"`dataset` must have a row for each of the {self.num_replicas} processes, got "
                f"{self.total_size}. Evaluate on fewer devices."
            )
        self.num_samples = len(self._rows)

    @property
    def _rows(self) -> range:
        return range(self.rank, self.total_size, self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)
