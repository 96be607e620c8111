"""Prepared data: items, sessions, splits and the counts of the training set."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning.batch import is_rejected
from skipcl_lightning.data.prepare.drop_report import DropReport
from skipcl_lightning.data.prepare.filters import SessionFilter
from skipcl_lightning.data.prepare.ordering import run_lengths
from skipcl_lightning.data.prepare.parts import Progress, TableParts, no_progress
from skipcl_lightning.data.prepare.preparation import prepare_parts
from skipcl_lightning.data.prepare.sessions import to_microseconds
from skipcl_lightning.data.splits import SessionBlock, Split
from skipcl_lightning.data.store.folder import SPLIT_NAMES
from skipcl_lightning.data.store.session_store import SessionStore, SessionView
from skipcl_lightning.data.store.writing import MemoryStorage, Storage, StoreWriter
from skipcl_lightning.data.vocabulary import ItemVocabulary

__all__ = ["ColdTargets", "PreparedData", "lay_out"]

ColdTargets = Literal["miss", "drop"]


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A log, prepared for batches.

    Args:
        vocabulary: The items, the most frequent in the training set first.
        store: The sessions.
        views: By split (`train`, `validation`, `test` and `predict`), the inputs and targets.
        item_counts: [V + 1] int64, the count of each item in the training set.
        drop_report: The report of what was read, dropped and kept.
        num_cold_targets: By split, the number of held-out targets that are not in the training set.
        longest_input: The length of the longest training session.
        caution: How figures of this split can mislead.
    """

    vocabulary: ItemVocabulary
    store: SessionStore
    views: Mapping[str, SessionView]
    item_counts: NDArray[np.int64]
    drop_report: DropReport
    num_cold_targets: Mapping[str, int]
    longest_input: int
    caution: str

    @classmethod
    def from_log(
        cls,
        log: pl.LazyFrame | pl.DataFrame,
        session_filter: SessionFilter,
        split: Split,
        cold_targets: ColdTargets = "miss",
    ) -> "PreparedData":
        """Read, check, filter, number and split a log, in memory.

        Args:
            log: A canonical table.
            session_filter: The filter.
            split: How targets are held out.
            cold_targets: `drop` leaves out targets that are not in the training set.

        Returns:
            The data.

        Raises:
            ValueError: As for `prepare_sessions`, or a part of the split is empty.

        Examples:
            >>> from skipcl_lightning.data import LeaveOneOut
            >>> log = pl.DataFrame(
            ...     {"session_id": 1, "item_id": [7, 8, 9], "feedback": 1.0, "position": [1, 2, 3]}
            ... )
            >>> PreparedData.from_log(log, SessionFilter(), LeaveOneOut()).num_cold_targets
            {'validation': 1, 'test': 1}
        """
        parts, report = prepare_parts(log, session_filter)
        return lay_out(
            parts,
            report,
            split,
            cold_targets,
            MemoryStorage(),
            skip_threshold=session_filter.skip_threshold,
        )

    @property
    def num_warm_items(self) -> int:
        """The number of items of the training set, which have the indices 1 to this."""
        return int(np.count_nonzero(self.item_counts))

    def __str__(self) -> str:
        asked = ", ".join(f"{len(view):,} in {name}" for name, view in self.views.items() if view.with_target)
        cold = ", ".join(f"{count:,} in {name}" for name, count in self.num_cold_targets.items())
        lines = (str(self.drop_report), f"Targets: {asked}; never seen in training: {cold}.", self.caution)
        return "\n".join(line for line in lines if line)


def lay_out(
    parts: TableParts,
    report: DropReport,
    split: Split,
    cold_targets: ColdTargets,
    storage: Storage,
    *,
    skip_threshold: float = 0.0,
    on_progress: Progress = no_progress,
) -> PreparedData:
    """Number the items of prepared sessions, split them, and write them as flat arrays.

    Args:
        parts: The sessions, from `prepare_parts`.
        report: The report of `prepare_parts`.
        split: How targets are held out.
        cold_targets: As in `prepare_store`.
        storage: The storage of the arrays.
        skip_threshold: Feedback below it is a skip.
        on_progress: Called after each part.

    Returns:
        The data.

    Raises:
        ValueError: A part of the split is empty.

    Examples:
        >>> from skipcl_lightning.data import LeaveOneOut
        >>> log = pl.DataFrame(
        ...     {"session_id": 1, "item_id": [7, 7, 9], "feedback": 1.0, "position": [1, 2, 3]}
        ... )
        >>> data = lay_out(*prepare_parts(log, SessionFilter()), LeaveOneOut(), "drop", MemoryStorage())
        Traceback (most recent call last):
            ...
        ValueError: `split` must leave something for test, got nothing once 1 that training never saw ...
    """
    counts = _count_training(parts, report, split)
    vocabulary = ItemVocabulary.from_counts(counts["item_id"], counts["in_training"])
    num_warm = int((counts["in_training"] > 0).sum())
    writer = StoreWriter(storage, vocabulary)
    growing = {
        name: (storage.array(f"{name}_rows", np.int64), storage.array(f"{name}_ends", np.int64))
        for name in (*SPLIT_NAMES, "predict")
    }
    num_cold = dict.fromkeys(SPLIT_NAMES[1:], 0)
    longest = 0
    for number, (part, block) in enumerate(_blocks(parts, report, split), start=1):
        cut = dict(split.cut(block))
        longest = max(longest, int(cut["train"][1].max(initial=0)))
        items = writer.append(part)
        for name in num_cold:
            rows, ends = cut[name]
            places = block.starts[rows - block.first_row] + ends
            # Cold items have the highest indices.
            warm = items[places] <= num_warm
            num_cold[name] += int((~warm).sum())
            kept = warm if cold_targets == "drop" else warm | ~_are_rejected(part, skip_threshold)[places]
            cut[name] = (rows[kept], ends[kept])
        for name, seen in (cut | {"predict": (block.rows, block.lengths)}).items():
            for array, values in zip(growing[name], seen, strict=True):
                array.append(values)
        on_progress("Writing sessions", number, len(parts))
    store = writer.finish()
    views = {
        name: SessionView(
            store,
            rows.finish(),
            ends.finish(),
            with_target=name in num_cold,
            name=None if store.folder is None else name,
        )
        for name, (rows, ends) in growing.items()
    }
    _check_parts(views, num_cold)
    item_counts = storage.array("item_counts", np.int64)
    item_counts.append(np.zeros(1, dtype=np.int64))
    item_counts.append(counts["in_training"].sort(descending=True).to_numpy())
    return PreparedData(
        vocabulary, store, views, item_counts.finish(), report, num_cold, longest, split.caution
    )


def _blocks(
    parts: TableParts, report: DropReport, split: Split
) -> Iterator[tuple[pl.DataFrame, SessionBlock]]:
    """Yield each part, and what a split needs to know of it."""
    first_row = 0
    for part in parts:
        lengths = run_lengths(part["session_id"])
        times = None
        if split.needs_time:
            times = part.select(to_microseconds(pl.col("timestamp"), part.schema["timestamp"])).to_series()
        yield (
            part,
            SessionBlock(
                lengths, first_row, report.sessions_kept, None if times is None else times.to_numpy()
            ),
        )
        first_row += len(lengths)


def _count_training(parts: TableParts, report: DropReport, split: Split) -> pl.DataFrame:
    """Return all items, with their counts in the training set."""
    counts: pl.DataFrame | None = None
    for part, block in _blocks(parts, report, split):
        rows, ends = split.cut(block)["train"]
        seen = np.zeros(len(block.lengths), dtype=np.int64)
        seen[rows - block.first_row] = ends
        place = np.arange(part.height) - np.repeat(block.starts, block.lengths)
        in_training = pl.Series("in_training", place < np.repeat(seen, block.lengths))
        # Added up part by part, so memory holds one row for each item.
        counts = _add_counts(counts, part.select("item_id", in_training.cast(pl.Int64)))
    assert counts is not None, "a table has at least one part"  # noqa: S101
    return counts


def _add_counts(counts: pl.DataFrame | None, rows: pl.DataFrame) -> pl.DataFrame:
    added = rows.group_by("item_id").agg(pl.col("in_training").sum())
    if counts is None:
        return added
    return pl.concat([counts, added]).group_by("item_id").agg(pl.col("in_training").sum())


def _are_rejected(part: pl.DataFrame, skip_threshold: float) -> NDArray[np.bool_]:
    """[rows] bool, the rejected items."""
    explicit = part["explicit_feedback"].to_numpy() if "explicit_feedback" in part.columns else None
    rejected: NDArray[np.bool_] = is_rejected(part["feedback"].to_numpy(), explicit, skip_threshold)
    return rejected


def _check_parts(views: Mapping[str, SessionView], num_cold: Mapping[str, int]) -> None:
    for name, view in views.items():
        if not len(view):
            cold = num_cold.get(name, 0)
            why = f" once {cold} that training never saw are left out" if cold else ""
            raise ValueError(
                f"`split` must leave something for {name}, got nothing{why}. "
                "Move its bounds, or take more sessions."
            )
