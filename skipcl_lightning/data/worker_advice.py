"""Lightning's advice to use more workers, kept quiet for the time of a run."""

import warnings
from typing import Any, cast

__all__ = ["restore_worker_advice", "silence_worker_advice"]

_MESSAGE = r"The '\w+_dataloader' does not have many workers"


def silence_worker_advice() -> None:
    """Ignore the advice, which Lightning gives whatever a batch costs, until it is restored.

    Example:
        >>> silence_worker_advice()
        >>> warnings.warn("The 'val_dataloader' does not have many workers", stacklevel=1)
        >>> restore_worker_advice()
    """
    warnings.filterwarnings("ignore", message=_MESSAGE)


def restore_worker_advice() -> None:
    """Let the advice through again; other filters stay as they are.

    Example:
        >>> restore_worker_advice()
    """
    # typeshed calls it a sequence; it is the interpreter's own list, and only that list counts.
    filters = cast("list[Any]", warnings.filters)
    filters[:] = [entry for entry in filters if getattr(entry[1], "pattern", None) != _MESSAGE]
