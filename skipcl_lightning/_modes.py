"""Evaluation mode for a while: the modes that a module had before come back."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluation_mode"]


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and restore each sub-module's own mode at the end.

    Args:
        module: Any module. A sub-module that is in evaluation mode while the rest trains stays so.

    Examples:
        >>> module = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluation_mode(module):
        ...     module[0].training
        False
        >>> module[0].training, module[1].training
        (True, False)
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
