"""The loader of training batches, which goes on where a checkpoint was written."""

import warnings
from collections.abc import Iterator
from typing import Any, cast

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data.batches.sampler import TrainingSampler

__all__ = ["QuietDataModule", "ResumableLoader", "restore_run_warnings", "silence_run_warnings"]

# Given whatever a batch costs; here it is one gather from memory.
_WORKER_ADVICE = r"The '\w+_dataloader' does not have many workers"
# Lightning 2.6 asks torch 2.13 an old question about every batch; until Lightning asks the new one.
_OLD_QUESTION = r"`isinstance\(treespec, LeafSpec\)` is deprecated"


class ResumableLoader(DataLoader[SessionBatch]):
    """A `DataLoader` over a `TrainingSampler` that knows how many batches it has given out.

    Lightning writes its state into each checkpoint and gives it back when a run is resumed, so that an epoch
    goes on with the batch after the last one that was trained on, and with none twice. Batches that workers
    have prepared and nobody has taken do not count.

    Examples:
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

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._given = 0
        self._epoch = 0
        self._resumed: dict[str, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """Where in which epoch the iteration is, and what its order depends on.

        Returns:
            `epoch`; `batches`, how many of it were taken; and the settings of the sampler. Empty where
            Lightning has put another sampler in, as it does for `overfit_batches`.
        """
        sampler = self.sampler
        if not isinstance(sampler, TrainingSampler):
            return {}
        # An epoch that has been set and not begun has given nothing.
        given = self._given if self._epoch == sampler.epoch else 0
        return {"epoch": sampler.epoch, "batches": given, **sampler.settings}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration where the state was taken, if it is of the state's epoch.

        Args:
            state: What `state_dict` gave.
        """
        # Compared with the epoch at the first batch: Lightning sets that after it has loaded the state.
        self._resumed = state

    def __iter__(self) -> Iterator[SessionBatch]:  # type: ignore[override]  # torch names its own class
        state, self._resumed = self._resumed, None
        self._given = 0
        sampler = self.sampler
        if isinstance(sampler, TrainingSampler):
            self._epoch = sampler.epoch
            # Of an epoch that is over, or was at its last batch, nothing is left to go on with.
            if state and state["epoch"] == sampler.epoch and 0 < state["batches"] < len(self):
                _check_same_order(state, sampler.settings)
                self._given = state["batches"]
            sampler.start_from(self._given)
        for batch in super().__iter__():
            self._given += 1
            yield batch


def _check_same_order(state: dict[str, int], settings: dict[str, int]) -> None:
    """Raise where the rest of an epoch would be other rows than those not trained on yet."""
    for name, value in settings.items():
        if state.get(name) != value:
            raise ValueError(
                f"`{name}` must be {state.get(name)}, as where the checkpoint was written in mid-epoch, got "
                f"{value}. What is left of the epoch cannot be told otherwise: resume with the same data "
                "and settings, or from a checkpoint of an epoch's end."
            )


class QuietDataModule(LightningDataModule):
    """Lets Lightning's warnings through again when a run ends, whichever way."""

    def teardown(self, stage: str | None = None) -> None:  # noqa: ARG002 - Lightning's signature
        """Let Lightning's warnings through again.

        Args:
            stage: Lightning's stage; all end alike.
        """
        restore_run_warnings()

    def on_exception(self, exception: BaseException) -> None:  # noqa: ARG002 - Lightning's signature
        """Do what `teardown` does, which Lightning leaves out after an error.

        Args:
            exception: The error.
        """
        restore_run_warnings()


def silence_run_warnings(num_workers: int) -> None:
    """Ignore them until they are restored.

    Args:
        num_workers: The loaders' workers; where the user chose some, advice on their number is heard.

    Examples:
        >>> silence_run_warnings(num_workers=0)
        >>> warnings.warn("The 'val_dataloader' does not have many workers", stacklevel=1)
        >>> restore_run_warnings()
    """
    warnings.filterwarnings("ignore", message=_OLD_QUESTION)
    if not num_workers:
        warnings.filterwarnings("ignore", message=_WORKER_ADVICE)


def restore_run_warnings() -> None:
    """Let them through again; other filters stay as they are.

    Examples:
        >>> restore_run_warnings()
    """
    # typeshed calls it a sequence; it is the interpreter's own list, and only that list counts.
    filters = cast("list[Any]", warnings.filters)
    ours = (_WORKER_ADVICE, _OLD_QUESTION)
    filters[:] = [entry for entry in filters if getattr(entry[1], "pattern", None) not in ours]
