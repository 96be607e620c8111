"""A table in parts of whole sessions, one of which is in memory at a time."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from skipcl_lightning.data.schema import name_unreadable

__all__ = ["Progress", "TableParts", "arrange_parts", "no_progress", "read_chunks"]

# Called with the step's name, the amount done, and the total (None if unknown).
Progress = Callable[[str, int, int | None], None]


def no_progress(step: str, done: int, total: int | None) -> None:
    """Do nothing."""


_GROUP_ROWS = 1 << 16
# Keys that are sampled from each part to find the bounds of the parts.
_SAMPLES = 1 << 12


class TableParts:
    """The parts of a table, each in memory or in a file.

    Args:
        parts: Frames or Parquet files, which `replace` overwrites.

    Examples:
        >>> parts = TableParts([pl.DataFrame({"item_id": [7, 8]}), pl.DataFrame({"item_id": [7]})])
        >>> parts.replace(lambda part: part.filter(pl.col("item_id") == 7))
        >>> [part.height for part in parts]
        [1, 1]
    """

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
        step: str = "",
        on_progress: Progress = no_progress,
    ) -> None:
        """Replace each part by the result of a function.

        Args:
            function: From a part to a part; the same object if nothing changes.
            step: The name of the step.
            on_progress: Called after each part.
        """
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


def read_chunks(log: pl.LazyFrame | pl.DataFrame, rows: int | None) -> Iterator[pl.DataFrame]:
    """Read a table in its order, some rows at a time.

    Args:
        log: The table.
        rows: The approximate number of rows; None for all at once.

    Yields:
        Its rows; at least one frame, which may be empty.

    Raises:
        ValueError: A file is cut short, damaged or missing, or a value does not fit its column.

    Examples:
        >>> [chunk.height for chunk in read_chunks(pl.DataFrame({"item_id": [7, 8, 9]}), rows=2)]
        [2, 1]
    """
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
    """Bring the rows of each session, or of each user, together.

    This is an external merge sort. Chunks that do not fit into `rows` are written to files, each sorted by
    the key; then one part at a time is read from all files. Rows of one key keep their order.

    Args:
        chunks: The table in its order, each chunk of about `rows` rows.
        key: The column by which rows belong together, without nulls; None if all do.
        rows: The approximate number of rows in memory; a key with more rows is not split. None for all.
        folder: The folder for files; needed with `rows`.

    Returns:
        The parts: all rows of a key in one of them, in the order of the table; keys ascend from part to part.

    Examples:
        >>> import tempfile
        >>> chunks = [pl.DataFrame({"key": ["b", "a"]}), pl.DataFrame({"key": ["a", "c"]})]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     parts = arrange_parts(iter(chunks), "key", 2, Path(folder))
        ...     [sorted(part["key"]) for part in parts]
        [['a', 'a'], ['b', 'c']]
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
        samples.append(run[key].gather_every(spacing))
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
