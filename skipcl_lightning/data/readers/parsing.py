"""Strict parsing of text lines: an error shows a wrong line with its file and row."""

import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from skipcl_lightning._checks import check_number
from skipcl_lightning.data.readers.columns import ROW
from skipcl_lightning.data.readers.files import read_first_line

__all__ = [
    "ARTIST_TRACK_DASH",
    "PLACEHOLDER_IDS",
    "PLACEHOLDER_NAMES",
    "DamagedLinesWarning",
    "check_max_damaged",
    "describe_wrong",
    "is_placeholder",
    "known",
    "parse_frame",
    "parse_lines",
    "require",
    "scan_fields",
]

ARTIST_TRACK_DASH = " \N{EN DASH} "
# Texts for "unknown" in exports, in lower case. A track may really be called "None" or "Unknown".
PLACEHOLDER_IDS = ("", "none", "null", "nan", "undefined", "unknown")
PLACEHOLDER_NAMES = ("", "unknown artist", "unknown track", "<unknown>", "[unknown]", "[untitled]")
# Damaged lines that are always accepted.
_FEW_LINES = 10
_MOST_NUMBERS = 5
_MOST_QUOTED = 60
_LINE = "line"


class DamagedLinesWarning(UserWarning):
    """Damaged lines of a file were dropped."""


def check_max_damaged(max_damaged: float) -> None:
    """Raise unless the share of damaged lines is in [0, 1).

    Args:
        max_damaged: The share.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of range.
    """
    check_number("max_damaged", max_damaged, minimum=0, maximum=1, open_maximum=True)


def is_placeholder(text: str | None, placeholders: Sequence[str]) -> bool:
    """Return whether a text of an export means "unknown".

    Args:
        text: The text.
        placeholders: `PLACEHOLDER_IDS` or `PLACEHOLDER_NAMES`.

    Returns:
        True for None, blank texts and placeholders in any case.

    Examples:
        >>> is_placeholder(" None", PLACEHOLDER_IDS), is_placeholder("None", PLACEHOLDER_NAMES)
        (True, False)
    """
    return text is None or text.strip().lower() in placeholders


def known(column: str, placeholders: Sequence[str]) -> pl.Expr:
    """Return a column of texts with null for placeholders (`is_placeholder`).

    Args:
        column: The column's name.
        placeholders: `PLACEHOLDER_IDS` or `PLACEHOLDER_NAMES`.

    Returns:
        A String expression.

    Examples:
        >>> pl.DataFrame({"id": ["m1", "None"]}).select(known("id", PLACEHOLDER_IDS))["id"].to_list()
        ['m1', None]
    """
    text = pl.col(column)
    return pl.when(~text.str.strip_chars().str.to_lowercase().is_in(placeholders)).then(text).alias(column)


def scan_fields(
    file: Path, columns: Sequence[str], separator: str, *, max_damaged: float = 0.0
) -> pl.LazyFrame:
    """Scan a file without a header, whose lines all have the same number of fields.

    Quotation marks are ordinary characters. Empty lines are left out, and empty fields are empty texts. The
    first line is checked now; later lines with another number of fields are damaged. They are dropped with a
    `DamagedLinesWarning`, or raise a ValueError when they are collected.

    Args:
        file: The file, which may be gzipped.
        columns: The names of the fields.
        separator: The separator, one character or several.
        max_damaged: The largest share of damaged lines among those read at once, in [0, 1); 10 are always
            accepted. 0 accepts none.

    Returns:
        A lazy table of String columns, and the number of the row, for `parse_columns`.

    Raises:
        ValueError: The file is empty or no text, or its first line has another number of fields.
    """
    wanted = f"{len(columns)} fields with {separator!r} between them"
    first = read_first_line(file)
    if first.count(separator) != len(columns) - 1:
        raise ValueError(describe_wrong(first, file, 1, wanted))
    split = partial(
        _split_fields,
        file=file,
        columns=tuple(columns),
        separator=separator,
        wanted=wanted,
        max_damaged=max_damaged,
    )
    schema = {ROW: pl.UInt32, **dict.fromkeys(columns, pl.String)}
    return _scan_lines(file).map_batches(split, schema=schema, streamable=True)


def parse_lines(
    file: Path,
    parse: Callable[[str], Any],
    dtype: pl.DataType | type[pl.DataType],
    *,
    max_damaged: float = 0.0,
) -> pl.LazyFrame:
    """Scan a file whose lines a Python function parses; empty lines are left out.

    The first line is parsed now, the others when they are collected. Lines that are no JSON are damaged: they
    are dropped with a `DamagedLinesWarning`, or raise a ValueError.

    Args:
        file: The file, which may be gzipped.
        parse: A function from a line to a value; its ValueError becomes one that names the file and the row.
        dtype: The type of the values.
        max_damaged: As for `scan_fields`.

    Returns:
        A lazy table with the one column `line`.

    Raises:
        ValueError: The file is empty or no text, or its first line cannot be parsed.
    """
    parse_each = partial(parse_frame, parse=parse, file=file, dtype=dtype)
    parse_each(pl.DataFrame({ROW: [1], _LINE: [read_first_line(file)]}))
    parse_part = partial(parse_each, max_damaged=max_damaged)
    return _scan_lines(file).map_batches(parse_part, schema={_LINE: dtype}, streamable=True)


def require(right: bool, wrong: str) -> None:
    """Raise a ValueError unless a file has the expected contents.

    Args:
        right: Whether it has.
        wrong: The error's text.

    Raises:
        ValueError: It does not.
    """
    if not right:
        raise ValueError(wrong)


def describe_wrong(line: str, file: Path, row: int, wanted: str) -> str:
    """Return the message for a wrong line.

    Args:
        line: The line.
        file: Its file.
        row: The number of the line, from 1.
        wanted: The expected contents.

    Returns:
        The message.

    Examples:
        >>> describe_wrong("a,b", Path("log.csv"), 7, "3 fields")
        "`paths` must hold 3 fields in every line, got 'a,b' in row 7 of 'log.csv'. ..."
    """
    return (
        f"`paths` must hold {wanted} in every line, got {line[:_MOST_QUOTED]!r} in row {row} of "
        f"{str(file)!r}. Correct or remove that row, or download the file again."
    )


def _scan_lines(file: Path) -> pl.LazyFrame:
    # A line has no line break, so this separator does not split it.
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
    lines: pl.DataFrame,
    *,
    file: Path,
    columns: Sequence[str],
    separator: str,
    wanted: str,
    max_damaged: float,
) -> pl.DataFrame:
    is_damaged = lines[_LINE].str.count_matches(separator, literal=True) != len(columns) - 1
    damaged = lines.filter(is_damaged)
    if damaged.height:
        if max_damaged == 0:
            row, first = damaged.select(ROW, _LINE).row(0)
            raise ValueError(describe_wrong(first, file, row, wanted))
        _report_damaged(damaged[ROW].to_list(), lines.height, file, max_damaged, f"lines with {wanted}")
        lines = lines.filter(~is_damaged)
    line = lines[_LINE]
    fields = line.str.split_exact(separator, len(columns) - 1).struct.rename_fields(columns)
    return lines.select(ROW).hstack(fields.struct.unnest())


def parse_frame(
    lines: pl.DataFrame,
    *,
    parse: Callable[[str], Any],
    file: Path | str,
    dtype: pl.DataType | type[pl.DataType],
    max_damaged: float = 0.0,
) -> pl.DataFrame:
    """Parse lines that are in memory, like `parse_lines` does with each part of a file.

    Args:
        lines: The number of each row, and the `line`.
        parse: As for `parse_lines`.
        file: The name of the file in messages.
        dtype: As for `parse_lines`.
        max_damaged: As for `scan_fields`.

    Returns:
        A table with the one column `line`.

    Raises:
        ValueError: A line cannot be parsed, or more lines are damaged than accepted.
    """
    parsed, damaged = [], []
    for row, line in lines.select(ROW, _LINE).iter_rows():
        try:
            parsed.append(parse(line))
        except (ValueError, OverflowError, RecursionError) as error:
            if max_damaged and isinstance(error, json.JSONDecodeError):
                damaged.append(row)
                continue
            raise ValueError(
                f"`paths` must hold lines of the data set's own form, got {line[:_MOST_QUOTED]!r} in row "
                f"{row} of {str(file)!r}: {error}. Correct or remove that line, or download the file again."
            ) from error
    if damaged:
        _report_damaged(damaged, lines.height, file, max_damaged, "lines of JSON")
    return pl.DataFrame({_LINE: pl.Series(parsed, dtype=dtype)})


def _report_damaged(rows: list[int], total: int, file: Path | str, max_damaged: float, wanted: str) -> None:
    """Warn about dropped lines, or raise if there are too many."""
    shown = ", ".join(f"{row:,}" for row in rows[:_MOST_NUMBERS])
    shown += ", …" if len(rows) > _MOST_NUMBERS else ""
    if len(rows) > max(_FEW_LINES, max_damaged * total):
        raise ValueError(
            f"`paths` must hold {wanted}, got {len(rows):,} others among {total:,} in {str(file)!r}: rows "
            f"{shown}. Download the file again, or raise `max_damaged`, {max_damaged:g} now."
        )
    warnings.warn(
        f"{len(rows):,} of {total:,} lines of {str(file)!r} are damaged and were dropped: rows {shown}. "
        "`max_damaged=0` refuses them.",
        DamagedLinesWarning,
        stacklevel=2,
    )
