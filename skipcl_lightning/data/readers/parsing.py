"""Columns and lines read as text and parsed strictly: a wrong value is shown with its file and column."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from skipcl_lightning.data.readers.files import read_first_line

__all__ = [
    "ARTIST_TRACK_DASH",
    "describe_wrong",
    "parse_column",
    "parse_integers",
    "parse_lines",
    "parse_numbers",
    "parse_times",
    "require",
    "require_text",
    "scan_fields",
]

ARTIST_TRACK_DASH = " \N{EN DASH} "
_MOST_QUOTED = 60
_LINE = "line"


def parse_column(
    column: str,
    file: Path,
    parse: Callable[[pl.Series], pl.Series],
    dtype: pl.DataType | type[pl.DataType],
    wanted: str,
    *,
    name: str = "paths",
) -> pl.Expr:
    """A column, parsed row by row; the first value that cannot be is a ValueError once it is collected.

    Args:
        column: Its name.
        file: Where it comes from.
        parse: From the values as read to those wanted, null where one is wrong.
        dtype: The type of these.
        wanted: What a value must be, for the message, as in ``"an integer"``.
        name: The argument's name, as the caller wrote it.

    Returns:
        The expression, which polars can stream.
    """
    strictly = partial(_parse_strictly, parse=parse, file=file, column=column, wanted=wanted, name=name)
    return pl.col(column).map_batches(strictly, return_dtype=dtype, is_elementwise=True)


def parse_integers(column: str, file: Path) -> pl.Expr:
    """A column of integers.

    Args:
        column: Its name.
        file: Where it comes from.

    Returns:
        An Int64 expression.
    """
    return parse_column(column, file, _to_integers, pl.Int64, "an integer")


def parse_numbers(column: str, file: Path, *, minimum: float, maximum: float) -> pl.Expr:
    """A column of numbers in a range.

    Args:
        column: Its name.
        file: Where it comes from.
        minimum: The least that a value may be.
        maximum: The most.

    Returns:
        A Float64 expression.
    """
    parse = partial(_to_numbers, minimum=minimum, maximum=maximum)
    return parse_column(column, file, parse, pl.Float64, f"a number in [{minimum:g}, {maximum:g}]")


def parse_times(column: str, file: Path, time_format: str, example: str) -> pl.Expr:
    """A column of times in UTC.

    Args:
        column: Its name.
        file: Where it comes from.
        time_format: How they are written, as in ``"%Y-%m-%d %H:%M:%S"``.
        example: One that is right, for the message.

    Returns:
        A Datetime expression, in microseconds and UTC.
    """
    parse = partial(_to_times, time_format=time_format)
    return parse_column(column, file, parse, pl.Datetime("us", "UTC"), f"a time as in {example!r}")


def require_text(column: str, file: Path) -> pl.Expr:
    """A column in which no text may be missing.

    Args:
        column: Its name.
        file: Where it comes from.

    Returns:
        A String expression.
    """
    return parse_column(column, file, _to_text, pl.String, "a text")


def scan_fields(file: Path, columns: Sequence[str], separator: str) -> pl.LazyFrame:
    r"""A file without a header, whose lines all have the same number of fields.

    Quotation marks are characters like any other. Empty lines are left out. A field that is there but empty
    is an empty text. The first line is looked at now; a later one with another number of fields is a
    ValueError once it is collected.

    Args:
        file: The file, which may be gzipped.
        columns: The names of the fields.
        separator: What stands between them, one character or several.

    Returns:
        A lazy table of String columns.

    Raises:
        ValueError: The file is empty or no text, or its first line has another number of fields.
    """
    wanted = f"{len(columns)} fields with {separator!r} between them"
    first = read_first_line(file)
    if first.count(separator) != len(columns) - 1:
        raise ValueError(describe_wrong(first, file, None, wanted))
    keep = partial(_keep_counted, separator=separator, count=len(columns) - 1)
    line = parse_column(_LINE, file, keep, pl.String, wanted)
    fields = line.str.split_exact(separator, len(columns) - 1).struct.rename_fields(columns)
    return _scan_lines(file).select(fields.alias("fields")).unnest("fields")


def parse_lines(
    file: Path, parse: Callable[[str], Any], dtype: pl.DataType | type[pl.DataType]
) -> pl.LazyFrame:
    """A file of which plain Python parses each line; empty ones are left out.

    The first line is parsed now, to see what file it is, the others once they are collected.

    Args:
        file: The file, which may be gzipped.
        parse: From a line to a value; a ValueError of it is told with the file and the line.
        dtype: The type of the values.

    Returns:
        A lazy table with the one column ``line``.

    Raises:
        ValueError: The file is empty or no text, or its first line cannot be parsed.
    """
    parse_each = partial(_parse_each, parse=parse, file=file, dtype=dtype)
    parse_each(pl.Series(_LINE, [read_first_line(file)]))
    return _scan_lines(file).select(
        pl.col(_LINE).map_batches(parse_each, return_dtype=dtype, is_elementwise=True)
    )


def require(right: bool, wrong: str) -> None:
    """Raise where a file does not say what it should.

    Args:
        right: Whether it does.
        wrong: What is wrong otherwise.

    Raises:
        ValueError: It does not.
    """
    if not right:
        raise ValueError(wrong)


def describe_wrong(value: object, file: Path, column: str | None, wanted: str, *, name: str = "paths") -> str:
    """The message for a value that is wrong.

    Args:
        value: The value.
        file: Where it comes from.
        column: The column's name; None for a whole line.
        wanted: What it must be.
        name: The argument's name, as the caller wrote it.

    Returns:
        The message.

    Example:
        >>> describe_wrong("two", Path("log.csv"), "position", "an integer")
        "`paths` must hold an integer in column 'position' of every row, got 'two' in 'log.csv'. ..."
    """
    where = "every line" if column is None else f"column {column!r} of every row"
    shown = value[:_MOST_QUOTED] if isinstance(value, str) else value
    return (
        f"`{name}` must hold {wanted} in {where}, got {shown!r} in {str(file)!r}. "
        "Mend or remove that row, or fetch the file again."
    )


def _scan_lines(file: Path) -> pl.LazyFrame:
    # A line holds no line break, so that this separator leaves it whole.
    text = pl.scan_csv(
        file, separator="\n", quote_char=None, has_header=False, schema={_LINE: pl.String}, glob=False
    )
    return text.filter(pl.col(_LINE).is_not_null())


def _parse_strictly(
    values: pl.Series,
    *,
    parse: Callable[[pl.Series], pl.Series],
    file: Path,
    column: str,
    wanted: str,
    name: str,
) -> pl.Series:
    parsed = parse(values)
    if parsed.null_count():
        wrong_value = values.filter(parsed.is_null())[0]
        place = None if column == _LINE else column
        raise ValueError(describe_wrong(wrong_value, file, place, wanted, name=name))
    return parsed


def _parse_each(
    lines: pl.Series, *, parse: Callable[[str], Any], file: Path, dtype: pl.DataType | type[pl.DataType]
) -> pl.Series:
    parsed = []
    for line in lines:
        try:
            parsed.append(parse(line))
        except (ValueError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"`paths` must hold lines of the data set's own form, got {line[:_MOST_QUOTED]!r} in "
                f"{str(file)!r}: {error}. Mend or remove that line, or fetch the file again."
            ) from error
    return pl.Series(lines.name, parsed, dtype=dtype)


def _to_integers(values: pl.Series) -> pl.Series:
    return values.cast(pl.Int64, strict=False)


def _to_numbers(values: pl.Series, *, minimum: float, maximum: float) -> pl.Series:
    numbers = values.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_between(minimum, maximum), None)


def _to_times(values: pl.Series, *, time_format: str) -> pl.Series:
    times = values.str.to_datetime(time_format, time_unit="us", strict=False)
    return times.dt.replace_time_zone("UTC")


def _to_text(values: pl.Series) -> pl.Series:
    return values.set(values == "", None)


def _keep_counted(lines: pl.Series, *, separator: str, count: int) -> pl.Series:
    return lines.set(lines.str.count_matches(separator, literal=True) != count, None)
