"""The loader of training batches, which resumes at a checkpoint's batch, and the warnings of runs."""

import warnings
from collections.abc import Iterator
from typing import Any, cast

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data.batches.sampler import TrainingSampler

__all__ = ["QuietDataModule", "ResumableLoader", "restore_run_warnings", "silence_run_warnings"]

# Lightning advises workers whatever a batch costs; here it is one gather from memory.
_WORKER_ADVICE = r"The '\w+_dataloader' does not have many workers"
# Lightning 2.6 calls a function that torch 2.13 deprecates; until Lightning replaces the call.
_OLD_QUESTION = r"`isinstance\(treespec, LeafSpec\)` is deprecated"


class ResumableLoader(DataLoader[SessionBatch]):
    """A `DataLoader` over a `TrainingSampler` that counts the batches it has returned.

    Lightning saves its state in each checkpoint and restores it when a run resumes, so the epoch continues
    with the batch after the last trained one. Batches that workers have only prepared do not count.

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
        """Return the epoch, the number of its returned batches, and the settings of the order.

        Returns:
            `epoch`, `batches` and the settings of the sampler. Empty if Lightning has replaced the sampler,
            as for `overfit_batches`.
        """
        sampler = self.sampler
        if not isinstance(sampler, TrainingSampler):
            return {}
        # An epoch that is set but not begun has returned no batch.
        given = self._given if self._epoch == sampler.epoch else 0
        return {"epoch": sampler.epoch, "batches": given, **sampler.settings}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration at the saved batch, if it is of the saved epoch.

        Args:
            state: The result of `state_dict`.
        """
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


class QuietDataModule(LightningDataModule):
    """Restores Lightning's warnings at the end of a run."""

    def teardown(self, stage: str | None = None) -> None:  # noqa: ARG002 - Lightning's signature
        """Restore Lightning's warnings.

        Args:
            stage: Unused.
        """
        restore_run_warnings()

    def on_exception(self, exception: BaseException) -> None:  # noqa: ARG002 - Lightning's signature
        """Restore Lightning's warnings after an error, when Lightning does not call `teardown`.

        Args:
            exception: The error.
        """
        restore_run_warnings()


def silence_run_warnings(num_workers: int) -> None:
    """Ignore warnings of Lightning that do not apply here, until `restore_run_warnings`.

    Args:
        num_workers: The loaders' workers; if it is not 0, advice on their number is shown.

    Examples:
        >>> silence_run_warnings(num_workers=0)
        >>> warnings.warn("The 'val_dataloader' does not have many workers", stacklevel=1)
        >>> restore_run_warnings()
    """
    warnings.filterwarnings("ignore", message=_OLD_QUESTION)
    if not num_workers:
        warnings.filterwarnings("ignore", message=_WORKER_ADVICE)


def restore_run_warnings() -> None:
    """Show these warnings again; other filters stay.

    Examples:
        >>> restore_run_warnings()
    """
    # typeshed calls it a sequence; it is the interpreter's own list, and only that list counts.
    filters = cast("list[Any]", warnings.filters)
    ours = (_WORKER_ADVICE, _OLD_QUESTION)
    filters[:] = [entry for entry in filters if getattr(entry[1], "pattern", None) not in ours]
