"""The canonical table that every reader returns: its columns, their checks, and its rows in parts.

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

import shutil
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning._checks import check_choice

__all__ = [
    "CANONICAL_COLUMNS",
    "GRADE_FLAG",
    "ArrowTable",
    "Progress",
    "Table",
    "TableParts",
    "are_compact_dates",
    "arrange_parts",
    "check_log_columns",
    "check_names",
    "count_missing",
    "count_within",
    "describe_columns",
    "describe_polars_error",
    "drop_copies",
    "drop_repeated",
    "first_rows",
    "in_canonical_order",
    "in_listening_order",
    "name_unreadable",
    "no_progress",
    "order_rows",
    "read_chunks",
    "refuse_compact_dates",
    "resolve_schema",
    "run_lengths",
    "sum_counts",
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
_MOST_COLUMNS = 20
_LONGEST_NAME = 60
_LONGEST_REASON = 500
# As seconds, these dates lie within a month of 1970, from which hardly any log comes.
_COMPACT_DATES = (19000101, 21001231)
_ROWS_LOOKED_AT = 1000
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


def check_names(
    name: str, names: Sequence[str], *, kind: str = "column", choices: Collection[str] | None = None
) -> None:
    """Raise unless an argument lists different names of a kind, of some choices if they are given."""
    if isinstance(names, str) or not all(isinstance(one, str) for one in names):
        raise TypeError(f"`{name}` must be a list of names, got {names!r}. Put names into a list.")
    if choices is not None:
        for one in names:
            check_choice(name, one, choices)
    if len(set(names)) < len(names):
        raise ValueError(f"`{name}` must name each {kind} once, got {list(names)}. Drop the repetition.")


@contextmanager
def name_unreadable(name: str = "log") -> Iterator[None]:
    """Turn errors of reading a table into a `ValueError` that says what to do.

    polars panics on some damaged files; its `PanicException` is no `Exception`. An error of a reader is
    kept, without what polars adds to it.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise ValueError(
            f"`{name}` must be readable to its last row, got {describe_polars_error(error)}. "
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
    return f"{type(error).__name__}: {_shorten(' '.join(reason.split()).rstrip('.'), _LONGEST_REASON)}"


def describe_columns(schema: Mapping[str, object] | Iterable[str]) -> str:
    """Return the first columns of a table as text for an error message."""
    if isinstance(schema, Mapping):
        names = [f"{_shorten(name, _LONGEST_NAME)} ({dtype})" for name, dtype in schema.items()]
    else:
        names = [_shorten(name, _LONGEST_NAME) for name in schema]
    more = [f"and {len(names) - _MOST_COLUMNS:,} more"] if len(names) > _MOST_COLUMNS else []
    return ", ".join([*names[:_MOST_COLUMNS], *more]) or "no columns"


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def resolve_schema(name: str, frame: pl.LazyFrame | pl.DataFrame) -> pl.Schema:
    """Return the columns of a table; a lazy one may have to open its files."""
    try:
        return frame.lazy().collect_schema()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
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


def are_compact_dates(times: pl.Series) -> bool:
    """Return whether the first times are numbers such as 20240131, which are no seconds."""
    if not times.dtype.is_numeric():
        return False
    first = times.head(_ROWS_LOOKED_AT).drop_nulls()
    days = first.cast(pl.Int64, strict=False)
    dates = days.cast(pl.String).str.to_date("%Y%m%d", strict=False)
    compact = days.is_between(*_COMPACT_DATES) & dates.is_not_null() & (days == first)
    return len(first) > 0 and compact.all(ignore_nulls=False) is True


def refuse_compact_dates(name: str, times: pl.Series) -> None:
    """Raise if the first times of a table are compact dates."""
    if are_compact_dates(times):
        raise ValueError(
            f"`{name}` must have seconds or a Datetime in column 'timestamp', got dates such as "
            f"{times.drop_nulls()[0]:.0f}. Convert them with "
            "`pl.col('timestamp').cast(pl.Int64).cast(pl.String).str.to_datetime('%Y%m%d')`."
        )


def count_missing(ids: pl.Series) -> int:
    """Return the number of ids that are null or blank."""
    blank = int((ids.str.strip_chars() == "").sum()) if ids.dtype == pl.String else 0
    return ids.null_count() + blank


# Called with the step's name, the amount done, and the total (None if unknown).
Progress = Callable[[str, int, int | None], None]


def no_progress(step: str, done: int, total: int | None) -> None:
    """Do nothing."""


Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)
_GROUP_ROWS = 1 << 16
# Keys that are sampled from each part to find the bounds of the parts.
_SAMPLES = 1 << 12


class TableParts:
    """The parts of a table: frames, or Parquet files that `replace` overwrites."""

    def __init__(self, parts: Iterable[pl.DataFrame | Path]) -> None:
        self._parts = list(parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[pl.DataFrame]:
        return (_load(part) for part in self._parts)

    def replace(
        self,
        function: Callable[[pl.DataFrame], pl.DataFrame],
        *,
        step: str,
        on_progress: Progress,
    ) -> None:
        """Replace each part by the result of a function, which returns the same object if nothing changes."""
        for number, part in enumerate(self._parts):
            before = _load(part)
            after = function(before)
            on_progress(step, number + 1, len(self))
            if after is before:
                continue
            if isinstance(part, Path):
                after.write_parquet(part, compression="lz4", row_group_size=_GROUP_ROWS)
            else:
                self._parts[number] = after


def _load(part: pl.DataFrame | Path) -> pl.DataFrame:
    return pl.read_parquet(part, glob=False) if isinstance(part, Path) else part


def run_lengths(values: pl.Series) -> NDArray[np.int64]:
    """Return the lengths of runs of equal values, [runs] int64."""
    return values.rle().struct.field("len").to_numpy().astype(np.int64)


def count_within(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0, 1, … within each of some runs, [sum of the lengths] int64."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def first_rows(table: pl.LazyFrame, columns: Sequence[str], count: int) -> pl.DataFrame:
    """Return some columns of the first rows, of none if they are wrong, which all rows report when read."""
    chosen = table.select(columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return chosen.head(count).collect(engine="streaming")
        except (ValueError, OSError, pl.exceptions.PolarsError):
            return pl.DataFrame(schema=chosen.collect_schema())


def sum_counts(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Sum `count` by `item_id`, frame by frame, so memory holds one row for each item."""
    total: pl.DataFrame | None = None
    for frame in frames:
        added = frame.group_by("item_id").agg(pl.col("count").sum())
        if total is not None:
            added = pl.concat([total, added]).group_by("item_id").agg(pl.col("count").sum())
        total = added
    assert total is not None, "a table has at least one part"  # noqa: S101
    return total


def read_chunks(log: pl.LazyFrame | pl.DataFrame, rows: int | None) -> Iterator[pl.DataFrame]:
    """Yield about `rows` rows at a time (None for all), in order; at least one frame, maybe empty."""
    with name_unreadable():
        if rows is None:
            yield log.lazy().collect()
            return
        empty = True
        for chunk in log.lazy().collect_batches(chunk_size=rows, maintain_order=True, engine="streaming"):
            empty = False
            yield chunk
        if empty:
            yield pl.DataFrame(schema=log.lazy().collect_schema())


def arrange_parts(
    chunks: Iterable[pl.DataFrame], key: str | None, rows: int | None, folder: Path | None
) -> TableParts:
    """Bring the rows of each session, or of each user, together, in their order.

    This is an external merge sort. Chunks that do not fit into `rows` are written to files, each sorted by
    the key; then one part at a time is read from all files. Keys ascend from part to part. A key with more
    than `rows` rows is not split.
    """
    pieces = _join_small(iter(chunks), rows)
    first = next(pieces)
    second = next(pieces, None)
    if second is None or rows is None or folder is None or key is None:
        return TableParts([first] if second is None else [pl.concat([first, second, *pieces])])
    runs = folder / "runs"
    runs.mkdir()
    files: list[Path] = []
    spacing = max(1, rows // _SAMPLES)
    samples: list[pl.Series] = []
    for piece in chain((first, second), pieces):
        run = piece.sort(key, maintain_order=True)
        files.append(runs / f"{len(files)}.parquet")
        # Parquet keeps the least and greatest key of each row group, so most groups are not read below.
        run.write_parquet(files[-1], compression="lz4", row_group_size=_GROUP_ROWS)
        sample = run[key].gather_every(spacing)
        # A copy, because a selection of strings keeps all strings of the run in memory.
        samples.append(pl.Series(key, sample.to_list(), dtype=sample.dtype))
    parts: list[Path] = []
    for low, high in _bounds(pl.concat(samples), max(1, rows // spacing)):
        part = pl.concat([_between(file, key, low, high) for file in files]).collect()
        parts.append(folder / f"part-{len(parts)}.parquet")
        part.write_parquet(parts[-1], compression="lz4", row_group_size=_GROUP_ROWS)
    shutil.rmtree(runs)
    return TableParts(parts)


def _join_small(chunks: Iterator[pl.DataFrame], rows: int | None) -> Iterator[pl.DataFrame]:
    """Yield chunks of at least `rows` rows, except the last."""
    pending: list[pl.DataFrame] = []
    for chunk in chunks:
        pending.append(chunk)
        if rows is not None and sum(frame.height for frame in pending) >= rows:
            yield pl.concat(pending)
            pending = []
    if pending:
        yield pl.concat(pending)


def _bounds(sample: pl.Series, step: int) -> Iterator[tuple[Any, Any]]:
    """Yield the least key of each part and of the next one; None for no bound."""
    starts = sample.sort().gather_every(step).unique(maintain_order=True).to_list()[1:]
    yield from zip([None, *starts], [*starts, None], strict=True)


def _between(file: Path, key: str, low: Any, high: Any) -> pl.LazyFrame:
    rows = pl.scan_parquet(file, glob=False)
    if low is not None:
        rows = rows.filter(pl.col(key) >= low)
    if high is not None:
        rows = rows.filter(pl.col(key) < high)
    return rows


def in_canonical_order(table: pl.LazyFrame) -> pl.LazyFrame:
    """Return the canonical columns that a table has, in their order."""
    schema = table.collect_schema()
    return table.select(name for name in CANONICAL_COLUMNS if name in schema)


def in_listening_order(history: Frame) -> Frame:
    """Sort plays by `tie_order` if there is one, and drop it."""
    if "tie_order" not in history.collect_schema():
        return history
    return history.sort("tie_order", maintain_order=True).drop("tie_order")


def order_rows(table: pl.DataFrame, key: str, order: str) -> pl.DataFrame:
    """Sort rows by two columns without nulls, stably, after a check whether they are sorted already."""
    # Most logs are sorted, and sorting text is slow.
    if not table[key].is_sorted():
        table = table.sort(key, maintain_order=True)
    place = table[order].to_physical()
    if ((table[key].rle_id().diff() == 0) & (place < place.shift(1))).any():
        table = table.sort(pl.col(key).rle_id(), order, maintain_order=True)
    return table


def drop_copies(plays: pl.DataFrame) -> pl.DataFrame:
    """Drop rows that repeat another in every canonical column; its context may differ."""
    compared = [name for name in plays.columns if name in CANONICAL_COLUMNS]
    return plays.unique(compared, keep="first", maintain_order=True)


def drop_repeated(table: pl.DataFrame, key: str, order: str) -> pl.DataFrame:
    """Drop rows that repeat another in every canonical column, of rows that `order_rows` has sorted."""
    follows = (table[key] == table[key].shift(1)) & (table[order] == table[order].shift(1))
    follows = follows.fill_null(False)
    if not follows.any():
        return table
    # Repeated rows are equal in both columns, so only such rows are compared in all columns.
    tied = follows | follows.shift(-1, fill_value=False)
    first = drop_copies(table.with_row_index("_place").filter(tied))["_place"]
    kept = ~tied
    return table.filter(kept.scatter(first, True))
