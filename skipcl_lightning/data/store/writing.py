"""Writing of flat arrays and columns piece by piece, to memory or to mapped files."""

from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
import polars as pl
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from skipcl_lightning.data.store.folder import map_array
from skipcl_lightning.data.store.session_store import SessionStore
from skipcl_lightning.data.vocabulary import ItemVocabulary

__all__ = ["FolderStorage", "MemoryStorage", "Storage", "StoreWriter"]

Piece = TypeVar("Piece", contravariant=True)
Whole = TypeVar("Whole", covariant=True)
Array = NDArray[Any]


class Growing(Protocol[Piece, Whole]):
    """An array or column that grows at its end."""

    def append(self, piece: Piece) -> None:
        """Add a piece."""
        ...

    def finish(self) -> Whole:
        """Return the whole; nothing can be added afterwards."""
        ...


class Storage(Protocol):
    """A place for growing arrays and columns."""

    def array(self, name: str, dtype: DTypeLike) -> Growing[Array, Array]:
        """Return a new, empty array."""
        ...

    def column(self, name: str) -> Growing[pl.Series, pl.Series | Path]:
        """Return a new, empty column of strings or integers."""
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
        """Return a new, empty array."""
        return _ArrayList(dtype)

    def column(self, name: str) -> Growing[pl.Series, pl.Series | Path]:
        """Return a new, empty column."""
        return _ColumnList(name)


class FolderStorage:
    """Keeps each array and column in a file of a folder; memory holds only the current piece.

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
        """Return a new, empty array in `name.npy`."""
        return _ArrayFile(self.folder / f"{name}.npy", dtype)

    def column(self, name: str) -> Growing[pl.Series, pl.Series | Path]:
        """Return a new, empty column in `name.arrow`."""
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
    # Opened for each piece, so an error leaves no open file behind.
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
        # numpy's header has room for a larger first dimension, so its length does not change.
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


class StoreWriter:
    """Writes tables as flat arrays, one after the other.

    Args:
        storage: The storage of the arrays.
        vocabulary: The items' indices.

    Examples:
        >>> from skipcl_lightning.data.store.writing import MemoryStorage
        >>> writer = StoreWriter(MemoryStorage(), ItemVocabulary(["a", "b"]))
        >>> session = {"session_id": 7, "item_id": ["b", "a"], "feedback": [1.0, 0.0]}
        >>> writer.append(pl.DataFrame(session)).tolist()
        [2, 1]
        >>> writer.finish().offsets
        array([0, 2])
    """

    def __init__(self, storage: Storage, vocabulary: ItemVocabulary) -> None:
        self.vocabulary = vocabulary
        self._storage = storage
        self._items = storage.array("items", np.int32)
        self._feedback = storage.array("feedback", np.float32)
        self._offsets = storage.array("offsets", np.int64)
        self._offsets.append(np.zeros(1, dtype=np.int64))
        self._session_ids = storage.column("session_id")
        self._explicit: Growing[NDArray[Any], NDArray[Any]] | None = None
        self._tracks = 0

    def append(self, table: pl.DataFrame) -> NDArray[np.int64]:
        """Add the sessions of a table, in its order.

        Args:
            table: `session_id`, `item_id`, `feedback` and optionally `explicit_feedback`, each session's rows
                together and in order. All tables have the same columns, and each session is in one table.

        Returns:
            [rows] int64, the items' indices.

        Raises:
            ValueError: An item is not in the vocabulary, or a session's rows are not together.
        """
        runs = table.select(pl.col("session_id").rle().struct.unnest())
        if runs["value"].n_unique() != runs.height:
            raise ValueError(
                "`table` must have each session's rows together, got a session in two places. "
                "Sort it, or use `prepare_sessions`."
            )
        items = self.vocabulary.encode(table["item_id"])
        self._items.append(items)
        self._feedback.append(table["feedback"].cast(pl.Float32).to_numpy())
        if "explicit_feedback" in table.columns:
            if self._explicit is None:
                self._explicit = self._storage.array("explicit_feedback", np.float32)
            self._explicit.append(table["explicit_feedback"].cast(pl.Float32).to_numpy())
        self._offsets.append(self._tracks + np.cumsum(runs["len"].to_numpy(), dtype=np.int64))
        self._session_ids.append(runs["value"].alias("session_id"))
        self._tracks += table.height
        return items

    def finish(self) -> SessionStore:
        """Return the store of all added sessions."""
        return SessionStore(
            items=self._items.finish(),
            feedback=self._feedback.finish(),
            offsets=self._offsets.finish(),
            session_ids=self._session_ids.finish(),
            explicit_feedback=None if self._explicit is None else self._explicit.finish(),
            folder=getattr(self._storage, "folder", None),
        )
