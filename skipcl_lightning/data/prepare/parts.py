"""A table in parts of whole sessions, one of which is in memory at a time, and the order of its rows."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning.data.schema import CANONICAL_COLUMNS, name_unreadable

__all__ = [
    "Progress",
    "TableParts",
    "arrange_parts",
    "drop_copies",
    "drop_repeated",
    "in_listening_order",
    "no_progress",
    "order_rows",
    "read_chunks",
    "run_lengths",
    "sum_counts",
]

# Called with the step's name, the amount done, and the total (None if unknown).
Progress = Callable[[str, int, int | None], None]


def no_progress(step: str, done: int, total: int | None) -> None:
    """Do nothing."""


Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)
_GROUP_ROWS = 1 << 16
# Keys that are sampled from each part to find the bounds of the parts.
_SAMPLES = 1 << 12


class TableParts:
    """The parts of a table: frames, or Parquet files that `replace` overwrites."""

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
        """Replace each part by the result of a function, which returns the same object if nothing changes."""
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


def run_lengths(values: pl.Series) -> NDArray[np.int64]:
    """Return the lengths of runs of equal values, [runs] int64."""
    return values.rle().struct.field("len").to_numpy().astype(np.int64)


def sum_counts(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Sum `count` by `item_id`, frame by frame, so memory holds one row for each item."""
    total: pl.DataFrame | None = None
    for frame in frames:
        added = frame.group_by("item_id").agg(pl.col("count").sum())
        if total is not None:
            added = pl.concat([total, added]).group_by("item_id").agg(pl.col("count").sum())
        total = added
    assert total is not None, "a table has at least one part"  # noqa: S101
    return total


def read_chunks(log: pl.LazyFrame | pl.DataFrame, rows: int | None) -> Iterator[pl.DataFrame]:
    """Yield about `rows` rows at a time (None for all), in order; at least one frame, maybe empty."""
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
    """Bring the rows of each session, or of each user, together, in their order.

    This is an external merge sort. Chunks that do not fit into `rows` are written to files, each sorted by
    the key; then one part at a time is read from all files. Keys ascend from part to part. A key with more
    than `rows` rows is not split.
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


def in_listening_order(history: Frame) -> Frame:
    """Sort plays by `tie_order` if there is one, and drop it."""
    if "tie_order" not in history.collect_schema():
        return history
    return history.sort("tie_order", maintain_order=True).drop("tie_order")


def order_rows(table: pl.DataFrame, key: str, order: str) -> pl.DataFrame:
    """Sort rows by two columns without nulls, stably, after a check whether they are sorted already."""
    # Most logs are sorted, and sorting text is slow.
    if not table[key].is_sorted():
        table = table.sort(key, maintain_order=True)
    place = table[order].to_physical()
    if ((table[key].rle_id().diff() == 0) & (place < place.shift(1))).any():
        table = table.sort(pl.col(key).rle_id(), order, maintain_order=True)
    return table


def drop_copies(plays: pl.DataFrame) -> pl.DataFrame:
    """Drop rows that repeat another in every canonical column; its context may differ."""
    compared = [name for name in plays.columns if name in CANONICAL_COLUMNS]
    return plays.unique(compared, keep="first", maintain_order=True)


def drop_repeated(table: pl.DataFrame, key: str, order: str) -> pl.DataFrame:
    """Drop rows that repeat another in every canonical column, of rows that `order_rows` has sorted."""
    follows = (table[key] == table[key].shift(1)) & (table[order] == table[order].shift(1))
    follows = follows.fill_null(False)
    if not follows.any():
        return table
    # Repeated rows are equal in both columns, so only such rows are compared in all columns.
    tied = follows | follows.shift(-1, fill_value=False)
    first = drop_copies(table.with_row_index("_place").filter(tied))["_place"]
    kept = ~tied
    return table.filter(kept.scatter(first, True))
