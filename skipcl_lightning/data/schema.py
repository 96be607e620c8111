"""The canonical table that every reader hands over, and the checks of its columns.

=============== ============================= ==================================================
column          type                          meaning
=============== ============================= ==================================================
``session_id``  String or integer             which session the row belongs to
``item_id``     String or integer             the track; null where the source names none
``feedback``    Float32 in [-1, 1]            below 0 skipped (-1: at once), above 0 listened, 0 unknown
``position``    integer                       the order within a session, where the source has one
``timestamp``   Datetime, or seconds          else the order: by time, equal times in the row order
``user_id``     String or integer, optional   who listened
=============== ============================= ==================================================

A column ``explicit_feedback`` may stand beside them, in [-1, 1]: below 0 the track was disliked, above 0
liked, 0 or null unknown. Other columns are allowed and left aside.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import polars as pl

__all__ = [
    "CANONICAL_COLUMNS",
    "check_log_columns",
    "describe_columns",
    "name_unreadable",
    "resolve_schema",
]

CANONICAL_COLUMNS = (
    "session_id",
    "item_id",
    "feedback",
    "explicit_feedback",
    "position",
    "timestamp",
    "user_id",
)
_REQUIRED = ("session_id", "item_id", "feedback")
_HISTORY = ("item_id", "timestamp")


def check_log_columns(log: pl.LazyFrame | pl.DataFrame, *, history: bool = False) -> list[str]:
    """Look at the columns of a canonical table, not yet at its rows.

    Args:
        log: The table.
        history: Whether its sessions are still to be cut: it then needs ``timestamp``, has no ``session_id``,
            and may have no ``feedback``; without ``user_id`` it is one listener's.

    Returns:
        The canonical columns that it has, in the canonical order.

    Raises:
        TypeError: ``log`` is no polars frame.
        ValueError: A needed column is missing or a column has another type; the message lists the columns.

    Example:
        >>> check_log_columns(pl.DataFrame({"item_id": [7], "session_id": [1]}))
        Traceback (most recent call last):
            ...
        ValueError: `log` must have the column 'feedback', got item_id (Int64), session_id (Int64). ...
    """
    schema = resolve_schema("log", log)
    if history and "session_id" in schema:
        raise ValueError(
            f"`log` must not have a column 'session_id' yet, got {describe_columns(schema)}. "
            "Leave `gap_minutes` out to keep the sessions, or drop the column to cut them anew."
        )
    for column in _HISTORY if history else _REQUIRED:
        if column not in schema:
            raise ValueError(
                f"`log` must have the column {column!r}, got {describe_columns(schema)}. "
                "`read_table` maps the columns of another table to these names."
            )
    if "position" not in schema and "timestamp" not in schema:
        raise ValueError(
            f"`log` must have a column 'position' or 'timestamp', got {describe_columns(schema)}. "
            "The order of a session's tracks comes from one of them."
        )
    _check_types(schema)
    return [column for column in CANONICAL_COLUMNS if column in schema]


@contextmanager
def name_unreadable() -> Iterator[None]:
    """Say what to do where a table cannot be read to its end.

    Raises:
        ValueError: In place of polars' error, or the operating system's.

    Example:
        >>> with name_unreadable():
        ...     raise OSError("unexpected end of file")
        Traceback (most recent call last):
            ...
        ValueError: `log` must be readable to its last row, got OSError: unexpected end of file. ...
    """
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise ValueError(
            f"`log` must be readable to its last row, got {type(error).__name__}: {reason}. "
            "A file is cut short, damaged, or not what its first rows say; read them one by one to find it."
        ) from error


def describe_columns(schema: Mapping[str, object] | Iterable[str]) -> str:
    """Name the columns of a table for an error message.

    Args:
        schema: Names with types, or names only.

    Returns:
        The names, separated by commas, with the types where there are some.

    Example:
        >>> describe_columns({"user": pl.String()})
        'user (String)'
    """
    if isinstance(schema, Mapping):
        names = [f"{name} ({dtype})" for name, dtype in schema.items()]
    else:
        names = list(schema)
    return ", ".join(names) or "no columns"


def resolve_schema(name: str, frame: pl.LazyFrame | pl.DataFrame) -> pl.Schema:
    """The columns of a table; a lazy one may have to open its files for it.

    Args:
        name: The argument's name, as the caller wrote it.
        frame: The table.

    Returns:
        Its schema.

    Raises:
        TypeError: ``frame`` is no polars frame.
        ValueError: Its columns cannot be told: a file is damaged or gone, or an expression is wrong.

    Example:
        >>> resolve_schema("log", pl.DataFrame({"item_id": [7]})).names()
        ['item_id']
    """
    if not isinstance(frame, pl.LazyFrame | pl.DataFrame):
        raise TypeError(
            f"`{name}` must be a polars LazyFrame or DataFrame, got {type(frame).__name__}. "
            "`read_table` makes one from CSV or parquet files."
        )
    try:
        return frame.lazy().collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(
            f"`{name}` must be a table whose columns can be read, got {type(error).__name__}: {error}. "
            "Check the files that it scans and the expressions on top of them."
        ) from error


def _check_types(schema: pl.Schema) -> None:
    """Raise where a canonical column has a type that it cannot have."""
    for column in CANONICAL_COLUMNS:
        dtype = schema.get(column)
        if dtype is None:
            continue
        if column.endswith("_id"):
            fits, wanted = dtype == pl.String or dtype.is_integer(), "String or an integer type"
        elif column == "position":
            fits, wanted = dtype.is_integer(), "an integer type"
        elif column == "timestamp":
            fits, wanted = dtype.is_numeric() or dtype == pl.Datetime, "Datetime or a number of seconds"
        else:
            fits, wanted = dtype.is_numeric(), "a number in [-1, 1]"
        if not fits:
            raise ValueError(
                f"`log` must have {wanted} in column {column!r}, got {dtype}. "
                "Convert it with `log.with_columns(...)` or `.cast(...)` first."
            )
