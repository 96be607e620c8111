"""Files of a path, and what their first lines say."""

import csv
import gzip
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TextIO, cast

import polars as pl

from skipcl_lightning.data.schema import describe_columns, resolve_schema

__all__ = ["Paths", "list_files", "read_bytes", "read_first_line", "read_header", "scan_parquet"]

Paths = str | Path | Sequence[str | Path]
_LONGEST_LINE = 1 << 24
# More than any listener's own export.
_MOST_UNPACKED = 1 << 32


def list_files(
    paths: Paths, patterns: Sequence[str], *, name: str = "paths", archives: bool = False
) -> list[Path]:
    """Return the files of `paths`, always in the same order.

    Args:
        paths: A file, a folder that is searched with its sub-folders, or several of them. A named file is
            taken whatever its name.
        patterns: The names to search for in folders, such as `"*.csv"`.
        name: The argument's name, as the caller wrote it.
        archives: Whether ZIP archives are accepted.

    Returns:
        The files without repeats, each folder's sorted by path with numbers in their order (2 before 10).

    Raises:
        TypeError: Something is no path.
        ValueError: A path does not exist, or a folder holds no such file.

    Examples:
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
    for file in files:
        if not archives and zipfile.is_zipfile(file):
            raise ValueError(
                f"`{name}` must hold the files themselves, got the ZIP archive {str(file)!r}. "
                "Unpack it first."
            )
    return list(files)


def read_bytes(file: Path, patterns: Sequence[str], *, name: str = "paths") -> list[tuple[str, bytes]]:
    """Return the contents of a small file: plain, gzipped, or the matching members of a ZIP archive.

    Nothing is unpacked to disk.

    Args:
        file: The file.
        patterns: The names to search for in an archive, such as `"*.json"`.
        name: The argument's name, as the caller wrote it.

    Returns:
        The contents, each with a name for messages; members in the order of `list_files`.

    Raises:
        ValueError: The file is damaged, an archive has no such member, or it unpacks to more than 4 GiB.
    """
    try:
        if zipfile.is_zipfile(file):
            return _read_members(file, patterns, name)
        with file.open("rb") as stream:
            gzipped = stream.read(2) == b"\x1f\x8b"
        with gzip.open(file, "rb") if gzipped else file.open("rb") as opened:
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


def read_header(file: Path, needed: Iterable[str], *, separator: str = ",") -> list[str]:
    """Return the column names of a CSV file, which may be gzipped, from its first two lines.

    Args:
        file: The file.
        needed: Columns that it must have; no column may be repeated.
        separator: The character between the columns.

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
    """Return the first non-empty line of a text file, which may be gzipped.

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
    """Return a Parquet file lazily, after a check of its columns.

    Args:
        file: The file.
        integers: Columns that it must have, of an integer type.
        numbers: Columns that it must have, of an integer or floating-point type.
        name: The argument's name, as the caller wrote it.

    Returns:
        The file with all its columns.

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
    """Return at most two lines, split at the separator."""
    try:
        with _open_text(file) as stream:
            return [row for row, _ in zip(csv.reader(stream, delimiter=separator), range(2), strict=False)]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise ValueError(
            f"`paths` must hold readable CSV files in UTF-8, got {str(file)!r}: {error}. "
            "Fetch it again if it was cut short, or convert it."
        ) from error


def _open_text(file: Path, newline: str = "") -> TextIO:
    """Open a text stream, through gzip if the name or the first bytes say so."""
    with file.open("rb") as stream:
        gzipped = stream.read(2) == b"\x1f\x8b"
    if gzipped or file.suffix == ".gz":
        return cast("TextIO", gzip.open(file, "rt", encoding="utf-8-sig", newline=newline))
    return file.open(encoding="utf-8-sig", newline=newline)
