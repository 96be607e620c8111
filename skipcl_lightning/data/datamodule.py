"""The LightningDataModule: from a log to the batches of every stage."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import polars as pl
import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store
from torch.utils.data import DataLoader

from skipcl_lightning._checks import check_choice, check_flag, check_integer
from skipcl_lightning._files import is_full_disk
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch, TargetRule
from skipcl_lightning.data.batches import (
    EvaluationSampler,
    ResumableLoader,
    SessionDataset,
    TrainingSampler,
    keep_batch,
)
from skipcl_lightning.data.canonical_table import Table, resolve_schema
from skipcl_lightning.data.encoder import SessionEncoder
from skipcl_lightning.data.item_features import ItemFeatures
from skipcl_lightning.data.mining import MinedItems, MiningScore, mine_transitions
from skipcl_lightning.data.prepare.inputs import (
    ContextEncoder,
    GivenVocabulary,
    NewItems,
    VocabularySource,
    choose_context,
    resolve_vocabulary,
)
from skipcl_lightning.data.prepare.on_disk import open_store
from skipcl_lightning.data.prepare.preparation import DropReport, SessionFilter
from skipcl_lightning.data.prepare.prepared_data import (
    UNKNOWN_LISTENERS,
    ColdTargets,
    PreparationSettings,
    PreparedData,
    Storage,
    prepare_into,
)
from skipcl_lightning.data.splits import LeaveOneOut, Split
from skipcl_lightning.data.store.folder import Manifest
from skipcl_lightning.data.store.listeners import ListenerHistories
from skipcl_lightning.data.store.session_store import SessionView
from skipcl_lightning.data.vocabulary import ItemVocabulary
from skipcl_lightning.functional import next_item_targets

__all__ = ["SessionDataModule"]

# The length of sessions if neither the user nor the backbone gives one.
DEFAULT_LENGTH = 50
# Padded positions that `training_sessions` holds at once.
_MOST_POSITIONS = 1 << 20
# Lightning advises workers whatever a batch costs; here it is one gather from memory.
_WORKER_ADVICE = r"The '\w+_dataloader' does not have many workers"
# Lightning 2.6 calls a function that torch 2.13 deprecates; until Lightning replaces the call.
_OLD_QUESTION = r"`isinstance\(treespec, LeafSpec\)` is deprecated"


class SessionDataModule(LightningDataModule):
    """LightningDataModule with the batches of every stage, from a log or a prepared store.

    The log is read once, at the first use of its data or when Lightning calls `setup`; rank 0 then reports
    what was dropped. Counts, and item numbers without a `vocabulary`, come from the training set only.
    Prediction batches hold whole sessions without a target.

    The batch order is a function of `seed`, epoch and rank only, so a run that resumes within an epoch
    continues with the next batch. Random draws of models, such as dropout, are not part of Lightning's
    checkpoints.

    Args:
        log: A canonical table (polars, pandas, Arrow, or a list of dictionaries), which is prepared in
            memory; or the folder of a store from `prepare_store` or `skipcl prepare`, whose batches are
            mapped from disk. A store has its own `split`, `cold_targets`, `new_items` and filter, so leave
            these alone then. The path of a Parquet file is read as a canonical table.
        batch_size: Sessions in a batch, on each device.
        max_length: The largest number of items of a session that a model sees; the latest are kept. None
            takes the `max_length` of the trained `SkipCLModule` when Lightning calls `setup`, and 50 without
            one. Training batches hold one item more, the last target. At evaluation, sessions are also cut to
            the longest training length minus one, because later positions were never trained.
        split: How targets are held out; None for `LeaveOneOut`.
        cold_targets: How held-out targets are treated that are not in the training set: `miss` (or None)
            ranks them last, `drop` leaves them out, `score` ranks them like others, for a model with
            `item_features`. They are always counted. Rejected cold targets are left out except by `score`,
            because no other model could have recommended them.
        min_session_length: Items that a session needs, at least 2, and 3 for leave-one-out; None for 3.
        min_item_count: Rows that an item needs; None for 1. Items of a given `vocabulary` need none.
        require_skip: Whether a session needs a skipped item; None for no.
        skip_threshold: Feedback below it is a skip, in (-1, 1]; None for 0.
        history_length: n, the number of the listener's latest items before the session that a model sees, in
            front of the session; 0 for none. They come from sessions of the same `user_id` whose last play
            came before this session's first one, without rejected items, and never cross the split: see
            `PreparedData.histories`. Training with it makes the model use it.
        vocabulary: The items of a trained model, which keep their indices: an `ItemVocabulary`, a fitted
            `SkipCLModule`, the path of a checkpoint, or the folder of a store. Counts still come from this
            log's training set, which may then be empty. A known item is never a cold target, unless this log
            gives the very same vocabulary. None numbers the items of this log. A store must have the same
            indices.
        new_items: How items of the log are treated that are not in the `vocabulary`. `drop` (or None) leaves
            their rows out, before sessions are filtered, and counts them; `append` numbers them after the
            known ones, the most frequent in the training set first.
        context: Inputs of the model beside feedback: `gap`, `hour`, `weekday`, `place` and names of columns
            of the log, whose categories come from the training set (`ContextEncoder`); or a trained model's
            `encoder.context`. A column may only hold what is known when the play has ended. None for no
            inputs, or for those of the store or of the `vocabulary`'s model.
        mined_negatives: M, the number of items drawn for each item of a training batch from those most often
            skipped right after it in the training set; 0 for none.
        mined_positives: P, the number drawn from those most often listened to after it.
        mining_score: The score of mined items: `count`, `pmi` or `wilson` (`mine_transitions`).
        mining_depth: Items kept for each item, from which the draws are made.
        mining_min_count: The least count of a pair.
        bucket_batches: Sort the sessions of this many batches by length, so that training batches have less
            padding; 0 for no sorting.
        seed: Seed of the training order, in 0..2^32 - 1; None for that of `seed_everything`, or 0.
        num_workers: Processes that prepare batches. 0 is fast: a batch is one gather from memory, which costs
            less than passing it between processes.
        pin_memory: Whether batches are put into page-locked memory; only with an accelerator.
        item_features: A table with the content of the items, or the path of a Parquet file, as for
            `ItemFeatures.from_table`; `item_features` then encodes it for this data's items and training set.

    Raises:
        TypeError: `log` is neither a table nor a path, or a setting has the wrong type.
        ValueError: A column is missing, a setting is out of range, or one is given that the store has. At the
            first use of the data: the contents are wrong, nothing is left, or a store is damaged.

    Reference:
        The protocol: Seshadri, Shashaani, Knees, RecSys 2024, arXiv 2409.07367. Its limits: `LeaveOneOut`.

    Examples:
        >>> from skipcl_lightning.data import simulate_sessions
        >>> data = SessionDataModule(simulate_sessions(20, num_items=40, num_moods=4), batch_size=8)
        >>> batch = next(iter(data.val_dataloader()))
        >>> len(batch), batch.target.shape
        (8, torch.Size([8]))
        >>> data.item_counts.shape[0] == data.num_items + 1
        True
    """

    def __init__(
        self,
        log: Table | str | Path,
        *,
        batch_size: int = 256,
        max_length: int | None = None,
        split: Split | None = None,
        cold_targets: ColdTargets | None = None,
        min_session_length: int | None = None,
        min_item_count: int | None = None,
        require_skip: bool | None = None,
        skip_threshold: float | None = None,
        history_length: int = 0,
        vocabulary: VocabularySource | None = None,
        new_items: NewItems | None = None,
        context: Sequence[str] | ContextEncoder | None = None,
        mined_negatives: int = 0,
        mined_positives: int = 0,
        mining_score: MiningScore = "count",
        mining_depth: int = 20,
        mining_min_count: int = 2,
        bucket_batches: int = 0,
        seed: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        item_features: Table | str | Path | None = None,
    ) -> None:
        super().__init__()
        check_integer("batch_size", batch_size)
        if max_length is not None:
            check_integer("max_length", max_length)
        check_integer("bucket_batches", bucket_batches, minimum=0)
        check_integer("num_workers", num_workers, minimum=0)
        check_integer("history_length", history_length, minimum=0)
        check_integer("mined_negatives", mined_negatives, minimum=0)
        check_integer("mined_positives", mined_positives, minimum=0)
        check_choice("mining_score", mining_score, get_args(MiningScore))
        check_integer("mining_depth", mining_depth)
        check_integer("mining_min_count", mining_min_count)
        if seed is not None:
            check_integer("seed", seed, minimum=0, maximum=2**32 - 1)
        check_flag("pin_memory", pin_memory)
        self.log = log
        self.batch_size = batch_size
        self.max_length = DEFAULT_LENGTH if max_length is None else max_length
        self._takes_length = max_length is None
        settings = {
            "split": split,
            "cold_targets": cold_targets,
            "min_session_length": min_session_length,
            "min_item_count": min_item_count,
            "require_skip": require_skip,
            "skip_threshold": skip_threshold,
            "new_items": new_items,
            "context": context,
        }
        given = {name: value for name, value in settings.items() if value is not None}
        known = None if vocabulary is None else resolve_vocabulary(vocabulary)
        self._trained_length = 0 if known is None else known.trained_length
        self._prepare, self.skip_threshold = _plan_preparation(log, given, known, history_length)
        self.history_length = history_length
        self._histories: dict[str, ListenerHistories] = {}
        self.mined_samples = {"mined_negatives": mined_negatives, "mined_positives": mined_positives}
        self.mining_score: MiningScore = mining_score
        self.mining_depth = mining_depth
        self.mining_min_count = mining_min_count
        self.bucket_batches = bucket_batches
        self.seed = seed
        self.num_workers = num_workers
        self.content_table = item_features
        self.pin_memory = pin_memory

    @cached_property
    def _data(self) -> PreparedData:
        data = self._prepare()
        rank_zero_info(str(data))
        return data

    def __getstate__(self) -> dict[str, Any]:
        # The trainer, with its model and optimizer, belongs to the process that trains.
        return {**vars(self), "trainer": None}

    def __repr__(self) -> str:
        # Not the properties, which would prepare the log.
        data = vars(self).get("_data")
        state = "not prepared yet" if data is None else f"{len(data.vocabulary):,} items"
        return f"SessionDataModule({state}, batch_size={self.batch_size}, max_length={self.max_length})"

    @property
    def vocabulary(self) -> ItemVocabulary:
        """The items of a given vocabulary, then others, the most frequent in the training set first."""
        return self._data.vocabulary

    @property
    def num_items(self) -> int:
        """V, the number of items."""
        return len(self.vocabulary)

    @property
    def encoder(self) -> SessionEncoder:
        """The encoder that turns sessions of external ids into such batches."""
        return SessionEncoder(
            self.vocabulary, self.input_length, self.skip_threshold, self.history_length, self._data.context
        )

    @property
    def context_sizes(self) -> dict[str, int]:
        """The number of codes of each context input, in order; `SkipCLModule` needs it as `num_items`."""
        return {} if self._data.context is None else self._data.context.sizes

    @property
    def input_length(self) -> int:
        """The largest number of items that a model sees, at most `max_length`."""
        trained = max(self._trained_length, self._data.longest_input - 1)
        unknown = not self._trained_length and not self._data.longest_input
        return self.max_length if unknown else max(1, min(self.max_length, trained))

    @cached_property
    def mined(self) -> MinedItems:
        """The items most often skipped, and most often listened to, after each item of the training set."""
        return mine_transitions(
            self._view("train"),
            self.num_items,
            depth=self.mining_depth,
            score=self.mining_score,
            min_count=self.mining_min_count,
            skip_threshold=self.skip_threshold,
        )

    @cached_property
    def item_features(self) -> ItemFeatures | None:
        """The content of the items, for `SkipCLModule(item_features=…)`; None if no table was given."""
        if self.content_table is None:
            return None
        features = ItemFeatures.from_table(self.content_table, self.vocabulary, item_counts=self.item_counts)
        rank_zero_info(str(features))
        return features

    def training_sessions(self) -> Iterator[SessionBatch]:
        """Yield every training session whole, without the limit of `max_length`, for models that count.

        Sessions are ordered by length, so batches have little padding.

        Yields:
            Batches of at most a million positions, or of one session, without targets and with
            `session_index`.

        Raises:
            ValueError: The training set is empty.

        Examples:
            >>> from skipcl_lightning.data import simulate_sessions
            >>> data = SessionDataModule(simulate_sessions(20, num_items=40, num_moods=4), max_length=2)
            >>> tracks = sum(int(batch.lengths.sum()) for batch in data.training_sessions())
            >>> tracks == int(data.item_counts.sum())
            True
        """
        view = self._view("train")
        dataset = SessionDataset(
            view, max_length=self._data.longest_input, skip_threshold=self.skip_threshold
        )
        order = np.argsort(view.ends, kind="stable")
        start = 0
        while start < len(order):
            lengths = view.ends[order[start : start + _MOST_POSITIONS]]
            positions = lengths * np.arange(1, len(lengths) + 1)
            stop = start + max(1, int(np.searchsorted(positions, _MOST_POSITIONS, side="right")))
            yield dataset.__getitems__(order[start:stop].tolist())
            start = stop

    def transition_counts(
        self, rule: TargetRule = "next", *, order: Literal[1, 2] = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Count how often each item follows a context in the training set, not cut to `max_length`.

        Args:
            rule: Which item counts as the follower: the `next` item, or the `next_listened` item.
            order: The context: 1 for an item, 2 for two adjacent items.

        Returns:
            For each different transition, [P] int64 each, in ascending order: its context (the item, or
            `item before · (V + 1) + item`), its follower, and its count.

        Raises:
            ValueError: The rule or the order is unknown, or the training set is empty.

        Examples:
            >>> from skipcl_lightning.data import simulate_sessions
            >>> data = SessionDataModule(simulate_sessions(20, num_items=40, num_moods=4))
            >>> contexts, followers, counts = data.transition_counts(order=2)
            >>> bool((contexts.diff() >= 0).all()), int(counts.min())
            (True, 1)
        """
        check_choice("rule", rule, get_args(TargetRule))
        if order not in (1, 2):
            raise ValueError(
                f"`order` must be 1 or 2, got {order!r}. It is the number of items in the context."
            )
        width = self.num_items + 1
        counted = pl.DataFrame(schema={"context": pl.Int64, "follower": pl.Int64, "count": pl.Int64})
        waiting: list[pl.DataFrame] = []
        for batch in self.training_sessions():
            following = next_item_targets(
                batch.items,
                batch.feedback,
                explicit_feedback=batch.explicit_feedback,
                rule=rule,
                skip_threshold=batch.skip_threshold,
            )
            items = batch.items
            if order == 2:
                following, items = following[:, 1:], items[:, :-1] * width + items[:, 1:]
            followed = following != PADDING_INDEX
            columns = {"context": items[followed].numpy(), "follower": following[followed].numpy()}
            waiting.append(pl.DataFrame(columns).with_columns(count=pl.lit(1, pl.Int64)))
            # Memory follows the number of different transitions, at most twice.
            if sum(map(len, waiting)) > max(_MOST_POSITIONS, len(counted)):
                counted, waiting = _sum_transitions([counted, *waiting]), []
        counted = _sum_transitions([counted, *waiting]).sort("context", "follower")
        contexts, followers, counts = (torch.from_numpy(column.to_numpy(writable=True)) for column in counted)
        return contexts, followers, counts

    @property
    def session_ids(self) -> pl.Series:
        """External session ids; `session_index` of a batch is the row here."""
        return self._data.store.ids

    @property
    def item_counts(self) -> Tensor:
        """[V + 1] int64: the count of each item in the training set; index 0, padding, has none."""
        return torch.from_numpy(self._data.item_counts.copy())

    @property
    def drop_report(self) -> DropReport:
        """The report of what was read, dropped and kept."""
        return self._data.drop_report

    @property
    def num_sessions(self) -> dict[str, int]:
        """The number of training sessions and of held-out targets, by split."""
        return {name: len(view) for name, view in self._data.views.items()}

    @property
    def num_cold_targets(self) -> dict[str, int]:
        """The number of held-out targets whose item is not in the training set, by split."""
        return dict(self._data.num_cold_targets)

    def setup(self, stage: str | None = None) -> None:
        """Prepare the data if needed, and take `max_length` from the model if none was given.

        Before a training, a module with a method `take_data(data)` gets the data.
        """
        _ = self._data
        module = getattr(self.trainer, "lightning_module", None)
        model = getattr(module, "model", None)
        length = getattr(model, "max_length", None)
        if self._takes_length and model is not None:
            # A bidirectional backbone needs one position for its mask token.
            spared = 0 if getattr(model, "causal", True) else 1
            self.max_length = max(1, length - spared) if isinstance(length, int) else DEFAULT_LENGTH
        warnings.filterwarnings("ignore", message=_OLD_QUESTION)
        if not self.num_workers:
            warnings.filterwarnings("ignore", message=_WORKER_ADVICE)
        take_data = getattr(module, "take_data", None)
        if stage == "fit" and take_data is not None:
            # Callbacks that average weights copy the module before its own `setup`.
            take_data(self)

    def teardown(self, stage: str | None = None) -> None:  # noqa: ARG002 - Lightning's signature
        """Show the warnings of Lightning again that `setup` has silenced."""
        _restore_warnings()

    def on_exception(self, exception: BaseException) -> None:
        """Do the same after an error, when Lightning does not call `teardown`.

        If a full disk is the error and names no file, add where loggers write. In a distributed run, also add
        to the errors that follow which process failed first, and why.
        """
        _restore_warnings()
        if isinstance(exception, OSError) and exception.filename is None and is_full_disk(exception):
            loggers = [] if self.trainer is None else self.trainer.loggers
            places = [repr(str(getattr(one, "log_dir", None) or one.save_dir)) for one in loggers]
            exception.add_note(f"A disk is full. Loggers write to {', '.join(places) or 'nowhere'}.")
        _note_first_failure(exception)

    def warn_without_rejected(self) -> None:
        """Warn if no item of the log was skipped or disliked, so a skip head has nothing to learn.

        If feedback varies within [0, 1], the preparation has already warned.
        """
        feedback, explicit = self._data.store.feedback, self._data.store.explicit_feedback
        if self.drop_report.share_skipped or (explicit is not None and (explicit < 0).any()):
            return
        if feedback.min() < 0 or feedback.min() == feedback.max():
            rank_zero_warn(
                "No track of the log was skipped or disliked, so the skip head has nothing to learn. Check "
                "the `feedback` column and `skip_threshold`, or train without a skip head."
            )

    def warn_without_history(self) -> None:
        """Warn if there is no `history_length`, for a model that was trained with one."""
        if not self.history_length:
            rank_zero_warn(
                "The model was trained with the tracks that each listener heard before the session, and the "
                "data has none. Give `SessionDataModule` a `history_length`, if the log names listeners."
            )

    def train_dataloader(self) -> DataLoader[SessionBatch]:
        """Return the batches of the training set, in a new order each epoch, without targets."""
        dataset = self._dataset("train")
        sampler = TrainingSampler(
            dataset,
            batch_size=self.batch_size,
            lengths=dataset.view.ends,
            bucket_batches=self.bucket_batches,
            seed=self._order_seed,
            **self._processes,
        )
        return ResumableLoader(dataset, sampler=sampler, **self._loader_settings)

    def val_dataloader(self) -> DataLoader[SessionBatch]:
        """Return the batches of the validation set."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader[SessionBatch]:
        """Return the batches of the test set."""
        return self._evaluation_loader("test")

    def whole_set(self, split: str, *, for_length: int) -> DataLoader[SessionBatch]:
        """Return all batches of a held-out set, in each process, for a model that may be of another fit.

        Args:
            split: `validation` or `test`.
            for_length: The number of items of a session that are kept at least. It has no effect on data with
                a `max_length` of its own.
        """
        before = self.max_length
        try:
            if self._takes_length:
                self.max_length = max(before, for_length)
            return DataLoader(self._dataset(split), **self._loader_settings)
        finally:
            self.max_length = before

    def predict_dataloader(self) -> DataLoader[SessionBatch]:
        """Return batches of whole sessions, without targets."""
        return self._evaluation_loader("predict")

    @property
    def _processes(self) -> dict[str, int]:
        """Return the number of processes and the rank of this one; without a Trainer, loaders find out."""
        trainer = self.trainer
        return {} if trainer is None else {"num_replicas": trainer.world_size, "rank": trainer.global_rank}

    @property
    def _order_seed(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def _view(self, split: str) -> SessionView:
        """Return the rows of a split, which only data with a given vocabulary may lack."""
        view = self._data.views[split]
        if not len(view):
            raise ValueError(
                f"`split` must leave something for {split}, got nothing. Data with a given `vocabulary` may "
                "hold out all sessions, but then nothing can be trained, mined or counted."
                if split == "train"
                else f"`split` must leave something for {split}, got nothing. Use another split of the data."
            )
        return view

    def _dataset(self, split: str) -> SessionDataset:
        mines = split == "train" and any(self.mined_samples.values())
        return SessionDataset(
            self._view(split),
            # In training, the last item is only a target.
            max_length=self.max_length + 1 if split == "train" else self.input_length,
            skip_threshold=self.skip_threshold,
            with_seen=split != "train",
            num_warm_items=None if self._data.scores_cold else self._data.num_warm_items,
            seed=self._order_seed,
            mined=self.mined if mines else None,
            histories=self._histories_of(split) if self.history_length else None,
            history_length=self.history_length,
            **self.mined_samples,
        )

    def _histories_of(self, split: str) -> ListenerHistories:
        known = "test" if split == "predict" else split
        if known not in self._histories:
            self._histories[known] = self._data.histories(known, skip_threshold=self.skip_threshold)
        return self._histories[known]

    def _evaluation_loader(self, split: str) -> DataLoader[SessionBatch]:
        dataset = self._dataset(split)
        sampler = EvaluationSampler(dataset, **self._processes)
        return DataLoader(dataset, sampler=sampler, **self._loader_settings)

    @property
    def _loader_settings(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "collate_fn": keep_batch,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            # torch warns about page-locked memory without an accelerator.
            "pin_memory": self.pin_memory and torch.accelerator.is_available(),
        }


def _note_first_failure(exception: BaseException) -> None:
    """Add the first error of all processes to an error; it is often a lost connection to that process."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    own = f"Process {dist.get_rank()} failed first, with {type(exception).__name__}: {exception}"
    # No error of its own: the process that holds the store may have ended.
    with suppress(Exception):
        first = _get_default_store().compare_set("skipcl_lightning/first_failure", "", own).decode()
        if first != own:
            exception.add_note(first)


def _restore_warnings() -> None:
    """Remove the two filters of `setup`; others stay."""
    # typeshed calls it a sequence; it is the interpreter's own list, and only that list counts.
    filters = cast("list[Any]", warnings.filters)
    ours = (_WORKER_ADVICE, _OLD_QUESTION)
    filters[:] = [entry for entry in filters if getattr(entry[1], "pattern", None) not in ours]


def _sum_transitions(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """Return each different transition once, with the sum of its counts."""
    return pl.concat(parts).group_by("context", "follower").agg(pl.col("count").sum())


def _plan_preparation(
    log: Table | str | Path, given: Mapping[str, Any], known: GivenVocabulary | None, history_length: int
) -> tuple[Callable[[], PreparedData], float]:
    """Return a function that prepares a log or opens a store, and its skip threshold; nothing is read yet."""
    vocabulary = None if known is None else known.vocabulary
    if isinstance(log, str | Path) and Path(log).suffix == ".parquet":
        log = pl.scan_parquet(Path(log).expanduser(), glob=False)
    if isinstance(log, str | Path):
        if given:
            raise ValueError(
                f"`{next(iter(given))}` must be left alone with the store {str(log)!r}, got a value: how it "
                "was prepared is settled. Give it to `prepare_store`, or prepare another store."
            )
        folder = Path(log).expanduser()
        manifest = Manifest.read(folder)
        if history_length and "listener.npy" not in manifest.files:
            raise ValueError(UNKNOWN_LISTENERS)
        threshold = float(manifest.settings["filter"]["skip_threshold"])
        return partial(_open_on_each_rank, folder.absolute(), vocabulary), threshold
    rules = given.keys() & {rule.name for rule in fields(SessionFilter)}
    settings = PreparationSettings(
        SessionFilter(**{rule: given[rule] for rule in rules}),
        given.get("split", LeaveOneOut()),
        given.get("cold_targets", "miss"),
        vocabulary=vocabulary,
        new_items=given.get("new_items"),
        context=choose_context(given.get("context", ()), known),
    )
    frame = settings.check(log)
    if history_length and not {"user_id", "timestamp"} <= set(resolve_schema("log", frame)):
        raise ValueError(UNKNOWN_LISTENERS)
    return partial(_prepare_in_memory, frame, settings), settings.session_filter.skip_threshold


def _prepare_in_memory(frame: pl.LazyFrame | pl.DataFrame, settings: PreparationSettings) -> PreparedData:
    return prepare_into(Storage(), frame, settings)


def _open_on_each_rank(folder: Path, vocabulary: ItemVocabulary | None) -> PreparedData:
    # Only one process of a run reads the whole store to compare the checksums.
    data = open_store(folder, verify=getattr(rank_zero_only, "rank", 0) == 0)
    if vocabulary is None:
        return data
    ids, stored = vocabulary.to_series(), data.vocabulary.to_series()
    shared = min(len(ids), len(stored))
    if ids.dtype != stored.dtype or not ids.head(shared).equals(stored.head(shared)):
        raise ValueError(
            f"`vocabulary` must number the items of the store {str(folder)!r} as it does, got "
            f"{vocabulary} for {data.vocabulary}. Prepare the log again with "
            "`prepare_store(..., vocabulary=...)`, or `skipcl prepare ... --vocabulary ...`."
        )
    if len(ids) <= len(stored):
        return data
    counts = np.pad(data.item_counts, (0, len(ids) - len(stored)))
    return replace(data, vocabulary=vocabulary, item_counts=counts)
