"""Next-item recommendations from a trained model, with external ids."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipcl_lightning._checks import check_choice, check_flag, check_integer, is_ordered
from skipcl_lightning._files import check_num_items, named_in_errors, open_checkpoint
from skipcl_lightning.backbones.contract import evaluation_mode
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.data import SessionEncoder, recommendation_frame
from skipcl_lightning.data.canonical_table import ArrowTable
from skipcl_lightning.data.encoder import (
    Context,
    check_columns,
    check_rows,
    flatten,
    group_sessions,
    session_lengths,
)
from skipcl_lightning.data.prepare.inputs import CHECKPOINT_KEY
from skipcl_lightning.data.vocabulary import UNKNOWN_CHOICES, plain, to_ids
from skipcl_lightning.export import export_model, load_export
from skipcl_lightning.export.hub import Report, fetch_folder, model_card, push_folder
from skipcl_lightning.export.item_index import ItemIndex
from skipcl_lightning.functional import top_k_items
from skipcl_lightning.model import Scorer, Scoring

if TYPE_CHECKING:
    from typing_extensions import TypeIs


__all__ = ["Recommender"]

Sessions = Sequence[Sequence[str]] | Sequence[Sequence[int]]
Ids = Sequence[str] | Sequence[int]
Frame = pl.LazyFrame | ArrowTable
# For methods without `unknown`.
_KNOWN_ALONE = "Leave such tracks out, or train on data that has them."


class Recommender:
    """Exact nearest-neighbour search by inner product over the whole item table.

    The module is in evaluation mode only during a search, so its training can continue afterwards.

    With a `skip_penalty` or an item tower, the table of all items is computed for each call while a weight
    requires a gradient, and kept otherwise. The class methods load models without gradients; freeze one that
    you trained (`module.freeze()`) before many calls. A kept table follows changes in place and new weights,
    but torch does not count writes to the `data` of a weight: make a new `Recommender(module)` after those.

    Args:
        module: A trained `SkipCLModule`, or a `Scorer`. Recommendations follow its later changes.
        encoder: The item vocabulary and the longest session; None for that of the module, which has one if it
            was loaded from a checkpoint or fitted with a `SessionDataModule`.

    Raises:
        ValueError: The module has no vocabulary, or its embeddings are not finite.

    Examples:
        >>> from skipcl_lightning.backbones import SASRec
        >>> from skipcl_lightning.data import ItemVocabulary, SessionEncoder
        >>> from skipcl_lightning.model import Scorer, SessionModel
        >>> encoder = SessionEncoder(ItemVocabulary(["song", "tune", "air"]), max_length=50)
        >>> scorer = Scorer(SessionModel(SASRec(8), num_items=3))
        >>> Recommender(scorer, encoder).recommend([["song", "tune"]], top_k=2).columns
        ['session_id', 'rank', 'item_id', 'score']
    """

    def __init__(self, module: Scoring, encoder: SessionEncoder | None = None) -> None:
        encoder = getattr(module, "encoder", None) if encoder is None else encoder
        if encoder is None:
            raise ValueError(
                "`module` must have its item vocabulary, got one without. Fit it with a `SessionDataModule`, "
                "or pass an `encoder`."
            )
        if not module.item_table.isfinite().all():
            raise ValueError(
                "`module` must have finite item embeddings, got NaN or infinity. Its training diverged: "
                "lower the learning rate, or clip gradients."
            )
        self.scorer = module
        self.encoder: SessionEncoder = encoder
        self._kept: tuple[tuple[bool, list[tuple[int, int, int]]], list[Tensor], Tensor] | None = None

    def __repr__(self) -> str:
        backbone = type(self.scorer.model.backbone).__name__
        return f"Recommender({backbone}, {self.scorer.num_items:,} items, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.scorer.model.item_embedding.weight.device

    def to(self, device: torch.device | str) -> "Recommender":
        """Move the weights to a device.

        Args:
            device: Such as `cuda`.

        Returns:
            The recommender itself.
        """
        self.scorer.to(device)
        return self

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, module_class: type[Scoring] | None = None, **parts: Any
    ) -> "Recommender":
        """Load a trained model, without data or settings.

        Lightning is imported only for a class or part of your own.

        Args:
            path: A checkpoint that Lightning wrote.
            module_class: The class that was trained; needed if it is a subclass of `SkipCLModule`.
            parts: Instances of your own classes by argument name, such as `backbone=MyBackbone()`; the
                weights come from the checkpoint.

        Returns:
            The recommender, on the CPU.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged or another program's, the checkpoint has no vocabulary, or it
                needs a class of your own, which the message names.
        """
        if module_class is not None or parts:
            return cls(_load_module(path, module_class, parts).requires_grad_(False))
        with named_in_errors(path):
            checkpoint = open_checkpoint(path)
            own = checkpoint.get(CHECKPOINT_KEY, {})
            _refuse_own_class(own)
            check_num_items(checkpoint)
            scorer = Scorer.from_settings(checkpoint["hyper_parameters"], checkpoint["state_dict"])
            encoder = own.get("encoder")
            encoder = None if encoder is None else SessionEncoder.from_state_dict(encoder)
            return cls(scorer.requires_grad_(False), encoder)

    @classmethod
    def from_export(cls, folder: str | Path, *, backbone: nn.Module | None = None) -> "Recommender":
        """Load a model from a folder that `skipcl export` wrote.

        Args:
            folder: The folder.
            backbone: An instance of your own class, if the model has one.

        Returns:
            The recommender, on the CPU.

        Raises:
            FileNotFoundError: There is no such folder.
            ImportError: A package of the extra `export` is not installed.
            ValueError: A file is missing, damaged or of another model, or the backbone must be passed.
        """
        scorer, encoder = load_export(folder, backbone=backbone)
        return cls(scorer.requires_grad_(False), encoder)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        backbone: torch.nn.Module | None = None,
    ) -> "Recommender":
        """Load a model of the Hugging Face Hub, or an exported folder. No code of the repository runs.

        Needs the extra `export`, and `hub` unless `model` is a folder.

        Args:
            model: A repository, `user/name`, or the path of a folder.
            revision: A branch, tag or commit of the repository; None for `main`. A commit never changes.
            token: An access token for a private repository; None for the one that `hf auth login` stored.
            backbone: An instance of your own class; None for a built-in backbone.

        Returns:
            The recommender, on the CPU.

        Raises:
            ImportError: A package of these extras is not installed.
            ValueError: `model` is no name of a repository, or as for `from_export`.
        """
        folder = Path(model).expanduser()
        if not folder.is_dir():
            folder = fetch_folder(str(model), revision=revision, token=token)
        return cls.from_export(folder, backbone=backbone)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        report: Report | None = None,
        dataset: str | None = None,
        licence: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        message: str = "Upload a skipcl_lightning model",
    ) -> str:
        """Upload the exported model to the Hugging Face Hub, with a model card, in one commit.

        The repository holds weights, items with their ids, and settings, without pickles. Needs the extras
        `export` and `hub`.

        Args:
            repo_id: The repository, `user/name`, which is made if there is none. Its files are replaced.
            report: The result of `evaluate` on the test set, for the card; None leaves metrics out.
            dataset: The name of the training data, for the card.
            licence: The licence of the weights, as an identifier of the Hub such as `mit`.
            private: Whether a new repository is private; None for the account's default.
            token: An access token that may write; None for the one that `hf auth login` stored. It is not
                written anywhere.
            message: The message of the commit.

        Returns:
            The address of the repository.

        Raises:
            ImportError: A package of these extras is not installed.
            ValueError: `repo_id` is no name of a repository, or as for `export_model`.
        """
        card = model_card(
            self.scorer, self.encoder, repo_id=repo_id, report=report, dataset=dataset, licence=licence
        )
        with tempfile.TemporaryDirectory() as folder:
            model = export_model(self.scorer, self.encoder, Path(folder, "model"), onnx=False, pt2=False)
            return push_folder(model, repo_id, card=card, private=private, token=token, message=message)

    @torch.inference_mode()
    def recommend(
        self,
        sessions: Sessions | Frame,
        feedback: Sequence[Sequence[float]] | None = None,
        *,
        explicit_feedback: Sequence[Sequence[float]] | None = None,
        histories: Sessions | None = None,
        context: Context | None = None,
        session_ids: Sequence[str] | Sequence[int] | None = None,
        top_k: int = 10,
        exclude_seen: bool | None = None,
        exclude_skipped: bool = True,
        exclude: Ids = (),
        allowed: Ids | None = None,
        unknown: str = "error",
        skip_penalty: float | None = None,
        batch_size: int = 1024,
        index: ItemIndex | None = None,
    ) -> pl.DataFrame:
        """Return the best next items after each session.

        Args:
            sessions: Item ids of each session, in the order of time; the model sees the latest `max_length`.
                Lists, arrays, series, or tensors of integer ids without padding. Or a polars, pandas or Arrow
                table with a row for each play: `session_id`, `item_id`, perhaps `feedback` and
                `explicit_feedback`, and the columns of the context. A session's rows are sorted by
                `position`, or else by `timestamp`, and without either must be in the order of time. Equal
                times stay in the order of the rows, or in reverse where the table runs from the newest row
                to the oldest; so do the rows of a session with an unknown time. With a table, `feedback`,
                `explicit_feedback`, `context` and `session_ids` are left out.
            feedback: The feedback on each item, in [-1, 1]; None for unknown (0), which a model trained with
                feedback as an input has seldom seen.
            explicit_feedback: Likes and dislikes, in [-1, 1]: below 0 disliked, above 0 liked.
            histories: For each session, the ids of the items that its listener listened to in earlier
                sessions, the oldest first, without rejected ones; perhaps none. Only for a model that was
                trained with a `history_length`, which sees the latest of that number.
            context: What the inputs of `SkipCLModule(context_sizes=…)` need: by column of the training log
                (`timestamp` for `gap`, `hour` and `weekday`), a value for each item of each session, None
                where it is unknown; or None in place of the column if all of it is unknown.
            session_ids: The names of the sessions in the result; None for 0, 1, …
            top_k: Items for each session, at most the catalogue's size.
            exclude_seen: Leave out every item of the session, also those before the latest `max_length`; None
                for the module's own `exclude_seen`.
            exclude_skipped: Leave out the items that the session rejected: skipped or disliked, and not
                liked.
            exclude: Ids to leave out of every list, in any order.
            allowed: The only ids that may be recommended; None for all.
            unknown: What to do with an item of a session, history, `exclude` or `allowed` that was not
                trained: raise an `error`, or `ignore` it. `unknown_items` counts those of sessions.
            skip_penalty: The weight of skip prediction in the scores, at least 0; None for the module's own.
                Above 0 it needs a `SkipPrediction` head.
            batch_size: Sessions encoded at once.
            index: Search with FAISS, which is faster in a large catalogue and almost exact; None for exact.

        Returns:
            `session_id`, `rank` (from 1), `item_id`, `score`, and with a `SkipPrediction` head
            `skip_probability`, the probability that the session skips the item next. A session has fewer
            than `top_k` rows if exclusions and retired items leave fewer.

        Raises:
            TypeError: Ids have another type than the trained ones.
            ValueError: A session is empty, an item of it, `exclude` or `allowed` is unknown, feedback is out
                of range, a column of the context is missing, `top_k` is above the catalogue's size, or
                `index` is of another model.
        """
        check_integer(
            "top_k", top_k, maximum=self.scorer.num_items, cure="The catalogue holds no more than that."
        )
        check_integer("batch_size", batch_size)
        if index is not None:
            if not isinstance(index, ItemIndex):
                raise TypeError(
                    f"`index` must be an ItemIndex, got {type(index).__name__}. Build or load one."
                )
            index.check(self.scorer, self.encoder)
        check_choice("unknown", unknown, UNKNOWN_CHOICES)
        if exclude_seen is None:
            exclude_seen = self.scorer.exclude_seen
        check_flag("exclude_seen", exclude_seen)
        check_flag("exclude_skipped", exclude_skipped)
        given = _Given.of(
            sessions, feedback, explicit_feedback, histories, context, session_ids, self._context_columns
        )
        # Exclusions cover the whole session, even if the model sees only its latest items.
        whole = self.encoder.replace(max_length=int(session_lengths(given.sessions).max()))
        with self.scorer.at_skip_penalty(skip_penalty):
            table = self._item_table()
        left_out = self._left_out(exclude, allowed, unknown)
        search = top_k_items if index is None else index.top_k_items
        frames = []
        for part in given.parts(batch_size):
            batch = part.encode(whole, unknown).to(self.device)
            latest = batch.latest(self.encoder.max_length)
            own = _excluded(batch, exclude_seen=exclude_seen, exclude_skipped=exclude_skipped)
            with evaluation_mode(self.scorer), self.scorer.at_skip_penalty(skip_penalty):
                query, added = self.scorer.session_query(latest), self.scorer.added_scores(latest)
                items, scores = search(query, table, top_k, exclude=own, added=added, retired=left_out)
                skips = self.scorer.skip_probability(latest, items) if self.scorer.predicts_skips else None
            frames.append(recommendation_frame(part.names, items, scores, self.encoder.vocabulary, skips))
        return pl.concat(frames)

    @property
    def _context_columns(self) -> Sequence[str]:
        return () if self.encoder.context is None else self.encoder.context.columns

    def _item_table(self) -> Tensor:
        """The candidates at the present `skip_penalty`, which are not computed again for the same weights."""
        scorer = self.scorer
        is_weight = scorer.skip_penalty == 0 and scorer.model.item_tower is None
        weights = [*scorer.parameters(), *scorer.buffers()]
        # torch counts no changes of tensors of inference mode, nor those by its fused optimizers.
        if is_weight or any(one.requires_grad or one.is_inference() for one in weights):
            return scorer.item_table
        versions = [(id(one), one.data_ptr(), one._version) for one in weights]
        state = (scorer.skip_penalty > 0, versions)
        if self._kept is None or self._kept[0] != state:
            # With the weights, so that no new one gets the id of an old one.
            self._kept = (state, weights, scorer.item_table)
        return self._kept[2]

    def _left_out(self, exclude: Ids, allowed: Ids | None, unknown: str) -> Tensor | None:
        """[V + 1] bool, the items that no session is recommended; None for none."""
        retired, excluded = self.scorer.retired, self._look_up("exclude", exclude, unknown)
        if allowed is None and not len(excluded):
            return retired
        mask = torch.full((self.scorer.num_items + 1,), allowed is not None, device=self.device)
        if allowed is not None:
            mask[self._look_up("allowed", allowed, unknown)] = False
        mask[excluded] = True
        return mask if retired is None else mask | retired

    def _look_up(
        self,
        name: str,
        ids: Ids | AbstractSet[Any],
        unknown: str = "error",
        cure: str = "`unknown='ignore'` leaves them out.",
    ) -> Tensor:
        """Return the indices of ids, of a set in any order; 0 for an ignored one."""
        vocabulary = self.encoder.vocabulary
        given = to_ids(name, tuple(ids) if isinstance(ids, AbstractSet) else ids, vocabulary.dtype)
        found = torch.tensor(vocabulary.encode(given, unknown="ignore"))
        missing = found == PADDING_INDEX
        if unknown == "error" and missing.any():
            first = given[int(missing.nonzero()[0])]
            raise ValueError(
                f"`{name}` must hold tracks of the vocabulary, got {first!r} ({int(missing.sum())} unknown "
                f"in all). {cure}"
            )
        return found.to(self.device)

    def after_skip(
        self,
        session: Sequence[str] | Sequence[int],
        track: str | int,
        feedback: Sequence[float] | None = None,
        *,
        track_feedback: float = -1.0,
        explicit_feedback: Sequence[float] | None = None,
        history: Ids | None = None,
        context: Mapping[str, Sequence[Any] | None] | None = None,
        top_k: int = 10,
        depth: int = 1000,
        exclude_seen: bool | None = None,
        skip_penalty: float | None = None,
    ) -> pl.DataFrame:
        """Return how the recommendations move when the listener skips a track now.

        Args:
            session: Item ids in the order of time.
            track: The id of the track that is skipped.
            feedback: The feedback on each item of the session, as for `recommend`.
            track_feedback: The feedback on the track, in [-1, 1]; such as 1 to see how the list moves when it
                is listened to.
            explicit_feedback: Likes and dislikes of the items of the session; the track gets 0.
            history: The ids of the items that the listener listened to in earlier sessions, for a model that
                was trained with a `history_length`.
            context: By column, as for `recommend`, a value for each item of the session and at last one for
                the track.
            top_k: Items of each list.
            depth: Ranks below this one are not looked for.
            exclude_seen: As for `recommend`.
            skip_penalty: As for `recommend`.

        Returns:
            The items of both lists: `item_id`, `rank` and `rank_before` (from 1; null below `depth` and for
            items that are left out), `score`, and with a `SkipPrediction` head `skip_probability` and
            `skip_probability_before`. In the order of `rank`, those that have none last.

        Raises:
            TypeError: As for `recommend`.
            ValueError: As for `recommend`. An unknown item is always an error.
        """
        check_integer("top_k", top_k)
        check_integer("depth", depth, minimum=top_k)
        if context is not None and not isinstance(context, Mapping):
            raise TypeError(f"`context` must be a dictionary of columns, got {type(context).__name__}.")
        lists = {"feedback": feedback, "explicit_feedback": explicit_feedback, **(context or {})}
        for name, values in {**lists, "session": session}.items():
            if not (is_ordered(values) or (values is None and name != "session")):
                raise TypeError(f"`{name}` must be a list with a value for each track, got {values!r}.")
        _check_moved(session, track_feedback, feedback=feedback, explicit_feedback=explicit_feedback)
        earlier = [] if history is None else history
        ids: Any
        for name, ids in (("session", session), ("track", [track]), ("history", earlier)):
            self._look_up(name, ids, cure=_KNOWN_ALONE)
        items = [*plain(session), track]
        signals = [*([0.0] * len(session) if feedback is None else plain(feedback)), track_feedback]
        likes = None if explicit_feedback is None else [*plain(explicit_feedback), 0.0]
        # The longer session first, because lengths are checked against it.
        after, before = (
            self.recommend(
                [items[:stop]],
                [signals[:stop]],
                explicit_feedback=None if likes is None else [likes[:stop]],
                histories=None if history is None else [history],  # type: ignore[arg-type]
                context=context
                and {name: None if values is None else [values[:stop]] for name, values in context.items()},
                top_k=min(depth, self.scorer.num_items),
                exclude_seen=exclude_seen,
                skip_penalty=skip_penalty,
            ).drop("session_id")
            for stop in (len(items), -1)
        )
        joined = after.join(before, on="item_id", how="full", coalesce=True, suffix="_before")
        shown = joined.filter((pl.col("rank") <= top_k) | (pl.col("rank_before") <= top_k))
        columns = ["item_id", "rank", "rank_before", "score", "skip_probability", "skip_probability_before"]
        return shown.select(name for name in columns if name in shown.columns).sort(
            "rank", "rank_before", nulls_last=True
        )

    @torch.inference_mode()
    def similar_items(self, items: Sequence[str] | Sequence[int], *, top_k: int = 10) -> pl.DataFrame:
        """Return the items whose embeddings have the largest cosine with those of given ones.

        Args:
            items: N ids.
            top_k: Similar items of each, at most V - 1.

        Returns:
            `item_id`, `rank` (from 1), `similar_item_id` and `cosine`; without the item itself and without
            retired ones.

        Raises:
            TypeError: Ids have another type than the trained ones.
            ValueError: An item is unknown, or `top_k` is above V - 1.
        """
        check_integer(
            "top_k", top_k, maximum=self.scorer.num_items - 1, cure="The catalogue has no more other items."
        )
        vocabulary = self.encoder.vocabulary
        ids = to_ids("items", items, vocabulary.dtype)
        indices = self._look_up("items", items, cure=_KNOWN_ALONE)
        table = F.normalize(self.scorer.model.item_table.float(), dim=1)
        found, cosines = top_k_items(
            table[indices], table, top_k, exclude=indices[:, None], retired=self.scorer.retired
        )
        names = {"session_id": "item_id", "item_id": "similar_item_id", "score": "cosine"}
        return recommendation_frame(ids, found, cosines, vocabulary, None).rename(names)

    @torch.inference_mode()
    def embed_sessions(
        self,
        sessions: Sessions | Frame,
        feedback: Sequence[Sequence[float]] | None = None,
        *,
        explicit_feedback: Sequence[Sequence[float]] | None = None,
        histories: Sessions | None = None,
        context: Context | None = None,
        session_ids: Sequence[str] | Sequence[int] | None = None,
        unknown: str = "error",
        skip_penalty: float | None = None,
        batch_size: int = 1024,
    ) -> pl.DataFrame:
        """Return the query of each session, whose inner products with the items are their scores.

        Args:
            sessions: As for `recommend`.
            feedback: As for `recommend`.
            explicit_feedback: As for `recommend`.
            histories: As for `recommend`.
            context: As for `recommend`.
            session_ids: The names of the sessions in the result; None for 0, 1, …
            unknown: As for `recommend`.
            skip_penalty: As for `recommend`. Above 0, an embedding is as `SkipPrediction.extended_query`, for
                the vectors of `items.parquet` that `export_model` writes.
            batch_size: Sessions encoded at once.

        Returns:
            `session_id` and `embedding` (Array of D, or D + M + 1, Float32).

        Raises:
            TypeError: As for `recommend`.
            ValueError: As for `recommend`.
        """
        check_integer("batch_size", batch_size)
        given = _Given.of(
            sessions, feedback, explicit_feedback, histories, context, session_ids, self._context_columns
        )
        queries = []
        for part in given.parts(batch_size):
            batch = part.encode(self.encoder, unknown).to(self.device)
            with evaluation_mode(self.scorer), self.scorer.at_skip_penalty(skip_penalty):
                queries.append(self.scorer.session_query(batch).float().cpu())
        return pl.DataFrame({"session_id": given.names, "embedding": torch.cat(queries).numpy()})

    def unknown_items(self, sessions: Sessions | Frame) -> pl.DataFrame:
        """Return the items that the model does not know, which `unknown="ignore"` leaves out.

        Args:
            sessions: As for `recommend`.

        Returns:
            `item_id` and `count`, the number of plays; the most frequent first, equal counts by id.

        Raises:
            TypeError: Ids have another type than the trained ones.
            ValueError: There are no sessions, or one is empty.

        Examples:
            >>> from skipcl_lightning.backbones import SASRec
            >>> from skipcl_lightning.data import ItemVocabulary, SessionEncoder
            >>> from skipcl_lightning.model import Scorer, SessionModel
            >>> encoder = SessionEncoder(ItemVocabulary(["song", "tune"]), max_length=50)
            >>> recommender = Recommender(Scorer(SessionModel(SASRec(8), num_items=2)), encoder)
            >>> recommender.unknown_items([["song", "air"], ["air"]]).rows()
            [('air', 2)]
        """
        tracks = _Given.of(sessions).sessions
        session_lengths(tracks)
        vocabulary = self.encoder.vocabulary
        flat = to_ids("sessions", flatten(tracks), vocabulary.dtype)
        missing = flat.filter(pl.Series(vocabulary.encode(flat, unknown="ignore") == PADDING_INDEX))
        counts = missing.alias("item_id").value_counts()
        return counts.sort("count", "item_id", descending=[True, False])

    @torch.inference_mode()
    def embed_items(self) -> pl.DataFrame:
        """Return the embedding of each item, for another search index, clustering or similar items.

        Returns:
            `item_id` and `embedding` (Array of D Float32), in the order of the vocabulary. With
            `item_features`, embeddings include the content. Inner products with queries are the scores,
            without a `skip_penalty` and transitions.

        Examples:
            >>> from skipcl_lightning.backbones import SASRec
            >>> from skipcl_lightning.data import ItemVocabulary, SessionEncoder
            >>> from skipcl_lightning.model import Scorer, SessionModel
            >>> encoder = SessionEncoder(ItemVocabulary(["song", "tune"]), max_length=50)
            >>> Recommender(Scorer(SessionModel(SASRec(8), num_items=2)), encoder).embed_items().columns
            ['item_id', 'embedding']
        """
        table = self.scorer.model.item_table[PADDING_INDEX + 1 :].float().cpu().numpy()
        return pl.DataFrame({"item_id": self.encoder.vocabulary.to_series(), "embedding": table})


def _check_moved(session: Ids, track_feedback: Any, **signals: Sequence[float] | None) -> None:
    """Raise unless there is a session, with as many values of feedback, and that of the track is in range."""
    if not len(session):
        raise ValueError(
            "`session` must hold at least one track before the skipped one, got none. Give what played."
        )
    for name, values in signals.items():
        if values is not None and len(values) != len(session):
            raise ValueError(
                f"`{name}` must have one value a track of `session`, got {len(values)} for {len(session)}. "
                "Use 0 for tracks without feedback."
            )
    # What is no number is refused with the session's feedback.
    if isinstance(track_feedback, Real) and not -1 <= float(track_feedback) <= 1:
        raise ValueError(f"`track_feedback` must be in [-1, 1], got {track_feedback}. -1 is a skip.")


def _load_module(path: str | Path, module_class: Any, parts: dict[str, Any]) -> Scoring:
    """Return a module with parts of its own classes."""
    from skipcl_lightning.module import SkipCLModule  # here, because Lightning takes seconds to import

    if module_class is None:
        _refuse_own_class(open_checkpoint(path, records="settings").get(CHECKPOINT_KEY, {}))
        module_class = SkipCLModule
    module: Scoring = module_class.load_from_checkpoint(path, map_location="cpu", weights_only=True, **parts)
    return module


def _refuse_own_class(values: Mapping[str, Any]) -> None:
    """Raise if a checkpoint was written by a subclass, whose code `SkipCLModule` does not know."""
    trained = values.get("module_class", "SkipCLModule")
    if trained != "SkipCLModule":
        raise ValueError(
            f"`module_class` must be the class that was trained, got none for {trained!r}. Pass "
            f"`module_class={trained}`, or `module_class=SkipCLModule` if it changes only the training."
        )


@dataclass(frozen=True)
class _Given:
    """Sessions of external ids with their names and all that is known of them."""

    sessions: Sequence[Sequence[Any]]
    names: pl.Series
    feedback: Sequence[Sequence[float]] | None = None
    explicit_feedback: Sequence[Sequence[float]] | None = None
    histories: Sequence[Sequence[Any]] | None = None
    context: Context | None = None

    @classmethod
    def of(
        cls,
        sessions: Sessions | Frame,
        feedback: Sequence[Sequence[float]] | None = None,
        explicit_feedback: Sequence[Sequence[float]] | None = None,
        histories: Sessions | None = None,
        context: Context | None = None,
        session_ids: Sequence[str] | Sequence[int] | None = None,
        context_columns: Sequence[str] = (),
    ) -> "_Given":
        """Return the arguments of `Recommender.recommend`, taken from a table if there is one."""
        if _is_table(sessions):
            for name, value in (
                ("feedback", feedback),
                ("explicit_feedback", explicit_feedback),
                ("context", context),
                ("session_ids", session_ids),
            ):
                if value is not None:
                    raise ValueError(
                        f"`{name}` must be None for a table of sessions, got {type(value).__name__}. The "
                        "table has it as a column."
                    )
            found: dict[str, Any] = group_sessions(sessions, context_columns)
            return cls(
                found["item_id"],
                to_ids("session_id", found["session_id"]),
                found.get("feedback"),
                found.get("explicit_feedback"),
                histories,
                {name: found[name] for name in context_columns},
            )
        length = len(session_lengths(sessions))
        names = to_ids("session_ids", range(length) if session_ids is None else session_ids)
        if len(names) != length:
            raise ValueError(
                f"`session_ids` must name each session, got {len(names)} for {length}. Give one each."
            )
        return cls(sessions, names, feedback, explicit_feedback, histories, context)

    def parts(self, size: int) -> Iterator["_Given"]:
        """Yield `size` sessions at a time, after a check that all arguments have as many."""
        for name in ("feedback", "explicit_feedback", "histories"):
            if getattr(self, name) is not None:
                check_rows(name, getattr(self, name), len(self.sessions))
        if self.context is not None:
            check_columns(self.context, len(self.sessions))

        def cut(values: Any, rows: slice) -> Any:
            if isinstance(values, Mapping):
                return {name: cut(column, rows) for name, column in values.items()}
            return None if values is None else values[rows]

        for start in range(0, len(self.sessions), size):
            rows = slice(start, start + size)
            yield _Given(*(cut(values, rows) for values in vars(self).values()))

    def encode(self, encoder: SessionEncoder, unknown: str) -> SessionBatch:
        """Return the batch that a model sees."""
        try:
            return encoder.encode(
                self.sessions,
                self.feedback,
                explicit_feedback=self.explicit_feedback,
                histories=self.histories,
                context=self.context,
                unknown=unknown,
            )
        except (TypeError, ValueError) as error:
            first = self.names[0]
            if first == 0:
                raise
            raise type(error)(f"{error} Session 0 of these is {first!r}.") from error


def _is_table(sessions: Sessions | Frame) -> "TypeIs[Frame]":
    """Return whether sessions are rows of a table; a series of polars or pandas holds lists."""
    if type(sessions).__name__ == "Series":
        return False
    return isinstance(sessions, pl.LazyFrame) or hasattr(sessions, "__arrow_c_stream__")


def _excluded(batch: SessionBatch, *, exclude_seen: bool, exclude_skipped: bool) -> torch.Tensor | None:
    """[B, L] items that are no candidates, 0 for none."""
    if exclude_seen:
        return batch.items
    if exclude_skipped:
        return torch.where(batch.rejected_mask, batch.items, PADDING_INDEX)
    return None
