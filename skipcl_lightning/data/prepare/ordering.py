"""Sorting of rows by session and order, cheap if they are sorted already."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

__all__ = ["drop_repeated", "order_rows", "restore_order", "run_lengths"]


def run_lengths(values: pl.Series) -> NDArray[np.int64]:
    """Return the lengths of runs of equal values.

    Args:
        values: [N] of any type.

    Returns:
        [runs] int64 with the sum N.

    Examples:
        >>> run_lengths(pl.Series(["a", "a", "b"]))
        array([2, 1])
    """
    return values.rle().struct.field("len").to_numpy().astype(np.int64)


def restore_order(table: pl.DataFrame) -> pl.DataFrame:
    """Return rows in the order of listening, if the source says that it runs newest first.

    Args:
        table: The rows, perhaps with a column `tie_order`.

    Returns:
        The rows in the order of `tie_order`, without that column.

    Examples:
        >>> restore_order(pl.DataFrame({"item": ["b", "a"], "tie_order": [0, -1]}))["item"].to_list()
        ['a', 'b']
    """
    if "tie_order" not in table.columns:
        return table
    return table.sort("tie_order", maintain_order=True).drop("tie_order")


def order_rows(table: pl.DataFrame, key: str, order: str) -> pl.DataFrame:
    """Sort rows by two columns, stably.

    Most logs are sorted already, and sorting text is slow, so the order is checked first.

    Args:
        table: The rows.
        key: The first column, without nulls.
        order: The second, numbers or times, without nulls.

    Returns:
        The sorted rows.

    Examples:
        >>> table = pl.DataFrame({"key": ["b", "a", "a"], "order": [1, 2, 1]})
        >>> order_rows(table, "key", "order").rows()
        [('a', 1), ('a', 2), ('b', 1)]
    """
    if not table[key].is_sorted():
        table = table.sort(key, maintain_order=True)
    run = table[key].rle_id()
    place = table[order].to_physical()
    if ((run.diff() == 0) & (place < place.shift(1))).any():
        columns = table.columns
        table = table.with_columns(run.alias("_run")).sort("_run", order, maintain_order=True).select(columns)
    return table


def drop_repeated(table: pl.DataFrame, key: str, order: str) -> pl.DataFrame:
    """Drop rows that repeat another in every column.

    Args:
        table: Rows that `order_rows` has sorted by these columns.
        key: The first of them.
        order: The second.

    Returns:
        The rows without repeats, the first of equal ones kept.

    Examples:
        >>> table = pl.DataFrame({"key": ["a", "a", "a"], "order": [1, 1, 1], "item": [7, 8, 7]})
        >>> drop_repeated(table, "key", "order")["item"].to_list()
        [7, 8]
    """
    follows = (table[key] == table[key].shift(1)) & (table[order] == table[order].shift(1))
    follows = follows.fill_null(False)
    if not follows.any():
        return table
    # Repeated rows are equal in both columns, so only such rows are compared in all columns.
    tied = follows | follows.shift(-1, fill_value=False)
    first = (
        table.with_row_index("_place").filter(tied).unique(table.columns, keep="first", maintain_order=True)
    )["_place"]
    kept = ~tied
    return table.filter(kept.scatter(first, True))
