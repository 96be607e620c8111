"""Strict parsing of columns: a wrong value is an error that names its file, row and column."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import polars as pl

from skipcl_lightning._checks import check_choice, check_number
from skipcl_lightning.data.readers.files import ROW, read_header

__all__ = [
    "ARTIST_TRACK_DASH",
    "PLACEHOLDER_IDS",
    "PLACEHOLDER_NAMES",
    "PLAY_RATIO_LABELS",
    "Column",
    "cast_column",
    "feedback_from_ratio",
    "flag_column",
    "integer_column",
    "is_placeholder",
    "known",
    "number_column",
    "parse_columns",
    "scan_csv_text",
    "text_column",
    "time_column",
]

ARTIST_TRACK_DASH = " \N{EN DASH} "
# Texts for "unknown" in exports, in lower case. A track may really be called "None" or "Unknown".
PLACEHOLDER_IDS = ("", "none", "null", "nan", "undefined", "unknown")
PLACEHOLDER_NAMES = ("", "unknown artist", "unknown track", "<unknown>", "[unknown]", "[untitled]")
_SURPLUS = "(surplus)"
_MOST_QUOTED = 60
_REPAIR = "Correct or remove that row, or download the file again."
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_ISO = (
    r"^(?P<date>\d{4}-\d{2}-\d{2})"
    r"(?:[T ](?P<minute>\d{2}:\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
    r" ?(?:[Zz]|UTC|(?P<sign>[+-])(?P<hours>\d{2}):?(?P<minutes>\d{2})?)?)?$"
)
_LARGEST_WHOLE = 2**53


@dataclass(frozen=True)
class Column:
    """The parsing of one column.

    `parse` returns null where a value is wrong, and `wanted` names what is right. An optional value may be
    null or an empty text; it is then null. An empty `output` keeps the column's name.
    """

    name: str
    parse: Callable[[pl.Series], pl.Series]
    dtype: pl.DataType | type[pl.DataType]
    wanted: str
    optional: bool = field(default=False, kw_only=True)
    cure: str = field(default=_REPAIR, kw_only=True)
    output: str = field(default="", kw_only=True)


def cast_column(name: str, dtype: pl.DataType | type[pl.DataType], *, output: str = "") -> Column:
    """Return a column of a typed table that is cast to another type; nulls stay null."""
    return Column(
        name, partial(_cast, dtype=dtype), dtype, f"a value of {dtype}", optional=True, output=output
    )


def integer_column(name: str, *, optional: bool = False) -> Column:
    """Return a column of integers, which becomes Int64; `" 3 "` and `"3.0"` are integers too."""
    return Column(name, _to_integers, pl.Int64, "an integer", optional=optional)


def number_column(
    name: str,
    *,
    minimum: float = -float("inf"),
    maximum: float = float("inf"),
    optional: bool = False,
    cure: str = _REPAIR,
) -> Column:
    """Return a column of finite numbers in a range, which becomes Float64."""
    bounded = minimum > -float("inf") or maximum < float("inf")
    wanted = f"a number in [{minimum:g}, {maximum:g}]" if bounded else "a finite number"
    parse = partial(_to_numbers, minimum=minimum, maximum=maximum)
    return Column(name, parse, pl.Float64, wanted, optional=optional, cure=cure)


def flag_column(name: str, *, optional: bool = False) -> Column:
    """Return a column of flags (true or false in any case, or 1 or 0), which becomes Boolean."""
    return Column(name, _to_flags, pl.Boolean, "true or false, or 1 or 0,", optional=optional)


def text_column(name: str, *, optional: bool = False) -> Column:
    """Return a column of texts, which stay as they are; blank ones are null if `optional`."""
    return Column(name, _to_texts, pl.String, "a text", optional=optional)


def time_column(
    name: str, time_format: str | None = None, *, optional: bool = False, cure: str = _REPAIR
) -> Column:
    """Return a column of times: ISO 8601 or one given format, in UTC unless a value has an offset.

    The column becomes Datetime in microseconds and UTC.
    """
    wanted = "a time in ISO 8601" if time_format is None else f"a time in the format {time_format!r}"
    parse: Callable[[pl.Series], pl.Series] = (
        _to_iso_times if time_format is None else partial(_to_times, time_format=time_format)
    )
    return Column(name, parse, pl.Datetime("us", "UTC"), wanted, optional=optional, cure=cure)


def scan_csv_text(
    file: Path, needed: Sequence[str], *, separator: str = ",", quote_char: str | None = '"'
) -> pl.LazyFrame:
    """Scan a CSV file with a header, all columns as text; `parse_columns` must follow.

    No type is guessed, so the first rows have no effect on types. The table also has the number of the row
    (the header is row 1). A row with too many fields is an error of `parse_columns`; missing fields at its
    end are null. A `quote_char` of None makes quotation marks ordinary characters.
    """
    header = read_header(file, needed, separator=separator)
    table = pl.scan_csv(
        file,
        separator=separator,
        quote_char=quote_char,
        schema=dict.fromkeys([*header, _SURPLUS], pl.String),
        missing_columns="insert",
        truncate_ragged_lines=True,
        row_index_name=ROW,
        row_index_offset=2,
        glob=False,
    )
    return table.select(ROW, _SURPLUS, *dict.fromkeys(needed))


def parse_columns(
    table: pl.LazyFrame, file: Path | None, columns: Sequence[Column], *, name: str = "paths"
) -> pl.LazyFrame:
    """Parse columns of a table when it is collected, which polars can stream; a wrong value is a ValueError.

    The message names `name`, the caller's argument, the file (None for a frame), the row and the column.
    """
    if ROW not in table.collect_schema():
        table = table.with_row_index(ROW, offset=1)
    # A function of the frame, because polars adds its own lines to errors of expressions.
    return table.map_batches(
        partial(_parse_part, columns=tuple(columns), file=file, name=name),
        schema={column.output or column.name: column.dtype for column in columns},
        streamable=True,
    )


def _parse_part(
    part: pl.DataFrame, *, columns: Sequence[Column], file: Path | None, name: str
) -> pl.DataFrame:
    where = "" if file is None else f" of {str(file)!r}"
    if _SURPLUS in part.columns:
        surplus = part.filter(pl.col(_SURPLUS).is_not_null()).select(ROW, _SURPLUS)
        if surplus.height:
            row, value = surplus.row(0)
            raise ValueError(
                f"`{name}` must hold rows with as many fields as the header, got a field more, "
                f"{_quote(value)}, in row {row}{where}. {_REPAIR}"
            )
    parsed = []
    for column in columns:
        values = part[column.name]
        if column.optional and values.dtype == pl.String:
            values = values.set(values.str.strip_chars() == "", None)
        found = column.parse(values)
        wrong = found.is_null() & values.is_not_null() if column.optional else found.is_null()
        if wrong.any():
            row, value = part.filter(wrong).select(ROW, column.name).row(0)
            raise ValueError(
                f"`{name}` must hold {column.wanted} in column {column.name!r} of every row, "
                f"got {_quote(value)} in row {row}{where}. {column.cure}"
            )
        parsed.append(found.alias(column.output or column.name))
    return pl.DataFrame(parsed)


def _quote(value: object) -> str:
    return repr(value[:_MOST_QUOTED] if isinstance(value, str) else value)


def _strip(values: pl.Series) -> pl.Series:
    return values.str.strip_chars() if values.dtype == pl.String else values


def _cast(values: pl.Series, *, dtype: pl.DataType | type[pl.DataType]) -> pl.Series:
    return values.cast(dtype, strict=False)


def _to_integers(values: pl.Series) -> pl.Series:
    stripped = _strip(values)
    integers = stripped.cast(pl.Int64, strict=False)
    if integers.null_count() == values.null_count() and not values.dtype.is_float():
        return integers
    numbers = stripped.cast(pl.Float64, strict=False)
    whole = (numbers == numbers.round()) & (numbers.abs() < _LARGEST_WHOLE)
    exact = numbers.set(~whole, None).cast(pl.Int64, strict=False)
    return exact if values.dtype.is_float() else integers.zip_with(integers.is_not_null(), exact)


def _to_numbers(values: pl.Series, *, minimum: float, maximum: float) -> pl.Series:
    numbers = _strip(values).cast(pl.Float64, strict=False)
    return numbers.set(~(numbers.is_between(minimum, maximum) & numbers.is_finite()), None)


def _to_flags(values: pl.Series) -> pl.Series:
    texts = _strip(values.cast(pl.String)).str.to_lowercase()
    return texts.replace_strict(_FLAGS, default=None, return_dtype=pl.Boolean)


def _to_texts(values: pl.Series) -> pl.Series:
    return values.set(values == "", None)


def _to_times(values: pl.Series, *, time_format: str) -> pl.Series:
    times = _strip(values).str.to_datetime(time_format, time_unit="us", strict=False)
    zone = times.dtype.time_zone if isinstance(times.dtype, pl.Datetime) else None
    return times.dt.replace_time_zone("UTC") if zone is None else times.dt.convert_time_zone("UTC")


def _to_iso_times(values: pl.Series) -> pl.Series:
    groups = pl.col("groups").struct
    text = pl.concat_str(
        groups.field("date"),
        pl.lit(" "),
        groups.field("minute").fill_null("00:00"),
        pl.lit(":"),
        groups.field("second").fill_null("00"),
        pl.lit("."),
        groups.field("fraction").fill_null("0").str.pad_end(9, "0"),
    )
    local = text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    size = pl.duration(
        hours=groups.field("hours").cast(pl.Int64).fill_null(0),
        minutes=groups.field("minutes").cast(pl.Int64).fill_null(0),
        time_unit="us",
    )
    time = pl.when(groups.field("sign") == "-").then(local + size).otherwise(local - size)
    extracted = _strip(values).str.extract_groups(_ISO).alias("groups").to_frame()
    return extracted.select(time.dt.replace_time_zone("UTC").alias(values.name)).to_series()


PLAY_RATIO_LABELS = ("binary", "ratio")


def feedback_from_ratio(ratio: pl.Expr, *, label: str, skip_ratio: float) -> pl.Expr:
    """Return the share of an item that was played as Float32 feedback in [-1, 1].

    Null, NaN, infinite or negative shares are unknown and give 0. `binary` gives -1 up to `skip_ratio` and +1
    above. `ratio` gives the distance from `skip_ratio`, scaled so that 0 gives -1 and 1 or more gives +1.
    """
    check_choice("label", label, PLAY_RATIO_LABELS)
    check_number("skip_ratio", skip_ratio, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    part = ratio.cast(pl.Float64)
    if label == "binary":
        known = pl.when(part <= skip_ratio).then(-1.0).otherwise(1.0)
    else:
        scale = pl.when(part <= skip_ratio).then(skip_ratio).otherwise(1 - skip_ratio)
        known = ((part - skip_ratio) / scale).clip(-1, 1)
    told = part.is_finite() & (part >= 0)
    return pl.when(told).then(known).otherwise(0.0).cast(pl.Float32).name.keep()


def is_placeholder(text: str | None, placeholders: Sequence[str]) -> bool:
    """Return whether a text of an export means "unknown": None, blank, or a placeholder in any case."""
    return text is None or text.strip().lower() in placeholders


def known(column: str, placeholders: Sequence[str]) -> pl.Expr:
    """Return a column of texts with null for placeholders (`is_placeholder`)."""
    text = pl.col(column)
    return pl.when(~text.str.strip_chars().str.to_lowercase().is_in(placeholders)).then(text).alias(column)
