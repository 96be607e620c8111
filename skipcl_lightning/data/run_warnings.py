"""Warnings of Lightning that tell a user nothing, kept quiet for the time of a run."""

import warnings
from typing import Any, cast

from lightning.pytorch import LightningDataModule

__all__ = ["QuietDataModule", "restore_run_warnings", "silence_run_warnings"]

# Given whatever a batch costs; here it is one gather from memory.
_WORKER_ADVICE = r"The '\w+_dataloader' does not have many workers"
# Lightning 2.6 asks torch 2.13 an old question about every batch; until Lightning asks the new one.
_OLD_QUESTION = r"`isinstance\(treespec, LeafSpec\)` is deprecated"


def silence_run_warnings(num_workers: int) -> None:
    """Ignore them until they are restored.

    Args:
        num_workers: The loaders' workers; where the user chose some, advice on their number is heard.

    Example:
        >>> silence_run_warnings(num_workers=0)
        >>> warnings.warn("The 'val_dataloader' does not have many workers", stacklevel=1)
        >>> restore_run_warnings()
    """
    warnings.filterwarnings("ignore", message=_OLD_QUESTION)
    if not num_workers:
        warnings.filterwarnings("ignore", message=_WORKER_ADVICE)


def restore_run_warnings() -> None:
    """Let them through again; other filters stay as they are.

    Example:
        >>> restore_run_warnings()
    """
    # typeshed calls it a sequence; it is the interpreter's own list, and only that list counts.
    filters = cast("list[Any]", warnings.filters)
    ours = (_WORKER_ADVICE, _OLD_QUESTION)
    filters[:] = [entry for entry in filters if getattr(entry[1], "pattern", None) not in ours]


class QuietDataModule(LightningDataModule):
    """Lets Lightning's warnings through again when a run ends, whichever way."""

    def teardown(self, stage: str | None = None) -> None:  # noqa: ARG002 - Lightning's signature
        """Let Lightning's warnings through again.

        Args:
            stage: Lightning's stage; all end alike.
        """
        restore_run_warnings()

    def on_exception(self, exception: BaseException) -> None:  # noqa: ARG002 - Lightning's signature
        """Do what ``teardown`` does, which Lightning leaves out after an error.

        Args:
            exception: The error.
        """
        restore_run_warnings()
