"""The canonical table that every reader returns, and the checks of its columns.

| column | type | meaning |
|---|---|---|
| `session_id` | String or integer | the session of the row |
| `item_id` | String or integer | the item; null if the source names none |
| `feedback` | Float32 in [-1, 1] | below 0 skipped (-1: at once), above 0 listened, 0 unknown |
| `position` | integer | the order within a session, if the source has one |
| `timestamp` | Datetime, or seconds | otherwise the order; equal times in the row order |
| `user_id` | String or integer, optional | the listener |
| `explicit_feedback` | Float32 in [-1, 1], optional | below 0 disliked, above 0 liked, 0 or null unknown |
| `tie_order` | integer, optional | the order of equal times, if it is not the row order |
| `copy_key` | any type, optional | distinguishes plays that are equal in all other columns |

Other columns are ignored. Readers add `tie_order` for files that run from the newest play to the oldest, and
`copy_key` if the source knows more about a play than the other columns. Rows that are equal in all columns
are copies of one play. The preparation uses both columns and drops them.

Feedback of 0 (or null) is unknown, and counts as listened. Only with a `skip_threshold` above 0 it is a skip,
like all feedback below the threshold.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import polars as pl

__all__ = [
    "CANONICAL_COLUMNS",
    "GRADE_FLAG",
    "ArrowTable",
    "Table",
    "check_log_columns",
    "describe_columns",
    "describe_polars_error",
    "name_unreadable",
    "resolve_schema",
    "to_frame",
]


class ArrowTable(Protocol):
    """Any table that exports itself through Arrow's C stream: pandas, pyarrow, DuckDB, Ibis and others."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return a capsule with the stream of rows."""
        ...


Table = pl.LazyFrame | pl.DataFrame | ArrowTable | Sequence[Mapping[str, Any]]

CANONICAL_COLUMNS = (
    "session_id",
    "item_id",
    "feedback",
    "explicit_feedback",
    "position",
    "timestamp",
    "user_id",
    "tie_order",
    "copy_key",
)
_REQUIRED = ("session_id", "item_id", "feedback")
_HISTORY = ("item_id", "timestamp")
_QUERY = "This error occurred"  # polars describes the query from here on
GRADE_FLAG = (
    'Grade a flag with `pl.when(pl.col("listened")).then(1.0).otherwise(-1.0)`, or map one of skips with '
    "`read_table(..., skipped=...)`."
)


def check_log_columns(log: pl.LazyFrame | pl.DataFrame, *, history: bool) -> list[str]:
    """Check the columns of a canonical table, not its rows, and return them in the canonical order.

    A listening `history` needs `timestamp`, has no `session_id`, and may have no `feedback`; without
    `user_id` all plays are one listener's.
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
    """Turn errors of reading a table into a `ValueError` that says what to do.

    An error of a reader is kept, without what polars adds to it.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(
            f"`log` must be readable to its last row, got {describe_polars_error(error)}. "
            "A file is cut short, damaged, or not what its first rows say; read them one by one to find it."
        ) from error
    except ValueError as error:
        # A reader's own message; polars has added the expression.
        message, _, query = str(error).partition(_QUERY)
        if query:
            raise ValueError(message.rstrip()) from error
        raise


def describe_polars_error(error: Exception) -> str:
    """Return the type and text of an error, without polars' description of the query."""
    reason = str(error).split("\n\n", maxsplit=1)[0].split(_QUERY, maxsplit=1)[0]
    return f"{type(error).__name__}: {' '.join(reason.split()).rstrip('.')}"


def describe_columns(schema: Mapping[str, object] | Iterable[str]) -> str:
    """Return the columns of a table as text for an error message."""
    if isinstance(schema, Mapping):
        names = [f"{name} ({dtype})" for name, dtype in schema.items()]
    else:
        names = list(schema)
    return ", ".join(names) or "no columns"


def resolve_schema(name: str, frame: pl.LazyFrame | pl.DataFrame) -> pl.Schema:
    """Return the columns of a table; a lazy one may have to open its files."""
    try:
        return frame.lazy().collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(
            f"`{name}` must be a table whose columns can be read, got {describe_polars_error(error)}. "
            "Check the files that it scans and the expressions on top of them."
        ) from error


def to_frame(name: str, table: Table) -> pl.LazyFrame | pl.DataFrame:
    """Return a table of any supported kind as a polars frame; polars frames are returned unchanged.

    NaN in a column of pandas becomes null, because pandas marks missing numbers so. The index of pandas is
    dropped.
    """
    if isinstance(table, pl.LazyFrame | pl.DataFrame):
        return table
    rows = isinstance(table, list | tuple) and all(isinstance(row, Mapping) for row in table)
    if not rows and not (hasattr(table, "__arrow_c_stream__") and not isinstance(table, pl.Series | type)):
        raise TypeError(
            f"`{name}` must be a polars, pandas or Arrow table or a list of dictionaries, got "
            f"{type(table).__name__}. `read_table` reads CSV and Parquet files."
        )
    try:
        return pl.DataFrame(cast("Any", table), nan_to_null=True, infer_schema_length=None)
    except Exception as error:  # Whatever pandas, pyarrow or polars raises.
        raise ValueError(
            f"`{name}` must be a table that polars can convert, got {describe_polars_error(error)}. Give "
            "each column one type; text columns of pandas also need pyarrow: `pip install pyarrow`."
        ) from error


def _check_types(schema: pl.Schema) -> None:
    """Raise if a canonical column has a wrong type."""
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
            cure = "Convert it with `log.with_columns(...)` or `.cast(...)` first."
            raise ValueError(
                f"`log` must have {wanted} in column {column!r}, got {dtype}. "
                f"{GRADE_FLAG if column.endswith('feedback') else cure}"
            )
