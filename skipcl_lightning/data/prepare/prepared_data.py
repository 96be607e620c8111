"""Prepared data: items, sessions, splits and counts of the training set, and how they are written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
import polars as pl
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from skipcl_lightning._checks import check_choice
from skipcl_lightning.data.canonical_table import (
    Progress,
    Table,
    TableParts,
    check_log_columns,
    no_progress,
    resolve_schema,
    run_lengths,
    sum_counts,
    to_frame,
)
from skipcl_lightning.data.prepare.inputs import ContextEncoder, NewItems, check_context, context_columns
from skipcl_lightning.data.prepare.preparation import (
    DropReport,
    HistoryRules,
    SessionFilter,
    find_rejected,
    prepare_parts,
)
from skipcl_lightning.data.prepare.sessions import to_microseconds
from skipcl_lightning.data.splits import SessionBlock, Split, check_split
from skipcl_lightning.data.store.folder import SPLIT_NAMES, map_array
from skipcl_lightning.data.store.listeners import ListenerHistories, Listeners
from skipcl_lightning.data.store.session_store import SessionStore, SessionView
from skipcl_lightning.data.vocabulary import ItemVocabulary, fingerprint_vocabulary

__all__ = ["ColdTargets", "PreparationSettings", "PreparedData", "Storage", "StoreWriter", "prepare_into"]

ColdTargets = Literal["miss", "drop", "score"]
UNKNOWN_LISTENERS = (
    "`history_length` must be 0 for a log without the columns 'user_id' and 'timestamp', got more. Read both "
    "columns; prepare a store that lacks them again, with `rebuild=True`."
)
_ALL_HELD_OUT = (
    "All sessions are held out. Use a model that was trained on nothing of this log: an earlier one."
)


@dataclass(frozen=True)
class PreparationSettings:
    """The settings of a preparation: which sessions are kept, and which targets are held out.

    The items of a given `vocabulary` keep their indices; `new_items` are dropped or appended.
    """

    session_filter: SessionFilter
    split: Split
    cold_targets: ColdTargets = "miss"
    history: HistoryRules | None = None
    vocabulary: ItemVocabulary | None = None
    new_items: NewItems | None = None
    context: Sequence[str] | ContextEncoder = ()

    def check(self, log: Table) -> pl.LazyFrame | pl.DataFrame:
        """Return a log as a frame, after a check of its columns and of these settings for it."""
        frame = to_frame("log", log)
        columns = check_log_columns(frame, history=self.history is not None)
        check_split(self.split, self.session_filter.min_session_length, columns)
        check_choice("cold_targets", self.cold_targets, get_args(ColdTargets))
        schema = resolve_schema("log", frame)
        self._check_vocabulary(schema["item_id"])
        check_context(self.context, schema)
        return frame

    def _check_vocabulary(self, dtype: pl.DataType) -> None:
        if self.new_items is not None:
            check_choice("new_items", self.new_items, get_args(NewItems))
        if self.vocabulary is None:
            if self.new_items is not None:
                raise ValueError(
                    f"`new_items` must be left alone without a `vocabulary`, got {self.new_items!r}. "
                    "All items are new then."
                )
        elif (dtype == pl.String) != (self.vocabulary.dtype == pl.String):
            raise ValueError(
                f"`vocabulary` must have ids of the log's type, {dtype}, got {self.vocabulary.dtype}. Cast "
                f"the log: `log.with_columns(pl.col('item_id').cast(pl.{self.vocabulary.dtype}))`."
            )

    @property
    def context_columns(self) -> list[str]:
        """The columns of the log that the context needs."""
        context = self.context
        return context.columns if isinstance(context, ContextEncoder) else context_columns(context)

    def describe(self) -> dict[str, Any]:
        """Return plain values that are equal for equal settings only."""
        split = {"name": type(self.split).__name__} | {
            name: str(value) for name, value in vars(self.split).items()
        }
        described: dict[str, Any] = {
            "filter": asdict(self.session_filter),
            "split": split,
            "cold_targets": self.cold_targets,
            "history": None if self.history is None else asdict(self.history),
            "context": (
                self.context.state_dict() if isinstance(self.context, ContextEncoder) else list(self.context)
            ),
        }
        if self.vocabulary is not None:
            described["vocabulary"] = fingerprint_vocabulary(self.vocabulary)
            described["new_items"] = self.new_items or "drop"
        return described


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A log, prepared for batches.

    Args:
        vocabulary: The items: those of a given vocabulary, then others, the most frequent in the training set
            first.
        store: The sessions.
        views: By split (`train`, `validation`, `test` and `predict`), the inputs and targets.
        item_counts: [V + 1] int64, the count of each item in the training set.
        drop_report: The report of what was read, dropped and kept.
        num_cold_targets: By split, the number of held-out targets that are not in the training set.
        longest_input: The length of the longest training session.
        caution: How figures of this split can mislead.
        scores_cold: Whether cold targets are ranked by their scores, and not last.
        listeners: The listener and the time of each session; None if the log lacks `user_id` or `timestamp`.
        num_known_items: The number of items of a given vocabulary, which have the indices 1 to this. Their
            model may have learned them elsewhere, so they are never cold.
        context: What turned the context of plays into codes; None without it.
    """

    vocabulary: ItemVocabulary
    store: SessionStore
    views: Mapping[str, SessionView]
    item_counts: NDArray[np.int64]
    drop_report: DropReport
    num_cold_targets: Mapping[str, int]
    longest_input: int
    caution: str
    scores_cold: bool = False
    listeners: Listeners | None = None
    num_known_items: int = 0
    context: ContextEncoder | None = None

    @classmethod
    def from_log(
        cls,
        log: pl.LazyFrame | pl.DataFrame,
        session_filter: SessionFilter,
        split: Split,
        cold_targets: ColdTargets = "miss",
    ) -> "PreparedData":
        """Read, check, filter, number and split a log, in memory.

        With `cold_targets="drop"`, targets that are not in the training set are left out; with "score" they
        are ranked like others.

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
        settings = PreparationSettings(session_filter, split, cold_targets)
        return prepare_into(Storage(), log, settings)

    @property
    def num_warm_items(self) -> int:
        """The number of items known or in the training set, which have the indices 1 to this."""
        return _count_warm(self.item_counts, self.num_known_items)

    def histories(self, split: str, *, skip_threshold: float) -> ListenerHistories:
        """Return what the listener of each session listened to before it began, as far as a split may know.

        The histories of `train` hold only items of the training set, those of `validation` also items of the
        validation set, and those of `test` and `predict` all items.

        Raises:
            ValueError: The listeners are unknown.
        """
        if self.listeners is None:
            raise ValueError(UNKNOWN_LISTENERS)
        if split == "train":
            visible = np.zeros(len(self.store), dtype=np.int64)
            visible[self.views["train"].rows] = self.views["train"].ends
        else:
            visible = self.listeners.shown if split == "validation" else self.store.lengths
        return self.listeners.histories(self.store, visible, skip_threshold=skip_threshold)

    def __str__(self) -> str:
        asked = ", ".join(f"{len(view):,} in {name}" for name, view in self.views.items() if view.with_target)
        cold = ", ".join(f"{count:,} in {name}" for name, count in self.num_cold_targets.items())
        known, items = self.num_known_items, len(self.vocabulary)
        given = f"Vocabulary: {known:,} items given, {items - known:,} appended." if known else ""
        targets = f"Targets: {asked}; never seen in training: {cold}."
        lines = (str(self.drop_report), given, targets, self.caution)
        return "\n".join(line for line in lines if line)


class Storage:
    """Growing arrays and columns in memory or, one piece in memory at a time, in the files of a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def array(self, name: str, dtype: DTypeLike) -> "GrowingArray":
        """Return a new, empty array, which may be in `name.npy`."""
        return _ArrayList(dtype) if self.folder is None else _ArrayFile(self.folder / f"{name}.npy", dtype)

    def column(self, name: str) -> "GrowingColumn":
        """Return a new, empty column of strings or integers, which may be in `name.arrow`."""
        return _ColumnList(name) if self.folder is None else _ColumnFile(self.folder / f"{name}.arrow")


class _ArrayList:
    def __init__(self, dtype: DTypeLike) -> None:
        self.pieces: list[NDArray[Any]] = [np.empty(0, dtype=dtype)]

    def append(self, piece: NDArray[Any]) -> None:
        self.pieces.append(piece.astype(self.pieces[0].dtype, copy=False))

    def finish(self) -> NDArray[Any]:
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

    def append(self, piece: NDArray[Any]) -> None:
        with self.file.open("ab") as stream:
            stream.write(np.ascontiguousarray(piece, dtype=self.dtype).data)
        self.length += len(piece)

    def finish(self) -> NDArray[Any]:
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


GrowingArray = _ArrayList | _ArrayFile
GrowingColumn = _ColumnList | _ColumnFile


class StoreWriter:
    """Writes tables as flat arrays, one after the other, to a storage."""

    def __init__(
        self, storage: Storage, vocabulary: ItemVocabulary, context: ContextEncoder | None = None
    ) -> None:
        self.vocabulary = vocabulary
        self.context = context
        self._storage = storage
        self._items = storage.array("items", np.int32)
        self._feedback = storage.array("feedback", np.float32)
        self._offsets = storage.array("offsets", np.int64)
        self._offsets.append(np.zeros(1, dtype=np.int64))
        self._session_ids = storage.column("session_id")
        self._explicit: GrowingArray | None = None
        self._codes = None if context is None else storage.array("context", np.int16)
        self._tracks = 0

    def append(self, table: pl.DataFrame) -> NDArray[np.int64]:
        """Add the sessions of a table in its order, and return the items' indices, [rows] int64.

        All tables have the same columns. Each session is in one table, its rows together and in order.
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
        if self.context is not None and self._codes is not None:
            # Flat, as the files of a store are.
            self._codes.append(self.context.encode(table).ravel())
        self._offsets.append(self._tracks + np.cumsum(runs["len"].to_numpy(), dtype=np.int64))
        self._session_ids.append(runs["value"].alias("session_id"))
        self._tracks += table.height
        return items

    def finish(self) -> SessionStore:
        """Return the store of all added sessions."""
        items = self._items.finish()
        return SessionStore(
            items=items,
            feedback=self._feedback.finish(),
            offsets=self._offsets.finish(),
            session_ids=self._session_ids.finish(),
            explicit_feedback=None if self._explicit is None else self._explicit.finish(),
            context=None if self._codes is None else self._codes.finish().reshape(len(items), -1),
            folder=self._storage.folder,
        )


class ListenerWriter:
    """Writes the listener and the time of each session, one table after the other, to a storage."""

    def __init__(self, storage: Storage) -> None:
        self._numbers: dict[Any, int] = {}
        self._arrays = {
            name: storage.array(name, np.int32 if name == "listener" else np.int64)
            for name in ("listener", "began", "ended", "shown")
        }

    def append(
        self,
        table: pl.DataFrame,
        block: SessionBlock,
        cut: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
    ) -> None:
        """Add the sessions of a table, of which `cut` holds out targets."""
        users = table["user_id"].gather(block.starts)
        numbers = {
            user: self._numbers.setdefault(user, len(self._numbers)) for user in users.unique().drop_nulls()
        }
        times = _to_times(table)
        shown = np.zeros(len(block.lengths), dtype=np.int64)
        for name in ("train", "validation"):
            rows, ends = cut[name]
            # The target after the input is of the validation set, too.
            np.maximum.at(shown, rows - block.first_row, ends + (name != "train"))
        values = {
            "listener": users.replace_strict(numbers, default=-1, return_dtype=pl.Int32).to_numpy(),
            "began": np.minimum.reduceat(times, block.starts) if len(block.starts) else times,
            "ended": np.maximum.reduceat(times, block.starts) if len(block.starts) else times,
            "shown": shown,
        }
        for name, array in self._arrays.items():
            array.append(values[name])

    def finish(self) -> Listeners:
        """Return what is known of all added sessions."""
        return Listeners(**{name: array.finish() for name, array in self._arrays.items()})


def prepare_into(
    storage: Storage,
    log: pl.LazyFrame | pl.DataFrame,
    settings: PreparationSettings,
    *,
    rows_in_memory: int | None = None,
    folder: Path | None = None,
    on_progress: Progress = no_progress,
) -> PreparedData:
    """Prepare a log as by `prepare_parts`, number its items, split it, and write it as flat arrays."""
    parts, report = prepare_parts(
        log,
        settings.session_filter,
        history=settings.history,
        known=settings.vocabulary,
        new_items=settings.new_items,
        context=settings.context_columns,
        rows_in_memory=rows_in_memory,
        folder=folder,
        on_progress=on_progress,
    )
    split, skip_threshold = settings.split, settings.session_filter.skip_threshold
    counts = _count_training(parts, report, split)
    vocabulary, num_known = _number_items(counts, settings.vocabulary)
    training_counts = np.zeros(len(vocabulary) + 1, dtype=np.int64)
    training_counts[vocabulary.encode(counts["item_id"])] = counts["count"].to_numpy()
    num_warm = _count_warm(training_counts, num_known)
    listeners: ListenerWriter | None = None
    context = _learn_context(settings.context, parts, report, split)
    writer = StoreWriter(storage, vocabulary, context)
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
        if {"user_id", "timestamp"} <= set(part.columns):
            listeners = listeners or ListenerWriter(storage)
            listeners.append(part, block, cut)
        for name in num_cold:
            rows, ends = cut[name]
            places = block.starts[rows - block.first_row] + ends
            # Cold items have the highest indices.
            warm = items[places] <= num_warm
            num_cold[name] += int((~warm).sum())
            kept = warm
            if settings.cold_targets == "miss":
                kept = warm | ~find_rejected(part, skip_threshold)[places]
            elif settings.cold_targets == "score":
                kept = np.ones_like(warm)
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
    _check_parts(views, num_cold, may_lack_training=settings.vocabulary is not None)
    item_counts = storage.array("item_counts", np.int64)
    item_counts.append(training_counts)
    return PreparedData(
        vocabulary,
        store,
        views,
        item_counts.finish(),
        report,
        num_cold,
        longest,
        caution=split.caution if longest else _ALL_HELD_OUT,
        scores_cold=settings.cold_targets == "score",
        num_known_items=num_known,
        listeners=None if listeners is None else listeners.finish(),
        context=context,
    )


def _number_items(counts: pl.DataFrame, given: ItemVocabulary | None) -> tuple[ItemVocabulary, int]:
    """Return the vocabulary of the counted items, and how many of its items are known from elsewhere."""
    own = ItemVocabulary.from_counts(counts["item_id"], counts["count"])
    # An equal vocabulary was made from this very training set, so items without a count were never learned.
    if given is None or (given == own and counts["count"].sum()):
        return own, 0
    return given.extended(own.to_series()), len(given)


def _count_warm(item_counts: NDArray[np.int64], num_known: int) -> int:
    """Return the number of items that are known or have a count; other items follow them."""
    return num_known + int(np.count_nonzero(item_counts[num_known + 1 :]))


def _blocks(
    parts: TableParts, report: DropReport, split: Split
) -> Iterator[tuple[pl.DataFrame, SessionBlock]]:
    """Yield each part, and what a split needs to know of it."""
    first_row = 0
    for part in parts:
        lengths = run_lengths(part["session_id"])
        times = _to_times(part) if split.needs_time else None
        yield part, SessionBlock(lengths, first_row, report.sessions_kept, times)
        first_row += len(lengths)


def _to_times(part: pl.DataFrame) -> NDArray[np.int64]:
    """[rows] int64, the time of each play in microseconds."""
    time = to_microseconds(pl.col("timestamp"), part.schema["timestamp"])
    return part.select(time).to_series().to_numpy()


def _count_training(parts: TableParts, report: DropReport, split: Split) -> pl.DataFrame:
    """Return all items, with their `count` in the training set."""
    return sum_counts(
        part.select("item_id", _in_training(block, split).cast(pl.Int64).alias("count"))
        for part, block in _blocks(parts, report, split)
    )


def _in_training(block: SessionBlock, split: Split) -> pl.Series:
    """[items] bool, which plays are in the training set."""
    rows, ends = split.cut(block)["train"]
    seen = np.zeros(len(block.lengths), dtype=np.int64)
    seen[rows - block.first_row] = ends
    place = np.arange(block.lengths.sum()) - np.repeat(block.starts, block.lengths)
    return pl.Series(place < np.repeat(seen, block.lengths))


def _learn_context(
    context: Sequence[str] | ContextEncoder, parts: TableParts, report: DropReport, split: Split
) -> ContextEncoder | None:
    """Return the encoder of the context, with categories of the training set unless they are given."""
    if isinstance(context, ContextEncoder):
        return context
    training = (part.filter(_in_training(block, split)) for part, block in _blocks(parts, report, split))
    return ContextEncoder.fit(context, training) if context else None


def _check_parts(
    views: Mapping[str, SessionView], num_cold: Mapping[str, int], *, may_lack_training: bool
) -> None:
    """Raise if a part is empty; if training may be lacking, only if nothing is held out."""
    needed = list(views)
    if may_lack_training:
        needed = [] if any(len(views[name]) for name in num_cold) else list(num_cold)
    for name in needed:
        view = views[name]
        if not len(view):
            cold = num_cold.get(name, 0)
            why = f" once {cold} that training never saw are left out" if cold else ""
            raise ValueError(
                f"`split` must leave something for {name}, got nothing{why}. "
                "Move its bounds, or take more sessions."
            )
