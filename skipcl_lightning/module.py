"""The LightningModule: item table, backbone, next-item loss, skip head and metrics, wired together."""

from collections.abc import Sequence

import polars as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import MetricCollection

from skipcl_lightning._checks import check_integer, check_number
from skipcl_lightning._settings import Part, build_part
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import SessionDataModule, recommendation_frame
from skipcl_lightning.functional import skip_pair_scores, target_ranks, top_k_items
from skipcl_lightning.functional.positions import TargetRule
from skipcl_lightning.functional.ranks import TieRule
from skipcl_lightning.heads import NEXT_ITEM_LOSSES, SKIP_HEADS, CombinedHead, FullSoftmax
from skipcl_lightning.heads.sparse import look_rows_up_alone, use_sparse_gradients
from skipcl_lightning.metrics import session_metrics
from skipcl_lightning.metrics.session_metrics import describe_left_out
from skipcl_lightning.trained_model import TrainedModel

__all__ = ["SkipCLModule"]


class SkipCLModule(TrainedModel):
    """Learns what a listener plays next, and what not, from sessions with skips.

    Tracks are embedded by one table, which scores them too; the backbone turns a session into z_t after
    each track; the loss is L = L_next + λ · L_skip. Validation and test rank each held-out track among the
    whole catalogue and log the metrics of ``session_metrics`` whose population is not empty.

    Pass another backbone or loss, or subclass and override ``build_backbone``, ``embed``, ``losses``, a step
    or ``configure_optimizers``; a subclass's arguments are kept in ``hparams`` without a call of its own.

    A checkpoint is whole: weights, settings, the names and settings of built-in parts, and, if the module
    was fitted with a ``SessionDataModule``, the item vocabulary. It loads with ``weights_only=True`` and
    without arguments, except for parts of your own, which are passed again by their argument's name.

    Args:
        backbone: Any module ``forward(x [B, L, D], valid_mask [B, L]) -> [B, L, D]``; one that looks at
            later tracks says so with ``causal = False``, and is trained by the cloze task. One with a
            ``max_length`` gets the latest tracks only; one whose ``forward`` takes ``last_only`` may return
            [B, 1, D], the last real positions, where that is True. None calls ``build_backbone``.
        skip_head: The skip-contrastive loss, ``forward(query, keys, batch) -> scalar``, with
            ``weight_at(step)`` for λ (1 without it); one whose ``uses_item_table`` is True is given the table
            as a fourth argument. None trains on the next-item task alone. Beside a
            bidirectional backbone it must take its anchors from ``batch.cloze_mask``, and say so with a
            method ``check_cloze()``.
        num_items: V, the catalogue's size; ``SessionDataModule.num_items``.
        embedding_size: D.
        next_item_loss: ``forward(query, item_embeddings, target) -> scalar``; None is ``FullSoftmax``. With a
            ``like_weight`` other than 1 it is given weights [B, L] as a fourth argument; with an attribute
            ``takes_most_targets`` that is true, the batch's ``num_tracks`` as ``most_targets`` too.
        target_rule: Which track is the target at each position: ``next_listened`` (the paper) or ``next``.
            A bidirectional backbone is asked for hidden tracks, listened ones or all.
        feedback_input: Add an embedding of each past track's feedback to the track's own, linear in its
            strength: one each for listening, skips, likes and dislikes; from zero on. On by default, since it
            gained more than any head in the study (README); recommendations then want the feedback too.
        like_weight: How much a liked target counts in the next-item loss, above 0; all others count 1. A
            disliked one is never a target.
        mask_probability: How likely a track is hidden from a bidirectional backbone in a training step, in
            (0, 1]; 0.2 if None. Causal backbones have no use for it.
        last_mask_probability: How likely a session hides only its last target instead, in [0, 1]; 0.1 if
            None. Causal backbones have no use for it.
        sparse_item_table: Update only the rows of the item table that a step uses (``SparseAdamW``), so that
            a step costs about the same whatever V is. Needs a loss that looks up rows, as ``SampledSoftmax``.
        exclude_seen: Leave the session's tracks out of the candidates at evaluation and prediction. Off,
            since listeners repeat tracks; the target itself is never left out.
        top_k: The cut-offs of the metrics.
        ties: How ties between scores count in ranks.
        learning_rate: AdamW's, above 0.
        weight_decay: AdamW's, on matrices other than the item table.
        warmup_steps: Optimizer steps over which the learning rate rises linearly; 0 for none.

    Raises:
        TypeError: A part or setting has the wrong type.
        ValueError: A setting is out of range or has no use, or the backbone does not fit or sees what it
            must not.

    Reference:
        Seshadri, Shashaani, Knees: Enhancing Sequential Music Recommendation with Negative
        Feedback-informed Contrastive Learning, RecSys 2024, arXiv 2409.07367.

    Example:
        >>> import torch
        >>> from skipcl_lightning.backbones import SASRec
        >>> from skipcl_lightning.heads import SkipInfoNCE
        >>> module = SkipCLModule(SASRec(16), SkipInfoNCE(weight=0.3), num_items=100, embedding_size=16)
        >>> batch = SessionBatch(torch.tensor([[5, 3, 4]]), torch.tensor([[1.0, -1.0, 1.0]]))
        >>> module(batch).shape
        torch.Size([1, 3, 16])
    """

    def __init__(
        self,
        backbone: Part | None = None,
        skip_head: Part | None = None,
        *,
        num_items: int,
        embedding_size: int = 64,
        next_item_loss: Part | None = None,
        target_rule: TargetRule = "next_listened",
        feedback_input: bool = True,
        like_weight: float = 1.0,
        mask_probability: float | None = None,
        last_mask_probability: float | None = None,
        sparse_item_table: bool = False,
        exclude_seen: bool = False,
        top_k: Sequence[int] = (1, 5, 10, 20),
        ties: TieRule = "pessimistic",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        check_number("learning_rate", learning_rate, minimum=0, open_minimum=True)
        check_number("weight_decay", weight_decay, minimum=0)
        check_integer("warmup_steps", warmup_steps, minimum=0)
        check_number("like_weight", like_weight, minimum=0, open_minimum=True)
        super().__init__(
            backbone,
            num_items=num_items,
            embedding_size=embedding_size,
            target_rule=target_rule,
            feedback_input=feedback_input,
            mask_probability=mask_probability,
            last_mask_probability=last_mask_probability,
            sparse_item_table=sparse_item_table,
        )
        self.exclude_seen = exclude_seen
        self.ties: TieRule = ties
        self.like_weight = like_weight
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.next_item_loss = (
            FullSoftmax()
            if next_item_loss is None
            else build_part("next_item_loss", next_item_loss, NEXT_ITEM_LOSSES)
        )
        self.skip_head = None if skip_head is None else build_part("skip_head", skip_head, SKIP_HEADS)
        if self.skip_head is not None and not self.causal:
            _check_cloze(self.skip_head)
        if sparse_item_table:
            use_sparse_gradients(self.next_item_loss, self.skip_head)
        self.save_hyperparameters(self.describe_parts())
        metrics = session_metrics(num_items, top_k=top_k, ties=ties)
        self.val_metrics, self.test_metrics = metrics.clone(prefix="val/"), metrics.clone(prefix="test/")
        self._left_out = ""

    def losses(self, batch: SessionBatch) -> dict[str, Tensor]:
        """The loss of a batch, whole and by parts.

        Args:
            batch: B sessions.

        Returns:
            Scalars: ``loss``, ``next_item_loss`` and, with a head, ``skip_loss`` before its weight; of a
            ``CombinedHead`` its weighted sum, and each part as ``skip_loss/<its class>``.
        """
        parts = self.part_losses(batch)
        if self.skip_head is None:
            return {"loss": parts["next_item_loss"], **parts}
        if isinstance(self.skip_head, CombinedHead):
            of_heads = {name: value for name, value in parts.items() if name != "next_item_loss"}
            skip_loss = self.skip_head.combine(of_heads, self.global_step)
            named = {f"skip_loss/{name}": value for name, value in of_heads.items()}
        else:
            skip_loss, named = parts["skip_loss"], {}
        loss = parts["next_item_loss"] + self._skip_weight() * skip_loss
        return {"loss": loss, "next_item_loss": parts["next_item_loss"], "skip_loss": skip_loss, **named}

    def part_losses(self, batch: SessionBatch) -> dict[str, Tensor]:
        """What a training step computes, before any weight; it can be compiled whole.

        ``module.part_losses = torch.compile(module.part_losses, dynamic=True)`` gives one graph for batches
        of any size, but for backbones that torch itself cannot compile so: it takes no GRU, and compiles
        ``Caser`` anew for each length. A sparse item table is not for compilers.

        Args:
            batch: B sessions.

        Returns:
            Scalars: ``next_item_loss`` and, with a head, ``skip_loss``; of a ``CombinedHead`` one by each
            class's name instead.
        """
        batch = self.prepare_training(batch)
        # A compiler finds its own way.
        if torch.compiler.is_compiling() or not look_rows_up_alone(self.next_item_loss, self.skip_head):
            return self._losses_of(batch)
        with self.item_embedding.gathered_gradients():
            return self._losses_of(batch)

    def _losses_of(self, batch: SessionBatch) -> dict[str, Tensor]:
        keys = self.embed_items(batch.items)
        query = self.encode(batch, keys)
        weights = () if self.like_weight == 1 else (self.target_weights(batch, self.like_weight),)
        takes_most = getattr(self.next_item_loss, "takes_most_targets", False)
        known = {"most_targets": batch.num_tracks} if takes_most else {}
        next_item_loss = self.next_item_loss(query, self.item_table, self.targets(batch), *weights, **known)
        parts: dict[str, Tensor] = {"next_item_loss": next_item_loss}
        if isinstance(self.skip_head, CombinedHead):
            return parts | self.skip_head.losses(query, keys, batch, self.item_table)
        if self.skip_head is not None:
            table = (self.item_table,) if getattr(self.skip_head, "uses_item_table", False) else ()
            parts["skip_loss"] = self.skip_head(query, keys, batch, *table)
        return parts

    def on_fit_start(self) -> None:
        """Warn if there is a skip head, and the data module's log has nothing for it."""
        data = getattr(self.trainer, "datamodule", None)
        if self.skip_head is not None and isinstance(data, SessionDataModule):
            data.warn_without_rejected()

    def training_step(self, batch: SessionBatch, batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's
        """The loss of a batch; all its parts are logged.

        Args:
            batch: B sessions.
            batch_idx: Lightning's count; unused.

        Returns:
            A scalar.

        Raises:
            ValueError: The batch has held-out targets.
        """
        if batch.target is not None:
            raise ValueError(
                "`train_dataloaders` must give batches without a held-out target, got one with it. Pass "
                "`SessionDataModule.train_dataloader()` or the data module, not a loader for evaluation."
            )
        losses = self.losses(batch)
        # Lightning copies what a bar is to show to the host in every step, even where there is no bar.
        has_bar = self.trainer.progress_bar_callback is not None
        for name, value in losses.items():
            self.log(f"train/{name}", value, prog_bar=has_bar and name == "loss", batch_size=len(batch))
        return losses["loss"]

    def validation_step(self, batch: SessionBatch, batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002 - Lightning's
        """Rank the held-out tracks of B sessions with targets; callbacks get the ``ranks`` [B]."""
        return {"ranks": self._evaluate(batch, self.val_metrics)}

    def test_step(self, batch: SessionBatch, batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002 - Lightning's
        """Rank the held-out tracks of B sessions with targets; callbacks get the ``ranks`` [B]."""
        return {"ranks": self._evaluate(batch, self.test_metrics)}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all validation targets; an override must call it."""
        self._log_metrics(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of all test targets; an override must call it."""
        self._log_metrics(self.test_metrics)

    def predict_step(self, batch: SessionBatch, batch_idx: int) -> pl.DataFrame:  # noqa: ARG002 - Lightning's
        """The best next tracks of each session, as many as the largest cut-off of the metrics.

        Args:
            batch: B sessions, from a ``SessionDataModule``.
            batch_idx: Lightning's count; unused.

        Returns:
            ``session_id``, ``rank``, ``item_id``, ``score``, with external ids.

        Raises:
            ValueError: The module was not given its data by a ``SessionDataModule``.
        """
        session_ids = getattr(getattr(self.trainer, "datamodule", None), "session_ids", None)
        if self.encoder is None or batch.session_index is None or session_ids is None:
            raise ValueError(
                "`predict` must be called with a `SessionDataModule`, got other data, whose sessions and "
                "items have no external ids. Use `Recommender` for sessions from elsewhere."
            )
        seen = batch.seen_items if self.exclude_seen else None
        top_k = min(max(self.hparams["top_k"]), self.num_items)
        items, scores = top_k_items(self.session_query(batch), self.item_table, top_k, exclude=seen)
        names = session_ids.gather(batch.session_index.cpu().numpy())
        return recommendation_frame(names, items, scores, self.encoder.vocabulary)

    def _skip_weight(self) -> float:
        weight_at = getattr(self.skip_head, "weight_at", None)
        return 1.0 if weight_at is None else weight_at(self.global_step)

    def _log_metrics(self, metrics: MetricCollection) -> None:
        # Over all processes, which so log the same keys.
        values = metrics.compute()
        metrics.reset()
        undefined = torch.stack(list(values.values())).isnan().tolist()
        kept = {name: value for (name, value), nan in zip(values.items(), undefined, strict=True) if not nan}
        # The maximum of equal values is exact on any number of processes; their mean is not.
        self.log_dict(kept, sync_dist=True, reduce_fx="max")
        left_out = describe_left_out(name for name in values if name not in kept)
        if left_out != self._left_out and not self.trainer.sanity_checking:
            self._left_out = left_out
            rank_zero_info(left_out)

    def _evaluate(self, batch: SessionBatch, metrics: MetricCollection) -> Tensor:
        if batch.target is None or batch.target_feedback is None:
            raise ValueError("`batch` must have targets, got none. Use a validation or test loader.")
        query, table = self.session_query(batch), self.item_table
        seen = batch.seen_items if self.exclude_seen else None
        target_scores, skip_scores, skip_mask = skip_pair_scores(
            query, table, batch.target, batch.items, batch.rejected_mask
        )
        ranks = target_ranks(query, table, batch.target, exclude=seen, ties=self.ties)
        ranks = batch.worst_if_cold(ranks, self.num_items)
        metrics.update(
            ranks=ranks,
            # The metrics' threshold is 0; the batch's own may be another.
            target_feedback=batch.target_feedback - batch.skip_threshold,
            target_seen=(batch.seen_items == batch.target[:, None]).any(dim=1),
            # A cold target ranks last, so that every skipped track outranks it.
            target_scores=batch.worst_if_cold(target_scores, -torch.inf),
            skip_scores=skip_scores,
            skip_mask=skip_mask,
        )
        return ranks


def _check_cloze(head: nn.Module) -> None:
    """Raise unless a head knows what to do where tracks are hidden from a bidirectional backbone."""
    check = getattr(head, "check_cloze", None)
    if check is None:
        raise ValueError(
            f"`skip_head` must have a method `check_cloze` beside a bidirectional backbone, got "
            f"{type(head).__name__} without. Take anchors only where `batch.cloze_mask` is True: elsewhere "
            "the output has seen the track that it would be pulled to."
        )
    check()
