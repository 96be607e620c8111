"""The precision in which formulas compute, independent of autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["at_least_float32", "autocast_dtype", "softmax_scales", "without_autocast"]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a half-precision tensor in float32, and any other tensor unchanged.

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
    """Return a context in which products keep the precision of their factors.

    Args:
        device: The device of the factors.

    Returns:
        The context; it does nothing on devices without autocast.

    Examples:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), without_autocast(torch.device("cpu")):
        ...     print((torch.ones(1, 1) @ torch.ones(1, 1)).dtype)
        torch.float32
    """
    return torch.autocast(device.type, enabled=False) if _knows_autocast(device.type) else nullcontext()


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype that autocast gives to products of a tensor, or the tensor's own.

    Args:
        tensor: Floating point.

    Returns:
        The dtype.

    Examples:
        >>> autocast_dtype(torch.ones(1))
        torch.float32
    """
    kind = tensor.device.type
    if _knows_autocast(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return tensor.dtype


def softmax_scales(dtype: torch.dtype) -> tuple[float, float]:
    """Return factors that keep probabilities and weighted queries within the range of a dtype.

    In float16, a small probability times a small weight would become 0, and so would the gradient. Multiply
    both by these factors, and divide their product by both.

    Args:
        dtype: The dtype of the product.

    Returns:
        Powers of 2: 256 and 16 for float16, whose largest number is 65,504; else 1 and 1.

    Examples:
        >>> softmax_scales(torch.float16), softmax_scales(torch.bfloat16)
        ((256.0, 16.0), (1.0, 1.0))
    """
    return (256.0, 16.0) if dtype == torch.float16 else (1.0, 1.0)


def _knows_autocast(kind: str) -> bool:
    # Compilers before torch 2.13 cannot trace this call; the devices that they compile for have autocast.
    return torch.compiler.is_compiling() or torch.amp.is_autocast_available(kind)
