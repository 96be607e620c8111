"""Files of a path, and strict parsing of their lines and columns: an error names file, row and column."""

import csv
import difflib
import gzip
import json
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, TextIO, cast

import polars as pl

from skipcl_lightning.data.canonical_table import describe_columns, resolve_schema

__all__ = [
    "ARTIST_TRACK_DASH",
    "PLACEHOLDER_IDS",
    "PLACEHOLDER_NAMES",
    "ROW",
    "Column",
    "DamagedLinesWarning",
    "Paths",
    "cast_column",
    "flag_column",
    "integer_column",
    "is_placeholder",
    "known",
    "list_files",
    "number_column",
    "parse_columns",
    "parse_frame",
    "parse_lines",
    "read_bytes",
    "read_first_line",
    "read_header",
    "require",
    "scan_csv_text",
    "scan_fields",
    "scan_parquet",
    "suggest_columns",
    "text_column",
    "time_column",
]

Paths = str | Path | Sequence[str | Path]
_LONGEST_LINE = 1 << 24
# More than any listener's own export.
_MOST_UNPACKED = 1 << 32
ROW = "(row)"
_LINE = "line"
# Damaged lines that are always accepted.
_FEW_LINES = 10
_MOST_NUMBERS = 5
_MOST_QUOTED = 60
_REPLACED = "\N{REPLACEMENT CHARACTER}".encode()


class DamagedLinesWarning(UserWarning):
    """Damaged lines of a file were dropped."""


def list_files(
    paths: Paths, patterns: Sequence[str], *, name: str = "paths", archives: bool = False
) -> list[Path]:
    """Return the files of `paths` without repeats, each folder's sorted by path, with 2 before 10.

    Folders are searched with their sub-folders for the patterns, such as `"*.csv"`. A named file is taken
    whatever its name. `archives` says whether ZIP archives are accepted.
    """
    several = [paths] if isinstance(paths, str | Path) else list(paths)
    if not several:
        raise ValueError(f"`{name}` must name at least one file or folder, got none. Check how it is built.")
    files: dict[Path, None] = {}
    for path in several:
        if not isinstance(path, str | Path):
            raise TypeError(f"`{name}` must hold strings or `pathlib.Path`s, got {type(path).__name__}.")
        files.update(dict.fromkeys(_expand(Path(path), patterns, name)))
    for file in files:
        if not archives and zipfile.is_zipfile(file):
            raise ValueError(
                f"`{name}` must hold the files themselves, got the ZIP archive {str(file)!r}. "
                "Unpack it first."
            )
    return list(files)


def read_bytes(file: Path, patterns: Sequence[str], *, name: str = "paths") -> list[tuple[str, bytes]]:
    """Return the contents of a small file: plain, gzipped, or the matching members of a ZIP archive.

    Nothing is unpacked to disk. Each has a name for messages; members are in the order of `list_files`.
    """
    try:
        if zipfile.is_zipfile(file):
            return _read_members(file, patterns, name)
        with gzip.open(file, "rb") if _is_gzipped(file) else file.open("rb") as opened:
            content = opened.read(_MOST_UNPACKED + 1)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"`{name}` must hold readable files, got {str(file)!r}: {error}. Download it again if it is cut "
            "short, or unpack it."
        ) from error
    _check_unpacked(len(content), file, name)
    return [(str(file), content)]


def _read_members(file: Path, patterns: Sequence[str], name: str) -> list[tuple[str, bytes]]:
    """Return the matching members of an archive, and check their sizes before and during reading."""
    with zipfile.ZipFile(file) as archive:
        members = [
            member
            for member in archive.infolist()
            if any(PurePosixPath(member.filename).match(pattern) for pattern in patterns)
        ]
        if not members:
            raise ValueError(
                f"`{name}` must hold files named {' or '.join(patterns)}, got the archive {str(file)!r} "
                "without. Unpack it, and name the files themselves."
            )
        _check_unpacked(sum(member.file_size for member in members), file, name)
        members.sort(key=lambda member: _natural(member.filename))
        # `read` stops at the size that the archive states, and checks the contents' checksum.
        return [(f"{file}/{member.filename}", archive.read(member)) for member in members]


def _check_unpacked(size: int, file: Path, name: str) -> None:
    if size > _MOST_UNPACKED:
        raise ValueError(
            f"`{name}` must unpack to at most {_MOST_UNPACKED / 2**30:g} GiB, got more in {str(file)!r}. "
            "Unpack it first."
        )


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in texts by value: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _expand(path: Path, patterns: Sequence[str], name: str) -> Iterable[Path]:
    """Return the files of one path."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(
            f"`{name}` must exist, got {str(path)!r}. Check the spelling and the working folder."
        )
    matching = {file for pattern in patterns for file in path.rglob(pattern) if file.is_file()}
    found = sorted(matching, key=lambda file: [_natural(part) for part in file.parts])
    if not found:
        raise ValueError(
            f"`{name}` must hold files named {' or '.join(patterns)}, got the folder {str(path)!r} without. "
            "Name the files themselves if they are called otherwise."
        )
    return found


def read_header(
    file: Path,
    needed: Iterable[str],
    *,
    separator: str = ",",
    name: str = "paths",
    has_separator: bool = False,
) -> list[str]:
    """Return the columns of a CSV file, none twice and among them those needed, from its first two lines.

    `name` is the caller's argument; `has_separator` says whether the caller has the argument `separator`.
    """
    with _open_text(file, "CSV", name=name) as stream:
        rows = [row for row, _ in zip(csv.reader(stream, delimiter=separator), range(2), strict=False)]
        only_returns = stream.newlines == "\r"
    if not rows:
        raise _empty(file, name)
    if only_returns:
        raise ValueError(
            f"`{name}` must hold files whose lines end with a line feed, got {str(file)!r}, whose lines end "
            "with a carriage return alone. Convert it, such as with `tr '\\r' '\\n'`."
        )
    header = rows[0]
    missing = [column for column in dict.fromkeys(needed) if column not in header]
    if missing:
        _refuse_separator(header, separator, file, name, has_separator)
        raise ValueError(
            f"`{name}` must hold files with one column {', '.join(map(repr, missing))} each, got "
            f"{str(file)!r} with {describe_columns(header)}.{suggest_columns(missing, header)} It needs a "
            f"header, and {separator!r} between the columns."
        )
    repeated = [column for column, count in Counter(header).items() if count > 1]
    if repeated:
        raise ValueError(
            f"`{name}` must hold files with one column {', '.join(map(repr, repeated))} each, got "
            f"{str(file)!r} with it more than once: {describe_columns(header)}. Rename or remove the others."
        )
    if len(rows) == 1:
        raise ValueError(
            f"`{name}` must hold files with rows, got {str(file)!r} with a header only. Delete it."
        )
    return header


def _refuse_separator(
    header: Sequence[str], separator: str, file: Path, name: str, has_separator: bool
) -> None:
    """Raise if a header is a single field that has another separator."""
    text = header[0] if len(header) == 1 else ""
    other = max(_SEPARATORS, key=text.count)
    if other == separator or other not in text:
        return
    shown = other.replace("\t", "\\t")
    cure = f'Pass `separator="{shown}"` (`--separator "{shown}"` on the command line).'
    raise ValueError(
        f"`{name}` must hold files with {separator!r} between the columns, got {str(file)!r} with {other!r}: "
        f"{_quote(text)}. {cure if has_separator else 'Convert it, or download the file again.'}"
    )


def suggest_columns(missing: Iterable[str], columns: Iterable[str]) -> str:
    """Return a sentence, after a space, with the closest columns to missing ones; empty if none is close."""
    given = {column.lower(): column for column in columns}
    unknown = [column.lower() for column in missing if column not in given.values()]
    close = [difflib.get_close_matches(column, given, n=1) for column in unknown]
    named = " and ".join(repr(given[found[0]]) for found in close if found)
    return f" Did you mean {named}?" if named else ""


def read_first_line(file: Path) -> str:
    """Return the first non-empty line of a text file, which may be gzipped, without its end."""
    with _open_text(file, "text", newline="\n") as stream:
        while line := stream.readline(_LONGEST_LINE):
            if line.strip("\r\n"):
                return line.rstrip("\r\n")
    raise _empty(file, "paths")


def scan_parquet(
    file: Path, integers: Sequence[str], numbers: Sequence[str] = (), *, name: str = "paths"
) -> pl.LazyFrame:
    """Return a Parquet file lazily, after a check of its columns of an integer and of any numeric type."""
    table = pl.scan_parquet(file, glob=False)
    schema = resolve_schema(name, table)
    for wanted, columns in (("an integer type", integers), ("a numeric type", numbers)):
        for column in columns:
            dtype = schema.get(column)
            if dtype is None or not (dtype.is_integer() if columns is integers else dtype.is_numeric()):
                raise ValueError(
                    f"`{name}` must hold files with a column {column!r} of {wanted}, got {str(file)!r} with "
                    f"{describe_columns(schema)}. Rename or convert the column."
                )
    return table


def _empty(file: Path, name: str) -> ValueError:
    return ValueError(f"`{name}` must not hold empty files, got {str(file)!r}. Delete it or fetch it again.")


def _is_gzipped(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


@contextmanager
def _open_text(file: Path, kind: str, newline: str = "", name: str = "paths") -> Iterator[TextIO]:
    """Open a text file, through gzip if the name or the first bytes say so; errors name the file."""
    try:
        opened = gzip.open if _is_gzipped(file) or file.suffix == ".gz" else open
        with opened(file, "rt", encoding="utf-8-sig", newline=newline) as stream:
            yield cast("TextIO", stream)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise ValueError(
            f"`{name}` must hold readable {kind} files in UTF-8, got {str(file)!r}: {error}. "
            "Fetch it again if it was cut short, or unpack or convert it."
        ) from error


def scan_fields(
    file: Path, columns: Sequence[str], separator: str, *, max_damaged: float = 0.0
) -> pl.LazyFrame:
    """Scan a text file without a header, whose lines all have these columns; `parse_columns` must follow.

    Quotation marks are ordinary characters. Empty lines are left out, and empty fields are empty texts. The
    first line is checked now; later lines with another number of fields are damaged. When the table is
    collected, they are dropped with a `DamagedLinesWarning`. More than the share `max_damaged` of the lines
    read at once is a ValueError; 10 are always accepted, and 0 accepts none.
    """
    split = partial(_split_fields, file=file, columns=tuple(columns), separator=separator)
    split(pl.DataFrame({ROW: [1], _LINE: [read_first_line(file)]}), max_damaged=0)
    split_part = partial(split, max_damaged=max_damaged)
    schema = {ROW: pl.UInt32, **dict.fromkeys(columns, pl.String)}
    return _scan_lines(file).map_batches(split_part, schema=schema, streamable=True)


def parse_lines(
    file: Path, parse: Callable[[str], Any], dtype: pl.DataType | type[pl.DataType], *, max_damaged: float
) -> pl.LazyFrame:
    """Scan a file whose lines a Python function parses into the column `line`; empty lines are left out.

    The first line is parsed now, the others when they are collected. A ValueError of `parse` becomes one that
    names the file and the row. Lines that are no JSON are damaged, as for `scan_fields`.
    """
    parse_each = partial(parse_frame, parse=parse, file=file, dtype=dtype)
    parse_each(pl.DataFrame({ROW: [1], _LINE: [read_first_line(file)]}))
    parse_part = partial(parse_each, max_damaged=max_damaged)
    return _scan_lines(file).map_batches(parse_part, schema={_LINE: dtype}, streamable=True)


def require(right: bool, wrong: str) -> None:
    """Raise a ValueError unless a file has the expected contents."""
    if not right:
        raise ValueError(wrong)


def _scan_lines(file: Path) -> pl.LazyFrame:
    # A line has no line break, so this separator does not split it.
    text = pl.scan_csv(
        file,
        separator="\n",
        quote_char=None,
        has_header=False,
        schema={_LINE: pl.String},
        encoding="utf8-lossy",
        row_index_name=ROW,
        row_index_offset=1,
        glob=False,
    )
    return text.filter(pl.col(_LINE).is_not_null()).map_batches(
        partial(_refuse_bytes, columns=[_LINE], file=file), streamable=True
    )


def _refuse_bytes(
    texts: pl.DataFrame, *, columns: Sequence[str], file: Path, name: str = "paths"
) -> pl.DataFrame:
    """Return texts of a file, unless it has bytes that are no text, which polars has replaced."""
    for column in columns:
        if texts[column].cast(pl.Binary).bin.contains(_REPLACED).any():
            _require_utf8(file, name, file.stat().st_mtime_ns)
    return texts


@lru_cache
def _require_utf8(file: Path, name: str, changed: int) -> None:  # noqa: ARG001 - a changed file is read again
    """Raise unless a whole file is in UTF-8; polars' replacement character may be a text's own."""
    with _open_text(file, "text", name=name) as stream:
        while stream.read(_LONGEST_LINE):
            pass


def _split_fields(
    lines: pl.DataFrame, *, file: Path, columns: Sequence[str], separator: str, max_damaged: float
) -> pl.DataFrame:
    wanted = f"{len(columns)} fields with {separator!r} between them"
    is_damaged = lines[_LINE].str.count_matches(separator, literal=True) != len(columns) - 1
    damaged = lines.filter(is_damaged)
    if damaged.height:
        if max_damaged == 0:
            row, first = damaged.select(ROW, _LINE).row(0)
            raise ValueError(
                f"`paths` must hold {wanted} in every line, got {_quote(first)} in row {row} of "
                f"{str(file)!r}. {_REPAIR}"
            )
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
    """Parse lines (`ROW` and `line`) in memory, like `parse_lines` does with each part of a file."""
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


ARTIST_TRACK_DASH = " \N{EN DASH} "
# Texts for "unknown" in exports, in lower case. A track may really be called "None" or "Unknown".
PLACEHOLDER_IDS = ("", "none", "null", "nan", "undefined", "unknown")
PLACEHOLDER_NAMES = ("", "unknown artist", "unknown track", "<unknown>", "[unknown]", "[untitled]")
_SURPLUS = "(surplus)"
_SEPARATORS = ",;\t|"
_REPAIR = "Correct or remove that row, or download the file again."
_REPAIR_FIELDS = (
    "Correct or remove that row, put quotation marks around a field that holds the separator (perhaps a "
    "decimal comma), or download the file again."
)
_TO_NUMBERS = "Convert the whole column to numbers with a decimal point, such as 0.5."
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
    null or an empty text; it is then null. The message ends with `cure`; `convert` is the cure for a column
    that has another form throughout. An empty `output` keeps the column's name.
    """

    name: str
    parse: Callable[[pl.Series], pl.Series]
    dtype: pl.DataType | type[pl.DataType]
    wanted: str
    _: KW_ONLY
    optional: bool = False
    cure: str = _REPAIR
    convert: str = ""
    output: str = ""


def cast_column(name: str, dtype: pl.DataType | type[pl.DataType], *, output: str = "") -> Column:
    """Return a column of a typed table that is cast to another type; nulls stay null."""
    return Column(
        name, partial(_cast, dtype=dtype), dtype, f"a value of {dtype}", optional=True, output=output
    )


def integer_column(name: str, *, optional: bool = False) -> Column:
    """Return a column of integers, which becomes Int64; `" 3 "` and `"3.0"` are integers too."""
    convert = "Convert the whole column to integers."
    return Column(name, _to_integers, pl.Int64, "an integer", optional=optional, convert=convert)


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
    convert = _TO_NUMBERS if cure == _REPAIR else f"{_TO_NUMBERS} {cure}"
    return Column(name, parse, pl.Float64, wanted, optional=optional, cure=cure, convert=convert)


def flag_column(name: str, *, optional: bool = False) -> Column:
    """Return a column of flags (true or false in any case, or 1 or 0), which becomes Boolean."""
    convert = "Convert the whole column to true and false, or to 1 and 0."
    wanted = "true or false, or 1 or 0,"
    return Column(name, _to_flags, pl.Boolean, wanted, optional=optional, convert=convert)


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
    file: Path,
    needed: Sequence[str],
    *,
    separator: str = ",",
    quote_char: str | None = '"',
    name: str = "paths",
    has_separator: bool = False,
) -> pl.LazyFrame:
    """Scan a CSV file with a header, all columns as text; `parse_columns` must follow.

    No type is guessed, so the first rows have no effect on types. The table also has the number of the row
    (the header is row 1). A row with too many fields is an error of `parse_columns`; missing fields at its
    end are null. A `quote_char` of None makes quotation marks ordinary characters. `name` and `has_separator`
    are those of `read_header`.
    """
    header = read_header(file, needed, separator=separator, name=name, has_separator=has_separator)
    table = pl.scan_csv(
        file,
        separator=separator,
        quote_char=quote_char,
        schema=dict.fromkeys([*header, _SURPLUS], pl.String),
        encoding="utf8-lossy",
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
    if file is not None and _SURPLUS in part.columns:
        texts = [column.name for column in columns if column.dtype == pl.String]
        _refuse_bytes(part, columns=texts, file=file, name=name)
        surplus = part.filter(pl.col(_SURPLUS).is_not_null()).select(ROW, _SURPLUS)
        if surplus.height:
            row, value = surplus.row(0)
            raise ValueError(
                f"`{name}` must hold rows with as many fields as the header, got a field more, "
                f"{_quote(value)}, in row {row}{where}. {_REPAIR_FIELDS}"
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


def is_placeholder(text: str | None, placeholders: Sequence[str]) -> bool:
    """Return whether a text of an export means "unknown": None, blank, or a placeholder in any case."""
    return text is None or text.strip().lower() in placeholders


def known(column: str, placeholders: Sequence[str]) -> pl.Expr:
    """Return a column of texts with null for placeholders (`is_placeholder`)."""
    text = pl.col(column)
    return pl.when(~text.str.strip_chars().str.to_lowercase().is_in(placeholders)).then(text).alias(column)
