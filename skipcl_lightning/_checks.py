"""Argument checks with errors that name the argument, what came, what was expected and the way out.

They check shapes, dtypes and Python values. Only `check_indices` reads a tensor's contents, and only on a
CPU, because on other devices the host would have to wait in every step.
"""

import functools
import importlib
import math
import sys
from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ParamSpec

import torch
from torch import Tensor

__all__ = [
    "check_choice",
    "check_flag",
    "check_indices",
    "check_integer",
    "check_number",
    "check_shape",
    "clean_input",
    "import_extra",
    "is_ordered",
    "requires_mask",
]

Arguments = ParamSpec("Arguments")
_INDEX_CURE = "Use 0 for positions without one where the argument allows it, and check `num_items`."


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise unless `value` is one of `choices`.

    Examples:
        >>> check_choice("ties", "best", ["mean", "optimistic"])
        Traceback (most recent call last):
            ...
        ValueError: `ties` must be one of 'mean', 'optimistic', got 'best'.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_flag(name: str, value: bool) -> None:
    """Raise `TypeError` unless `value` is True or False.

    Examples:
        >>> check_flag("exclude_seen", "no")
        Traceback (most recent call last):
            ...
        TypeError: `exclude_seen` must be True or False, got 'no' of type str.
    """
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {value!r} of type {type(value).__name__}.")


def check_indices(
    name: str, indices: Tensor, maximum: int, *, minimum: int = 1, cure: str = _INDEX_CURE
) -> None:
    """Raise unless all indices are in a range; on a CPU only, and not while compiling.

    On other devices, the kernels themselves refuse a wrong index.

    Examples:
        >>> check_indices("target", torch.tensor([3, -1]), 9)
        Traceback (most recent call last):
            ...
        ValueError: `target` must hold indices in 1..9, got -1. ...
    """
    if indices.device.type != "cpu" or not indices.numel() or torch.compiler.is_compiling():
        return
    values = indices.numpy()  # the tensor's own memory
    low, high = int(values.min()), int(values.max())
    if low < minimum or high > maximum:
        wrong = low if low < minimum else high
        raise ValueError(f"`{name}` must hold indices in {minimum}..{maximum}, got {wrong}. {cure}")


def check_integer(
    name: str, value: int, *, minimum: int = 1, maximum: int | None = None, cure: str = ""
) -> None:
    """Raise unless `value` is an integer within `[minimum, maximum]`.

    Examples:
        >>> check_integer("top_k", 0)
        Traceback (most recent call last):
            ...
        ValueError: `top_k` must be at least 1, got 0.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an integer, got {value!r} of type {type(value).__name__}.")
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {value}. {cure}".rstrip())
    if maximum is not None and value > maximum:
        raise ValueError(f"`{name}` must be at most {maximum}, got {value}. {cure}".rstrip())


def check_number(
    name: str,
    value: float,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    open_minimum: bool = False,
    open_maximum: bool = False,
) -> None:
    """Raise unless `value` is a finite number within the interval; NaN is in no interval.

    Examples:
        >>> check_number("temperature", 0.0, minimum=0, open_minimum=True)
        Traceback (most recent call last):
            ...
        ValueError: `temperature` must be in (0, inf), got 0.0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"`{name}` must be a number, got {value!r} of type {type(value).__name__}.")
    above = value > minimum if open_minimum else value >= minimum
    below = value < maximum if open_maximum else value <= maximum
    # As integers, Python compares numbers that no float holds.
    if not (above and below and abs(value) <= sys.float_info.max):
        left = "(" if open_minimum or math.isinf(minimum) else "["
        right = ")" if open_maximum or math.isinf(maximum) else "]"
        raise ValueError(f"`{name}` must be in {left}{minimum:g}, {maximum:g}{right}, got {value!r}.")


def check_shape(
    name: str,
    tensor: Tensor,
    shape: str,
    sizes: dict[str, int] | None = None,
    *,
    dtype: torch.dtype | None = None,
    floating: bool = False,
) -> dict[str, int]:
    """Raise unless `tensor` has the shape that the letters state, and bind new letters to its sizes.

    Args:
        name: The argument's name.
        tensor: The given value.
        shape: One letter for each dimension, such as `"B L D"`.
        sizes: The sizes of letters that are already bound.
        dtype: The only accepted dtype, or None for any.
        floating: Whether a floating-point dtype is needed.

    Returns:
        `sizes` with the letters that this tensor binds; the argument is not changed.

    Raises:
        TypeError: It is no tensor, or one of another dtype.
        ValueError: The shape differs.

    Examples:
        >>> sizes = check_shape("items", torch.zeros(2, 3), "B L")
        >>> check_shape("keys", torch.zeros(2, 4, 8), "B L D", sizes)
        Traceback (most recent call last):
            ...
        ValueError: `keys` must have shape [B=2, L=3, D], got [2, 4, 8].
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(tensor).__name__}.")
    bound = dict(sizes or {})
    letters = shape.split()
    fits = tensor.dim() == len(letters)
    if fits:
        for letter, size in zip(letters, tensor.shape, strict=True):
            fits = fits and bound.get(letter, size) == size
            bound.setdefault(letter, size)
    if not fits:
        known = sizes or {}
        wanted = ", ".join(f"{letter}={known[letter]}" if letter in known else letter for letter in letters)
        raise ValueError(f"`{name}` must have shape [{wanted}], got {list(tensor.shape)}.")
    if dtype is not None and tensor.dtype != dtype:
        raise TypeError(f"`{name}` must be of dtype {dtype}, got {tensor.dtype}.")
    if floating and not tensor.is_floating_point():
        raise TypeError(f"`{name}` must be of a floating-point dtype, got {tensor.dtype}.")
    return bound


def is_ordered(values: object) -> bool:
    """Return whether values are a sequence of any library; a string is one value, not a sequence.

    Examples:
        >>> [is_ordered(one) for one in (["song"], ("song",), torch.ones(2))]
        [True, True, True]
        >>> [is_ordered(one) for one in ("song", {"song"}, {"song": 1}, torch.ones(()), list)]
        [False, False, False, False, False]
    """
    if isinstance(values, str | bytes | type | AbstractSet | Mapping):
        return False
    # An array without a dimension has these methods too.
    methods = all(hasattr(values, name) for name in ("__len__", "__getitem__", "__iter__"))
    return methods and getattr(values, "ndim", 1) != 0


def clean_input(x: Tensor, valid_mask: Tensor, *, max_length: int | None = None) -> Tensor:
    """Return a checked backbone input with zeros at padding.

    Padding may hold anything, NaN included, and must not reach attention or a gradient.

    Args:
        x: [B, L, D] floating point, the embedded items.
        valid_mask: [B, L] bool, True at items.
        max_length: The largest number of positions of the backbone; None for no limit.

    Returns:
        [B, L, D].

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: The shapes disagree, or L is more than `max_length`.

    Examples:
        >>> clean_input(torch.ones(1, 2, 1), torch.tensor([[True, False]])).flatten()
        tensor([1., 0.])
    """
    sizes = check_shape("x", x, "B L D", floating=True)
    check_shape("valid_mask", valid_mask, "B L", sizes, dtype=torch.bool)
    if max_length is not None and sizes["L"] > max_length:
        raise ValueError(
            f"`x` must have at most `max_length` = {max_length} positions, got {sizes['L']}. "
            "Keep the latest tracks with `batch.latest(max_length)`, or build the backbone with a larger "
            "`max_length`."
        )
    return torch.where(valid_mask[..., None], x, 0)


def import_extra(*modules: str, extra: str, user: str) -> Any:
    """Import the modules of an optional dependency, and return the first.

    Args:
        modules: Their full names.
        extra: The extra of this package that installs them.
        user: What needs them.

    Returns:
        The first module.

    Raises:
        ImportError: One is not installed; the message names the extra.

    Examples:
        >>> import_extra("no_such_package", extra="export", user="ONNX")
        Traceback (most recent call last):
            ...
        ImportError: ONNX needs the package no_such_package, which is not installed. Install it with ...
    """
    try:
        first, *_ = map(importlib.import_module, modules)
    except ImportError as error:
        package = (error.name or modules[0]).partition(".")[0]
        raise ImportError(
            f"{user} needs the package {package}, which is not installed. Install it with "
            f'`pip install "skipcl-lightning[{extra}]"`.'
        ) from error
    return first


def requires_mask(forward: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """Decorate `forward(self, x, valid_mask)` so that a call without the mask says what to pass."""

    @functools.wraps(forward)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        if len(args) < 3 and "valid_mask" not in kwargs:  # self, x, valid_mask
            raise TypeError(
                "`valid_mask` must be a bool tensor [B, L], True at items, got none in the call of "
                f"{type(args[0]).__name__}. Call `backbone(x, batch.valid_mask)`."
            )
        return forward(*args, **kwargs)

    return wrapper
