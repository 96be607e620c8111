"""External ids: strings or 64-bit integers, and nothing else."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

__all__ = ["to_ids"]


def to_ids(
    name: str, values: Sequence[str] | Sequence[int] | pl.Series, dtype: pl.DataType | None = None
) -> pl.Series:
    """External ids as a column of one of the two types that ids have.

    Args:
        name: What the values are called in an error.
        values: All strings or all integers, none null.
        dtype: String or Int64, which they must be of unless there are none; None for either.

    Returns:
        String or Int64.

    Raises:
        TypeError: Values are neither strings nor integers, of both types, or not of `dtype`.
        ValueError: A value is null, does not fit into 64 bits, or is no valid text (a lone surrogate).

    Examples:
        >>> to_ids("items", [3, 1]).dtype
        Int64
    """
    if not isinstance(values, pl.Series):
        values = _sequence_to_series(name, values, dtype)
    if not (values.dtype == pl.String or values.dtype.is_integer()):
        raise TypeError(f"`{name}` must be strings or integers, got {values.dtype}. Cast them first.")
    if values.null_count():
        raise ValueError(f"`{name}` must not hold nulls, got {values.null_count()} of them. Drop them first.")
    if values.dtype != pl.String:
        values = _to_int64(name, values)
    if dtype is not None and values.dtype != dtype and len(values):
        raise TypeError(
            f"`{name}` must be {dtype} as in the vocabulary, got {values.dtype}. Cast them first."
        )
    return values


def _sequence_to_series(
    name: str, values: Sequence[str] | Sequence[int], dtype: pl.DataType | None
) -> pl.Series:
    """A Python sequence as a series, when all its values are of one accepted type."""
    if isinstance(values, str):
        raise TypeError(f"`{name}` must be a sequence of ids, got the string {values!r}. Put it into a list.")
    kinds = set(map(type, values))
    if not kinds:
        return pl.Series([], dtype=dtype or pl.String)
    if all(issubclass(kind, str) for kind in kinds):
        return _to_strings(name, values)
    # bool is a kind of int, and no id.
    if any(not issubclass(kind, int | np.integer) or kind is bool for kind in kinds):
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(
            f"`{name}` must be all strings or all integers, got {names}. Convert them with `str(...)` or "
            "`int(...)`, and leave missing ones (None, NaN) out."
        )
    try:
        return pl.Series([int(value) for value in values], dtype=pl.Int64)
    except (OverflowError, TypeError) as error:
        raise ValueError(
            f"`{name}` must fit into 64 bits, got larger integers. Use strings instead."
        ) from error


def _to_strings(name: str, values: Sequence[Any]) -> pl.Series:
    """Python strings as a series."""
    try:
        return pl.Series(list(values), dtype=pl.String)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"`{name}` must be valid Unicode text, got {error.object!r} with a lone surrogate. It was "
            "decoded with the wrong encoding: read it as UTF-8, or with `errors='replace'`."
        ) from error


def _to_int64(name: str, values: pl.Series) -> pl.Series:
    """The same integers in the one type that ids have here."""
    try:
        return values.cast(pl.Int64)
    except pl.exceptions.PolarsError as error:
        raise ValueError(
            f"`{name}` must fit into 64 bits, got larger integers. Use strings instead."
        ) from error
