"""Lines read as text and parsed strictly: an error shows a wrong line with its file and its row."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from skipcl_lightning.data.readers.columns import ROW
from skipcl_lightning.data.readers.files import read_first_line

__all__ = [
    "ARTIST_TRACK_DASH",
    "describe_wrong",
    "parse_lines",
    "require",
    "scan_fields",
]

ARTIST_TRACK_DASH = " \N{EN DASH} "
_MOST_QUOTED = 60
_LINE = "line"


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
        A lazy table of String columns, and the number of the row, for `parse_columns`.

    Raises:
        ValueError: The file is empty or no text, or its first line has another number of fields.
    """
    wanted = f"{len(columns)} fields with {separator!r} between them"
    first = read_first_line(file)
    if first.count(separator) != len(columns) - 1:
        raise ValueError(describe_wrong(first, file, 1, wanted))
    split = partial(_split_fields, file=file, columns=tuple(columns), separator=separator, wanted=wanted)
    schema = {ROW: pl.UInt32, **dict.fromkeys(columns, pl.String)}
    return _scan_lines(file).map_batches(split, schema=schema, streamable=True)


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
    parse_each(pl.DataFrame({ROW: [1], _LINE: [read_first_line(file)]}))
    return _scan_lines(file).map_batches(parse_each, schema={_LINE: dtype}, streamable=True)


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


def describe_wrong(line: str, file: Path, row: int, wanted: str) -> str:
    """Return the message for a line that is wrong.

    Args:
        line: The line.
        file: The file that it is read from.
        row: The number of the line, from 1.
        wanted: What a line must hold.

    Returns:
        The message.

    Example:
        >>> describe_wrong("a,b", Path("log.csv"), 7, "3 fields")
        "`paths` must hold 3 fields in every line, got 'a,b' in row 7 of 'log.csv'. ..."
    """
    return (
        f"`paths` must hold {wanted} in every line, got {line[:_MOST_QUOTED]!r} in row {row} of "
        f"{str(file)!r}. Correct or remove that row, or download the file again."
    )


def _scan_lines(file: Path) -> pl.LazyFrame:
    # A line holds no line break, so that this separator leaves it whole.
    text = pl.scan_csv(
        file,
        separator="\n",
        quote_char=None,
        has_header=False,
        schema={_LINE: pl.String},
        row_index_name=ROW,
        row_index_offset=1,
        glob=False,
    )
    return text.filter(pl.col(_LINE).is_not_null())


def _split_fields(
    lines: pl.DataFrame, *, file: Path, columns: Sequence[str], separator: str, wanted: str
) -> pl.DataFrame:
    line = lines[_LINE]
    wrong = lines.filter(line.str.count_matches(separator, literal=True) != len(columns) - 1)
    if wrong.height:
        row, first = wrong.select(ROW, _LINE).row(0)
        raise ValueError(describe_wrong(first, file, row, wanted))
    fields = line.str.split_exact(separator, len(columns) - 1).struct.rename_fields(columns)
    return lines.select(ROW).hstack(fields.struct.unnest())


def _parse_each(
    lines: pl.DataFrame, *, parse: Callable[[str], Any], file: Path, dtype: pl.DataType | type[pl.DataType]
) -> pl.DataFrame:
    parsed = []
    for row, line in lines.select(ROW, _LINE).iter_rows():
        try:
            parsed.append(parse(line))
        except (ValueError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"`paths` must hold lines of the data set's own form, got {line[:_MOST_QUOTED]!r} in row "
                f"{row} of {str(file)!r}: {error}. Correct or remove that line, or download the file again."
            ) from error
    return pl.DataFrame({_LINE: pl.Series(parsed, dtype=dtype)})
