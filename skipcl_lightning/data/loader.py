"""The loader of training batches, which goes on where a checkpoint was written."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data.sampler import TrainingSampler

__all__ = ["ResumableLoader"]


class ResumableLoader(DataLoader[SessionBatch]):
    """A ``DataLoader`` over a :class:`TrainingSampler` that knows how many batches it has given out.

    Lightning writes its state into each checkpoint and gives it back when a run is resumed, so that an epoch
    goes on with the batch after the last one that was trained on, and with none twice. Batches that workers
    have prepared and nobody has taken do not count.

    Example:
        >>> import torch
        >>> from skipcl_lightning.data import keep_batch
        >>> class Rows(torch.utils.data.Dataset):
        ...     def __len__(self): return 5
        ...     def __getitems__(self, indices): return indices
        >>> def make():
        ...     sampler = TrainingSampler(Rows(), batch_size=2, num_replicas=1, rank=0)
        ...     return ResumableLoader(Rows(), batch_size=2, sampler=sampler, collate_fn=keep_batch)
        >>> loader = make()
        >>> rest = iter(loader)
        >>> _ = next(rest)
        >>> resumed = make()
        >>> resumed.load_state_dict(loader.state_dict())
        >>> list(resumed) == list(rest)
        True
    """

    sampler: TrainingSampler

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._given = 0
        self._resumed: dict[str, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """Where in which epoch the iteration is.

        Returns:
            ``epoch``, and ``batches``, how many of it were taken.
        """
        return {"epoch": self.sampler.epoch, "batches": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration where the state was taken, if it is of the state's epoch.

        Args:
            state: What :meth:`state_dict` gave.
        """
        # Compared with the epoch at the first batch: Lightning sets that after it has loaded the state.
        self._resumed = state

    def __iter__(self) -> Iterator[SessionBatch]:  # type: ignore[override]  # torch names its own class
        state, self._resumed = self._resumed, None
        self._given = 0
        # Of an epoch that is over, or was at its last batch, nothing is left to go on with.
        if state is not None and state["epoch"] == self.sampler.epoch and state["batches"] < len(self):
            self._given = state["batches"]
        self.sampler.start_from(self._given)
        for batch in super().__iter__():
            self._given += 1
            yield batch
