"""Which files a path stands for, and what can be told from their first lines."""

import csv
import gzip
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO, cast

import polars as pl

from skipcl_lightning.data.schema import describe_columns, resolve_schema

__all__ = ["Paths", "list_files", "read_first_line", "read_header", "scan_parquet"]

Paths = str | Path | Sequence[str | Path]
_LONGEST_LINE = 1 << 24


def list_files(paths: Paths, patterns: Sequence[str], *, name: str = "paths") -> list[Path]:
    """The files that ``paths`` stands for, always in the same order.

    Args:
        paths: A file, a folder that is searched with its sub-folders, or several of them. A file that is
            named itself is taken whatever its name.
        patterns: The names to look for in folders, as in ``"*.csv"``.
        name: The argument's name, as the caller wrote it.

    Returns:
        The files, each folder's sorted by path, none twice.

    Raises:
        TypeError: Something is no path.
        ValueError: A path does not exist, or a folder holds no such file.

    Example:
        >>> list_files("no/such/file.csv", ["*.csv"])
        Traceback (most recent call last):
            ...
        ValueError: `paths` must exist, got 'no/such/file.csv'. ...
    """
    single = isinstance(paths, str | Path)
    several = [cast("str | Path", paths)] if single else list(cast("Sequence[str | Path]", paths))
    if not several:
        raise ValueError(f"`{name}` must name at least one file or folder, got none. Check how it is built.")
    files: dict[Path, None] = {}
    for path in several:
        if not isinstance(path, str | Path):
            raise TypeError(f"`{name}` must hold strings or `pathlib.Path`s, got {type(path).__name__}.")
        files.update(dict.fromkeys(_expand(Path(path), patterns, name)))
    return list(files)


def _expand(path: Path, patterns: Sequence[str], name: str) -> Iterable[Path]:
    """One path's files."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(
            f"`{name}` must exist, got {str(path)!r}. Check the spelling and the working folder."
        )
    found = sorted({file for pattern in patterns for file in path.rglob(pattern) if file.is_file()})
    if not found:
        raise ValueError(
            f"`{name}` must hold files named {' or '.join(patterns)}, got the folder {str(path)!r} without. "
            "Name the files themselves if they are called otherwise."
        )
    return found


def read_header(file: Path, needed: Iterable[str], *, separator: str = ",") -> list[str]:
    """The column names of a CSV file, which may be gzipped, after a look at its first two lines.

    Args:
        file: The file.
        needed: Columns that it must have; no column may come twice.
        separator: What stands between the columns.

    Returns:
        All its columns.

    Raises:
        ValueError: It is empty, not text, has no row below the header, or lacks a column or has one twice.
    """
    rows = _first_rows(file, separator)
    if not rows:
        raise ValueError(
            f"`paths` must not hold empty files, got {str(file)!r}. Delete it or fetch it again."
        )
    header = rows[0]
    wrong = [name for name in dict.fromkeys([*needed, *header]) if header.count(name) != 1]
    if wrong:
        raise ValueError(
            f"`paths` must hold files with one column {', '.join(map(repr, wrong))} each, got {str(file)!r} "
            f"with {describe_columns(header)}. It needs a header, and {separator!r} between the columns."
        )
    if len(rows) == 1:
        raise ValueError(
            f"`paths` must hold files with rows, got {str(file)!r} with a header only. Delete it."
        )
    return header


def read_first_line(file: Path) -> str:
    """The first line of a text file, which may be gzipped, that is not empty.

    Args:
        file: The file.

    Returns:
        The line, without its end.

    Raises:
        ValueError: There is none, or the file is not text.
    """
    try:
        with _open_text(file, newline="\n") as stream:
            while line := stream.readline(_LONGEST_LINE):
                if line.strip("\r\n"):
                    return line.rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(
            f"`paths` must hold readable text files in UTF-8, got {str(file)!r}: {error}. "
            "Fetch it again if it was cut short, or unpack or convert it."
        ) from error
    raise ValueError(f"`paths` must not hold empty files, got {str(file)!r}. Delete it or fetch it again.")


def scan_parquet(
    file: Path, integers: Sequence[str], numbers: Sequence[str] = (), *, name: str = "paths"
) -> pl.LazyFrame:
    """A Parquet file, after a look at its columns.

    Args:
        file: The file.
        integers: Columns that it must have, of an integer type.
        numbers: Columns that it must have, of an integer or floating-point type.
        name: The argument's name, as the caller wrote it.

    Returns:
        The file with all its columns, lazily.

    Raises:
        ValueError: It is no Parquet file, or lacks a column or has it in another type.
    """
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


def _first_rows(file: Path, separator: str) -> list[list[str]]:
    """At most two lines, split at the separator."""
    try:
        with _open_text(file) as stream:
            return [row for row, _ in zip(csv.reader(stream, delimiter=separator), range(2), strict=False)]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise ValueError(
            f"`paths` must hold readable CSV files in UTF-8, got {str(file)!r}: {error}. "
            "Fetch it again if it was cut short, or convert it."
        ) from error


def _open_text(file: Path, newline: str = "") -> TextIO:
    """A text stream, through gzip where the name or the first bytes say so."""
    with file.open("rb") as stream:
        gzipped = stream.read(2) == b"\x1f\x8b"
    if gzipped or file.suffix == ".gz":
        return cast("TextIO", gzip.open(file, "rt", encoding="utf-8-sig", newline=newline))
    return file.open(encoding="utf-8-sig", newline=newline)
