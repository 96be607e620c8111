"""Flat arrays and columns that grow piece by piece, in memory or in files that are mapped back."""

from pathlib import Path
from typing import IO, Any, Protocol, TypeVar, cast

import numpy as np
import polars as pl
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

__all__ = ["FolderStorage", "MemoryStorage", "Storage", "map_array", "read_column"]

Piece = TypeVar("Piece", contravariant=True)
Whole = TypeVar("Whole", covariant=True)
Array = NDArray[Any]

_HEADER_BYTES = 128


class Growing(Protocol[Piece, Whole]):
    """Something that grows at its end."""

    def append(self, piece: Piece) -> None:
        """Add a piece."""
        ...

    def finish(self) -> Whole:
        """The whole of it; nothing can be added any more."""
        ...


class Storage(Protocol):
    """Where arrays and columns are kept while they grow, and after."""

    def array(self, name: str, dtype: DTypeLike) -> Growing[Array, Array]:
        """A new, empty array."""
        ...

    def column(self, name: str) -> Growing[pl.Series, pl.Series | Path]:
        """A new, empty column of strings or integers."""
        ...


class MemoryStorage:
    """Keeps everything in memory.

    Examples:
        >>> items = MemoryStorage().array("items", np.int32)
        >>> items.append(np.array([3, 1]))
        >>> items.finish()
        array([3, 1], dtype=int32)
    """

    def array(self, name: str, dtype: DTypeLike) -> Growing[Array, Array]:  # noqa: ARG002 - files have names
        """A new, empty array."""
        return _ArrayList(dtype)

    def column(self, name: str) -> Growing[pl.Series, pl.Series | Path]:
        """A new, empty column."""
        return _ColumnList(name)


class FolderStorage:
    """Keeps each array and column in a file of a folder; memory holds the piece that is being added.

    Args:
        folder: An empty folder.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     items = FolderStorage(Path(folder)).array("items", np.int32)
        ...     items.append(np.array([3, 1]))
        ...     items.finish().tolist()
        [3, 1]
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def array(self, name: str, dtype: DTypeLike) -> Growing[Array, Array]:
        """A new, empty array in `name.npy`."""
        return _ArrayFile(self.folder / f"{name}.npy", dtype)

    def column(self, name: str) -> Growing[pl.Series, pl.Series | Path]:
        """A new, empty column in `name.arrow`."""
        return _ColumnFile(self.folder / f"{name}.arrow")


class _ArrayList:
    def __init__(self, dtype: DTypeLike) -> None:
        self.pieces: list[Array] = [np.empty(0, dtype=dtype)]

    def append(self, piece: Array) -> None:
        self.pieces.append(piece.astype(self.pieces[0].dtype, copy=False))

    def finish(self) -> Array:
        # A single piece, the usual case, is not copied.
        pieces = [piece for piece in self.pieces if len(piece)] or self.pieces[:1]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class _ColumnList:
    def __init__(self, name: str) -> None:
        self.name = name
        self.pieces: list[pl.Series] = []

    def append(self, piece: pl.Series) -> None:
        self.pieces.append(piece)

    def finish(self) -> pl.Series:
        return pl.concat(self.pieces).rename(self.name)


class _ArrayFile:
    # Opened anew for each piece: an error between two of them leaves no open file behind.
    def __init__(self, file: Path, dtype: DTypeLike) -> None:
        self.file = file
        self.dtype = np.dtype(dtype)
        self.length = 0
        with file.open("wb") as stream:
            self._write_header(stream)

    def append(self, piece: Array) -> None:
        with self.file.open("ab") as stream:
            stream.write(np.ascontiguousarray(piece, dtype=self.dtype).data)
        self.length += len(piece)

    def finish(self) -> Array:
        with self.file.open("r+b") as stream:
            self._write_header(stream)
        return map_array(self.file)

    def _write_header(self, stream: IO[bytes]) -> None:
        # numpy leaves room in a header for the first dimension to grow: its length does not change.
        npy.write_array_header_1_0(
            stream,
            {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)},
        )


class _ColumnFile:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.pieces: list[Path] = []

    def append(self, piece: pl.Series) -> None:
        self.pieces.append(self.file.with_suffix(f".{len(self.pieces)}"))
        piece.rename(self.file.stem).to_frame().write_ipc(self.pieces[-1])

    def finish(self) -> Path:
        pl.concat([pl.scan_ipc(piece, glob=False) for piece in self.pieces]).sink_ipc(self.file)
        for piece in self.pieces:
            piece.unlink()
        return self.file


def map_array(file: Path) -> NDArray[Any]:
    """An array whose values are read from its file where they are asked for.

    Args:
        file: A `.npy` file.

    Returns:
        The array, read-only.
    """
    # An array without values cannot be mapped.
    if file.stat().st_size <= _HEADER_BYTES:
        return cast("Array", np.load(file))
    # As a plain array: the class for maps takes its time with every index.
    return np.asarray(np.load(file, mmap_mode="r"))


def read_column(file: Path) -> pl.Series:
    """A column as a whole.

    Args:
        file: An Arrow file with one column.

    Returns:
        The column, in memory.
    """
    # By a stream: a path with brackets in it would be taken for a pattern.
    with file.open("rb") as stream:
        return pl.read_ipc(stream).to_series()
