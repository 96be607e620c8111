"""Warnings of runs: those of Lightning that say nothing are silenced, and our own of suspicious feedback."""

import warnings
from typing import Any, cast

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

__all__ = [
    "FeedbackWarning",
    "QuietDataModule",
    "restore_run_warnings",
    "silence_run_warnings",
    "warn_without_sign",
]


class FeedbackWarning(UserWarning):
    """A log's feedback holds no skip, although it seems to record them."""


# Given whatever a batch costs; here it is one gather from memory.
_WORKER_ADVICE = r"The '\w+_dataloader' does not have many workers"
# Lightning 2.6 asks torch 2.13 an old question about every batch; until Lightning asks the new one.
_OLD_QUESTION = r"`isinstance\(treespec, LeafSpec\)` is deprecated"


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


def warn_without_sign(lowest: float, highest: float, skip_threshold: float = 0.0) -> None:
    """Warn where feedback varies within [0, 1], as a flag or a share does, so that nothing is a skip.

    Args:
        lowest: The least feedback of a log, in [-1, 1].
        highest: The greatest.
        skip_threshold: The feedback under which a track counts as skipped.

    Examples:
        >>> warn_without_sign(-1.0, 1.0)
        >>> warn_without_sign(1.0, 1.0)
    """
    if max(0, skip_threshold) <= lowest < highest:
        rank_zero_warn(
            f"The column 'feedback' lies in [{lowest:g}, {highest:g}], so it has no skip: "
            f"only feedback below {skip_threshold:g} is one. Map a flag with `read_table(..., skipped=...)`, "
            "played time with `played=...`, and a share of listening x with `2 * x - 1`.",
            category=FeedbackWarning,
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
