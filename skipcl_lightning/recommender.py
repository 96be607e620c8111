"""Next-item recommendations from a trained model, with external ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

from skipcl_lightning._checks import check_integer
from skipcl_lightning.backbones.contract import evaluation_mode
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.data import recommendation_frame
from skipcl_lightning.data.encoder import Context, session_lengths
from skipcl_lightning.data.vocabulary import to_ids
from skipcl_lightning.functional import top_k_items
from skipcl_lightning.module import SkipCLModule
from skipcl_lightning.module.checkpoint import require_own_class

__all__ = ["Recommender"]

Sessions = Sequence[Sequence[str]] | Sequence[Sequence[int]]


class Recommender:
    """Exact nearest-neighbour search by inner product over the whole item table.

    The module is in evaluation mode only during a search, so its training can continue afterwards.

    Args:
        module: A trained module with its item vocabulary: loaded from a checkpoint, or fitted with a
            `SessionDataModule`.

    Raises:
        ValueError: The module has no vocabulary, or its embeddings are not finite.

    Examples:
        >>> from skipcl_lightning.backbones import SASRec
        >>> from skipcl_lightning.data import ItemVocabulary, SessionEncoder
        >>> module = SkipCLModule(SASRec(8), None, num_items=3, embedding_size=8)
        >>> module.encoder = SessionEncoder(ItemVocabulary(["song", "tune", "air"]), max_length=50)
        >>> Recommender(module).recommend([["song", "tune"]], top_k=2).columns
        ['session_id', 'rank', 'item_id', 'score']
    """

    def __init__(self, module: SkipCLModule) -> None:
        if module.encoder is None:
            raise ValueError(
                "`module` must have its item vocabulary, got one without. Fit it with a `SessionDataModule`, "
                "or set `module.encoder`."
            )
        if not module.item_table.isfinite().all():
            raise ValueError(
                "`module` must have finite item embeddings, got NaN or infinity. Its training diverged: "
                "lower the learning rate, or clip gradients."
            )
        self.module = module
        self.encoder = module.encoder

    def __repr__(self) -> str:
        backbone = type(self.module.model.backbone).__name__
        return f"Recommender({backbone}, {self.module.num_items:,} items, {self.module.device})"

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, module_class: type[SkipCLModule] | None = None, **parts: Any
    ) -> "Recommender":
        """Load a trained model, without data or settings.

        Args:
            path: A checkpoint that Lightning wrote.
            module_class: The class that was trained; needed if it is a subclass of `SkipCLModule`.
            parts: Instances of your own classes by argument name, such as `backbone=MyBackbone()`; the
                weights come from the checkpoint.

        Returns:
            The recommender, on the CPU; `recommender.module.to(device)` moves it.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The checkpoint has no vocabulary, or needs a class of your own, which the message
                names.
        """
        if module_class is None:
            require_own_class(path, SkipCLModule)
            module_class = SkipCLModule
        module = module_class.load_from_checkpoint(path, map_location="cpu", weights_only=True, **parts)
        return cls(module)

    @torch.inference_mode()
    def recommend(
        self,
        sessions: Sessions,
        feedback: Sequence[Sequence[float]] | None = None,
        *,
        explicit_feedback: Sequence[Sequence[float]] | None = None,
        histories: Sessions | None = None,
        context: Context | None = None,
        session_ids: Sequence[str] | Sequence[int] | None = None,
        top_k: int = 10,
        exclude_seen: bool = False,
        exclude_skipped: bool = True,
        unknown: str = "error",
        skip_penalty: float | None = None,
        batch_size: int = 1024,
    ) -> pl.DataFrame:
        """Return the best next items after each session.

        Args:
            sessions: Item ids of each session, in the order of time; the model sees the latest `max_length`.
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
            exclude_seen: Leave out every item of the session, also those before the latest `max_length`.
            exclude_skipped: Leave out the items that the session rejected: skipped or disliked, and not
                liked.
            unknown: What to do with an item of a session or history that was not trained: raise an `error`,
                or `ignore` it.
            skip_penalty: The weight of skip prediction in the scores, at least 0; None for the module's own.
                Above 0 it needs a `SkipPrediction` head.
            batch_size: Sessions encoded at once.

        Returns:
            `session_id`, `rank` (from 1), `item_id`, `score`, and with a `SkipPrediction` head
            `skip_probability`, the probability that the session skips the item next. A session has fewer
            than `top_k` rows if exclusions and retired items leave fewer.

        Raises:
            TypeError: Ids have another type than the trained ones.
            ValueError: A session is empty, an item is unknown, feedback is out of range, a column of the
                context is missing, or `top_k` is above the catalogue's size.
        """
        check_integer(
            "top_k", top_k, maximum=self.module.num_items, cure="The catalogue holds no more than that."
        )
        check_integer("batch_size", batch_size)
        lengths = session_lengths(sessions)
        names = to_ids("session_ids", range(len(sessions)) if session_ids is None else session_ids)
        if len(names) != len(sessions):
            raise ValueError(
                f"`session_ids` must name each session, got {len(names)} for {len(sessions)}. Give one each."
            )
        # Exclusions cover the whole session, even if the model sees only its latest items.
        longest = int(lengths.max())
        whole = self.encoder.replace(max_length=longest)
        with self.module.at_skip_penalty(skip_penalty):
            table = self.module.item_table
        frames = []
        for start in range(0, len(sessions), batch_size):
            rows = slice(start, start + batch_size)
            batch = whole.encode(
                sessions[rows],
                None if feedback is None else feedback[rows],
                explicit_feedback=None if explicit_feedback is None else explicit_feedback[rows],
                histories=None if histories is None else histories[rows],
                context=None if context is None else _take_sessions(context, rows),
                unknown=unknown,
            ).to(self.module.device)
            latest = batch.latest(self.encoder.max_length)
            exclude = _excluded(batch, exclude_seen=exclude_seen, exclude_skipped=exclude_skipped)
            with evaluation_mode(self.module), self.module.at_skip_penalty(skip_penalty):
                query, added = self.module.session_query(latest), self.module.added_scores(latest)
                items, scores = top_k_items(
                    query, table, top_k, exclude=exclude, added=added, retired=self.module.retired
                )
                skips = self.module.skip_probability(latest, items) if self.module.predicts_skips else None
            frames.append(recommendation_frame(names[rows], items, scores, self.encoder.vocabulary, skips))
        return pl.concat(frames)

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
            >>> module = SkipCLModule(SASRec(8), num_items=2)
            >>> module.encoder = SessionEncoder(ItemVocabulary(["song", "tune"]), max_length=50)
            >>> Recommender(module).embed_items().columns
            ['item_id', 'embedding']
        """
        table = self.module.model.item_table[PADDING_INDEX + 1 :].float().cpu().numpy()
        return pl.DataFrame({"item_id": self.encoder.vocabulary.to_series(), "embedding": table})


def _take_sessions(context: Context, rows: slice) -> Context:
    return {name: None if values is None else values[rows] for name, values in context.items()}


def _excluded(batch: SessionBatch, *, exclude_seen: bool, exclude_skipped: bool) -> torch.Tensor | None:
    """[B, L] items that are no candidates, 0 for none."""
    if exclude_seen:
        return batch.items
    if exclude_skipped:
        return torch.where(batch.rejected_mask, batch.items, PADDING_INDEX)
    return None
