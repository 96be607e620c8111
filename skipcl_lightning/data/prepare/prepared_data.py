"""Prepared data: items, sessions, splits and counts of the training set, and how they are written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
import polars as pl
from numpy.lib import format as npy
from numpy.typing import NDArray

from skipcl_lightning._checks import check_choice
from skipcl_lightning.data.canonical_table import (
    Progress,
    Table,
    TableParts,
    check_log_columns,
    count_within,
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
from skipcl_lightning.data.splits import Rows, SessionBlock, Split, check_split
from skipcl_lightning.data.store.folder import SPLIT_NAMES, map_array
from skipcl_lightning.data.store.listeners import ListenerHistories, Listeners
from skipcl_lightning.data.store.session_store import SessionStore, SessionView
from skipcl_lightning.data.vocabulary import ItemVocabulary, fingerprint_vocabulary

__all__ = ["ColdTargets", "PreparationSettings", "PreparedData", "Storage", "prepare_into"]

ColdTargets = Literal["miss", "drop", "score"]
UNKNOWN_LISTENERS = (
    "`history_length` must be 0 for a log without the columns 'user_id' and 'timestamp', got more. Read both "
    "columns; prepare a store that lacks them again, with `rebuild=True`."
)
_VIEWS = (*SPLIT_NAMES, "predict")
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
    """Arrays and columns: of one piece each in memory, or growing piece by piece in the files of a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._growing: dict[str, Any] = {}

    def append(self, name: str, piece: NDArray[Any] | pl.Series) -> None:
        """Add a piece to an array or a column, which may be in `name.npy` or `name.arrow`."""
        if self.folder is None:
            assert name not in self._growing, "in memory, a log is one part"  # noqa: S101
            self._growing[name] = piece
            return
        if name not in self._growing:
            self._growing[name] = (
                _ColumnFile(self.folder / f"{name}.arrow")
                if isinstance(piece, pl.Series)
                else _ArrayFile(self.folder / f"{name}.npy", piece.dtype)
            )
        self._growing[name].append(piece)

    def finish(self) -> dict[str, Any]:
        """Return the arrays and columns by name; of a column in a file, the path."""
        if self.folder is None:
            return self._growing
        return {name: file.finish() for name, file in self._growing.items()}


class _ColumnFile:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.pieces: list[Path] = []

    def append(self, piece: pl.Series) -> None:
        self.pieces.append(self.file.with_suffix(f".{len(self.pieces)}"))
        piece.to_frame(self.file.stem).write_ipc(self.pieces[-1])

    def finish(self) -> Path:
        pl.concat([pl.scan_ipc(piece, glob=False) for piece in self.pieces]).sink_ipc(self.file)
        for piece in self.pieces:
            piece.unlink()
        return self.file


class _ArrayFile:
    # Opened for each piece, so an error leaves no open file behind.
    def __init__(self, file: Path, dtype: np.dtype[Any]) -> None:
        self.file = file
        self.dtype = dtype
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
    split = settings.split
    counts = _count_training(parts, report, split)
    vocabulary, num_known = _number_items(counts, settings.vocabulary)
    item_counts = np.zeros(len(vocabulary) + 1, dtype=np.int64)
    item_counts[vocabulary.encode(counts["item_id"])] = counts["count"].to_numpy()
    num_warm = _count_warm(item_counts, num_known)
    context = _learn_context(settings.context, parts, report, split)
    num_cold = dict.fromkeys(SPLIT_NAMES[1:], 0)
    longest = tracks = 0
    listeners: dict[Any, int] = {}
    storage.append("item_counts", item_counts)
    for number, (part, block) in enumerate(_blocks(parts, report, split), start=1):
        cut = dict(split.cut(block))
        longest = max(longest, int(cut["train"][1].max(initial=0)))
        items = vocabulary.encode(part["item_id"])
        pieces = _play_arrays(part, items, context) | _listener_arrays(part, block, cut, listeners)
        ends = tracks + np.cumsum(block.lengths)
        pieces["offsets"] = np.concatenate(([0], ends)) if number == 1 else ends
        pieces["session_id"] = part["session_id"].gather(block.starts)
        tracks += part.height
        ranked = _ranked_if_cold(part, settings)
        for name in num_cold:
            rows, ends = cut[name]
            places = block.starts[rows - block.first_row] + ends
            # Cold items have the highest indices.
            warm = items[places] <= num_warm
            num_cold[name] += int((~warm).sum())
            kept = warm | ranked[places]
            cut[name] = rows[kept], ends[kept]
        cut["predict"] = block.rows, block.lengths
        for name in _VIEWS:
            for kind, values in zip(("rows", "ends"), cut[name], strict=True):
                pieces[f"{name}_{kind}"] = np.asarray(values, dtype=np.int64)
        for name, piece in pieces.items():
            storage.append(name, piece)
        on_progress("Writing sessions", number, len(parts))
    arrays = storage.finish()
    store = _to_store(arrays, storage.folder)
    views = {
        name: SessionView(
            store,
            arrays[f"{name}_rows"],
            arrays[f"{name}_ends"],
            with_target=name in num_cold,
            name=None if store.folder is None else name,
        )
        for name in _VIEWS
    }
    _check_parts(views, num_cold, may_lack_training=settings.vocabulary is not None)
    return PreparedData(
        vocabulary,
        store,
        views,
        arrays["item_counts"],
        report,
        num_cold,
        longest,
        caution=split.caution if longest else _ALL_HELD_OUT,
        scores_cold=settings.cold_targets == "score",
        num_known_items=num_known,
        listeners=Listeners(*(arrays[one.name] for one in fields(Listeners)))
        if "listener" in arrays
        else None,
        context=context,
    )


def _to_store(arrays: Mapping[str, Any], folder: Path | None) -> SessionStore:
    items, context = arrays["items"], arrays.get("context")
    return SessionStore(
        items=items,
        feedback=arrays["feedback"],
        offsets=arrays["offsets"],
        session_ids=arrays["session_id"],
        explicit_feedback=arrays.get("explicit_feedback"),
        context=None if context is None else context.reshape(len(items), -1),
        folder=folder,
    )


def _play_arrays(
    part: pl.DataFrame, items: NDArray[np.int64], context: ContextEncoder | None
) -> dict[str, NDArray[Any] | pl.Series]:
    """Return the flat arrays of the plays of a part, by name."""
    signals = [name for name in ("feedback", "explicit_feedback") if name in part.columns]
    arrays: dict[str, NDArray[Any] | pl.Series] = {"items": items.astype(np.int32)}
    arrays |= {name: part[name].to_numpy() for name in signals}
    if context is not None:
        # Flat, as the files of a store are.
        arrays["context"] = context.encode(part).ravel()
    return arrays


def _listener_arrays(
    part: pl.DataFrame, block: SessionBlock, cut: Mapping[str, Rows], numbers: dict[Any, int]
) -> dict[str, NDArray[Any] | pl.Series]:
    """Return the arrays of `Listeners` by name, none if they are unknown, and number new listeners."""
    if not {"user_id", "timestamp"} <= set(part.columns):
        return {}
    users = part["user_id"].gather(block.starts)
    found = {user: numbers.setdefault(user, len(numbers)) for user in users.unique().drop_nulls()}
    times = _to_times(part)
    shown = np.zeros(len(block.lengths), dtype=np.int64)
    for name in ("train", "validation"):
        rows, ends = cut[name]
        # The target after the input is of the validation set, too.
        np.maximum.at(shown, rows - block.first_row, ends + (name != "train"))
    return {
        "listener": users.replace_strict(found, default=-1, return_dtype=pl.Int32).to_numpy(),
        "began": np.minimum.reduceat(times, block.starts) if len(block.starts) else times,
        "ended": np.maximum.reduceat(times, block.starts) if len(block.starts) else times,
        "shown": shown,
    }


def _ranked_if_cold(part: pl.DataFrame, settings: PreparationSettings) -> NDArray[np.bool_]:
    """[rows] bool, the plays that are targets even if their item is cold."""
    if settings.cold_targets == "miss":
        return ~find_rejected(part, settings.session_filter.skip_threshold)
    return np.full(part.height, settings.cold_targets == "score")


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
    return pl.Series(count_within(block.lengths) < np.repeat(seen, block.lengths))


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
