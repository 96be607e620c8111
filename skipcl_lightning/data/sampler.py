"""The sampler that shows every row to exactly one process at evaluation."""

from collections.abc import Iterator, Sized
from typing import cast

from torch.utils.data import Dataset, DistributedSampler

__all__ = ["EvaluationSampler"]


class EvaluationSampler(DistributedSampler[int]):
    """Every ``num_replicas``-th row from ``rank`` on, none repeated and none dropped.

    torch's own sampler repeats rows until all processes have equally many, and metrics then count them
    twice. Here the shares differ by at most one row. Lightning replaces samplers unless they are
    ``DistributedSampler``s, which is why this is one.

    Args:
        dataset: The rows, at least one a process.
        num_replicas: The number of processes; from ``torch.distributed`` if None.
        rank: This process; from ``torch.distributed`` if None.

    Raises:
        ValueError: There are fewer rows than processes, or ``rank`` is none of them.

    Example:
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
