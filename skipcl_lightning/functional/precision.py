"""In which precision a formula computes, whatever autocast says."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["at_least_float32", "autocast_dtype", "softmax_scales", "without_autocast"]


def at_least_float32(tensor: Tensor) -> Tensor:
    """A half-precision tensor in float32, any other as it is.

    Args:
        tensor: Floating point.

    Returns:
        The tensor.

    Examples:
        >>> at_least_float32(torch.ones(1, dtype=torch.float16)).dtype
        torch.float32
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which products keep the precision of their factors.

    Args:
        device: Where they are.

    Returns:
        The context; one without effect on devices that know no autocast.

    Examples:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), without_autocast(torch.device("cpu")):
        ...     print((torch.ones(1, 1) @ torch.ones(1, 1)).dtype)
        torch.float32
    """
    return torch.autocast(device.type, enabled=False) if _knows_autocast(device.type) else nullcontext()


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The precision that autocast gives products of a tensor, or its own.

    Args:
        tensor: Floating point.

    Returns:
        The type.

    Examples:
        >>> autocast_dtype(torch.ones(1))
        torch.float32
    """
    kind = tensor.device.type
    if _knows_autocast(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return tensor.dtype


def softmax_scales(dtype: torch.dtype) -> tuple[float, float]:
    """What probabilities and weighted queries are multiplied by before their product is taken.

    A probability among many items times a query's weight among many is below what float16 can hold, so that
    a gradient made of them would be 0. Their product is then to be divided by both.

    Args:
        dtype: In which products are taken.

    Returns:
        Powers of 2: 256 and 16 for float16, whose largest number is 65,504; else 1 and 1.

    Examples:
        >>> softmax_scales(torch.float16), softmax_scales(torch.bfloat16)
        ((256.0, 16.0), (1.0, 1.0))
    """
    return (256.0, 16.0) if dtype == torch.float16 else (1.0, 1.0)


def _knows_autocast(kind: str) -> bool:
    # Compilers of torch before 2.13 cannot trace the question; what they compile for knows autocast.
    return torch.compiler.is_compiling() or torch.amp.is_autocast_available(kind)
