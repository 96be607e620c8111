"""The LightningModule: it connects model, next-item loss, skip head, metrics and optimizer."""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

import polars as pl
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from lightning.pytorch.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MetricCollection

from skipcl_lightning._checks import check_choice, check_flag, check_integer, check_number
from skipcl_lightning._files import (
    check_num_items,
    check_weights,
    check_weights_only,
    named_in_errors,
    open_checkpoint,
    save_checkpoint,
)
from skipcl_lightning._settings import Part, build_part
from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.batch import (
    PADDING_INDEX,
    SessionBatch,
    TargetRule,
    possible_targets,
    target_weights,
    training_targets,
)
from skipcl_lightning.data import ItemFeatures, SessionDataModule, SessionEncoder, recommendation_frame
from skipcl_lightning.data.canonical_table import Table
from skipcl_lightning.functional import draw_cloze_mask, rank_batch, top_k_items
from skipcl_lightning.functional.ranking.ranks import TieRule
from skipcl_lightning.heads import NEXT_ITEM_LOSSES, SKIP_HEADS, CombinedHead, FullSoftmax
from skipcl_lightning.heads.session_head import (
    check_cloze,
    materialise_part,
    only_looks_up,
    use_sparse_gradients,
)
from skipcl_lightning.metrics import session_metrics
from skipcl_lightning.metrics.session_metrics import describe_left_out
from skipcl_lightning.model import ItemTower, Scoring, SessionModel
from skipcl_lightning.module.checkpoint import (
    build_tower,
    check_inputs,
    check_settings,
    count_transitions,
    describe_parts,
    load_dials,
    load_list,
    match_encoder,
    read_for_training,
    restore,
    save_settings,
)
from skipcl_lightning.module.growth import (
    Ids,
    NewRows,
    extend_module,
    mark_retired,
    require_encoder,
)
from skipcl_lightning.module.optimizers import (
    Schedule,
    append_moments,
    check_when_loaded,
    clip_gradients,
    follow_found_rate,
    make_adamw,
    make_schedule,
    may_fuse,
    shard,
)
from skipcl_lightning.module.training_run import (
    DivergenceWatch,
    check_averaging,
    check_precision,
    check_training_state,
    correct_progress,
    draw_seed,
    keep_checkpoints_whole,
    refuse_while_running,
    seed_batch,
    warn_of_new_processes,
)

__all__ = ["SkipCLModule", "TrainingStates"]

# Better than 0.2 on MovieLens-100K (docs/results.md).
MASK_PROBABILITY = 0.5
LAST_MASK_PROBABILITY = 0.1
_DEFAULT_SIZE = 64
# The `strict` of `load_from_checkpoint`, which Lightning does not pass to `on_load_checkpoint`.
_STRICT: ContextVar[bool | None] = ContextVar("strict", default=None)
CHECKED_BATCHES = 1000


class TrainingStates(NamedTuple):
    """The states of a training step and its losses before any weight.

    Attributes:
        keys: [B, L, D] the embeddings of the batch's items.
        query: [B, L, D] the backbone's output.
        parts: Scalars: `next_item_loss` and, with a head, `skip_loss`; for a `CombinedHead`, one for each of
            its heads by class name.
    """

    keys: Tensor
    query: Tensor
    parts: dict[str, Tensor]


class SkipCLModule(Scoring, LightningModule):
    """LightningModule that learns the next item, and which items to avoid, from sessions with skips.

    The loss is L = L_next + λ · L_skip. Validation and test rank each held-out target in the whole catalogue,
    and log the metrics of `session_metrics` whose population is not empty.

    Pass another backbone or loss, or subclass and override `build_backbone`, `embed`, `losses`, a step or
    `configure_optimizers`. The arguments of a subclass are kept in `hparams` automatically.

    A checkpoint is complete: weights, settings, names and settings of built-in parts, and the item vocabulary
    if the module was fitted with a `SessionDataModule`. It loads with `weights_only=True` and without
    arguments. If a checkpoint needs one of your own classes, pass an instance again under its argument's
    name.

    Args:
        backbone: Any module `forward(x [B, L, D], valid_mask [B, L]) -> [B, L, D]`. Set `causal = False` on
            one that sees later items; it is trained by the cloze task. One with a `max_length` gets the
            latest items. One whose `forward` takes `last_only` may return [B, 1, D], the last valid
            positions, if that is True. None calls `build_backbone`.
        skip_head: The skip loss, `forward(query, keys, batch) -> scalar`, with a `weight` λ (1 without it). A
            head with `uses_item_table = True` gets the item table as a fourth argument, one with a method
            `materialise(item_table)` gets it once, to make weights for each item. None trains the next-item
            task alone. With a bidirectional backbone, a head must take its anchors from
            `batch.cloze_mask` and have a method `check_cloze()`; with `hides_rejected = True`, rejected items
            are hidden too.
        num_items: V, the catalogue's size; `SessionDataModule.num_items`.
        embedding_size: D; None for the backbone's own `embedding_size`, and 64 for `build_backbone`.
        next_item_loss: `forward(query, item_embeddings, target) -> scalar`; None for `FullSoftmax`. With a
            `like_weight` other than 1 it gets weights [B, L] as a fourth argument; with `takes_most_targets =
            True`, the batch's `num_tracks` as `most_targets`.
        target_rule: The target of each position: `next_listened` (the paper) or `next`. A bidirectional
            backbone predicts hidden items instead: listened ones, or all.
        feedback_input: Whether the backbone sees the feedback of past items: an embedding each for listening,
            skips, likes and dislikes, linear in the strength and zero at first. On by default: on simulated
            logs it gained more than any contrastive head (docs/results.md). Recommendations then need the
            feedback too.
        context_sizes: The inputs of a play's context, such as the hour, with the number of codes of each:
            `SessionDataModule.context_sizes`, made by its `context`. None for no such inputs.
        like_weight: Weight of a liked target in the next-item loss, above 0; other targets have 1. A disliked
            item is never a target.
        mask_probability: Probability that an item is hidden from a bidirectional backbone in a training step,
            in (0, 1]; None for 0.5. Not for causal backbones.
        last_mask_probability: Probability that a session hides only its last target instead, in [0, 1]; None
            for 0.1. Not for causal backbones.
        sparse_item_table: Whether a step updates only the rows of the item table that it uses
            (`SparseAdamW`), so its cost does not grow with V. Needs a loss that looks up rows, such as
            `SampledSoftmax`.
        item_features: The content of the items, `SessionDataModule.item_features`. An `ItemTower` makes
            embeddings of it, which are added to those of the item table. Items without plays in the training
            set have the tower's embedding alone, so new tracks can be recommended.
        id_dropout: Probability in [0, 1] that an item's row of the table is left out in a training step, so
            that the tower learns to do without. With 1 the content takes the place of the table. Above 0
            only with `item_features`.
        transition_weight: At least 0. Above 0, an item's score is its inner product plus `transition_weight`
            times (log(1 + c₁) + 3 log(1 + c₂)). c₁ and c₂ count how often the item followed the session's
            last item, and its last two, in the training set, by the `target_rule`; only the 100 most
            frequent followers count. It changes evaluation and recommendations, not the training. If it was
            above 0 in training, the attribute can be set anew: `evaluation.choose_transition_weight`.
        skip_penalty: At least 0. Above 0, an item's score also has `skip_penalty` times the logit of
            listening to it, which needs a `SkipPrediction` head; more avoids skips more. It changes
            evaluation and recommendations, not the training; `evaluation.skip_trade_off` suggests a value
            after training.
        exclude_seen: Whether evaluation and prediction leave out the session's items; a target that the
            session already held has the worst rank then. Off by default, because listeners repeat tracks.
        top_k: The cut-offs of the metrics.
        ties: The rule for equal scores in ranks.
        learning_rate: Learning rate of AdamW, above 0.
        weight_decay: Weight decay of AdamW, on matrices other than the item table.
        warmup_steps: Optimizer steps over which the learning rate rises linearly; 0 for none.
        schedule: The learning rate after that: `constant`, or `cosine`, which falls to 0 until the end of the
            `Trainer`'s `max_epochs` or `max_steps`. On real sessions it gained 5 % at HitRate@10 for SASRec
            and lost for GRU4Rec, which needed more epochs (docs/results.md).

    Raises:
        TypeError: A part or setting has the wrong type.
        ValueError: A setting is out of range or has no effect, or the backbone does not fit or is not causal
            although it says so.

    Reference:
        Seshadri, Shashaani, Knees: Enhancing Sequential Music Recommendation with Negative Feedback-informed
        Contrastive Learning, RecSys 2024, arXiv 2409.07367.

    Examples:
        >>> import torch
        >>> from skipcl_lightning.backbones import SASRec
        >>> from skipcl_lightning.heads import SkipInfoNCE
        >>> module = SkipCLModule(SASRec(16), SkipInfoNCE(weight=0.3), num_items=100)
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
        embedding_size: int | None = None,
        next_item_loss: Part | None = None,
        target_rule: TargetRule = "next_listened",
        feedback_input: bool = True,
        context_sizes: dict[str, int] | None = None,
        like_weight: float = 1.0,
        mask_probability: float | None = None,
        last_mask_probability: float | None = None,
        sparse_item_table: bool = False,
        item_features: ItemFeatures | Sequence[Mapping[str, Any]] | None = None,
        id_dropout: float = 0.0,
        transition_weight: float = 0.0,
        skip_penalty: float = 0.0,
        exclude_seen: bool = False,
        top_k: Sequence[int] = (1, 5, 10, 20),
        ties: TieRule = "pessimistic",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
    ) -> None:
        check_number("learning_rate", learning_rate, minimum=0, open_minimum=True)
        check_number("weight_decay", weight_decay, minimum=0)
        check_integer("warmup_steps", warmup_steps, minimum=0)
        check_choice("schedule", schedule, get_args(Schedule))
        for name, flag in (
            ("feedback_input", feedback_input),
            ("sparse_item_table", sparse_item_table),
            ("exclude_seen", exclude_seen),
        ):
            check_flag(name, flag)
        check_number("like_weight", like_weight, minimum=0, open_minimum=True)
        check_choice("target_rule", target_rule, get_args(TargetRule))
        super().__init__()
        if backbone is None and embedding_size is None:
            embedding_size = _DEFAULT_SIZE
        # First, because `build_backbone` reads a subclass's settings from them.
        self.save_hyperparameters(ignore=["backbone", "skip_head", "next_item_loss", "item_features"])
        self.save_hyperparameters({"embedding_size": embedding_size})
        self.builds_backbone = backbone is None
        built = self.build_backbone() if backbone is None else build_part("backbone", backbone, BACKBONES)
        size = getattr(built, "embedding_size", None) if embedding_size is None else embedding_size
        if item_features is not None and not isinstance(item_features, ItemFeatures):
            item_features = ItemFeatures.from_description(item_features, num_items)
        # Not a hyperparameter for loggers: it holds the names of all categories.
        self.item_columns = None if item_features is None else item_features.describe()
        tower = None
        if item_features is not None and size is not None:  # without a size, `SessionModel` raises
            tower = build_tower(item_features, num_items, size)
        self.model = SessionModel(
            built,
            num_items=num_items,
            embedding_size=embedding_size,
            feedback_input=feedback_input,
            context_sizes=context_sizes,
            sparse_item_table=sparse_item_table,
            item_tower=tower,
            id_dropout=id_dropout,
        )
        self.save_hyperparameters({"embedding_size": self.model.embedding_size})
        if type(self).embed is not SkipCLModule.embed:
            self.model.embed_override = self.embed
        self.encoder: SessionEncoder | None = None
        self.growth = [num_items]
        self.counted_logs: list[str] = []
        self.batch_seed: int | None = None
        self._divergence = DivergenceWatch()
        self.grown_from: int | None = None
        self.target_rule: TargetRule = target_rule
        self.mask_probability = self._cloze_setting("mask_probability", mask_probability, MASK_PROBABILITY)
        self.last_mask_probability = self._cloze_setting(
            "last_mask_probability", last_mask_probability, LAST_MASK_PROBABILITY
        )
        self.transition_weight = transition_weight
        self.exclude_seen = exclude_seen
        self.ties: TieRule = ties
        self.like_weight = float(like_weight)
        # Also from NumPy, because the optimizer's state in a checkpoint holds them.
        self.learning_rate = float(learning_rate)
        self.weight_decay = float(weight_decay)
        self.warmup_steps = warmup_steps
        self.schedule: Schedule = schedule
        self.next_item_loss = (
            FullSoftmax()
            if next_item_loss is None
            else build_part("next_item_loss", next_item_loss, NEXT_ITEM_LOSSES)
        )
        self.skip_head = None if skip_head is None else build_part("skip_head", skip_head, SKIP_HEADS)
        if self.skip_head is not None and not self.model.causal:
            check_cloze("skip_head", self.skip_head)
        materialise_part(self.skip_head, self.model.item_table)
        self.skip_penalty = skip_penalty
        self._candidates: tuple[float, Tensor] | None = None
        if sparse_item_table:
            use_sparse_gradients(self.next_item_loss, self.skip_head)
        self._looks_rows_up = only_looks_up(self.next_item_loss, self.skip_head)
        self.save_hyperparameters(describe_parts(self))
        self._make_metrics(top_k)
        self._left_out = ""

    def build_backbone(self) -> nn.Module:
        """Return the backbone if none is passed; override it, and checkpoints load without arguments.

        Returns:
            The backbone; `self.hparams` also holds the subclass's settings.

        Raises:
            ValueError: It is not overridden.
        """
        raise ValueError("`backbone` must be given, got None. Pass a module, or override `build_backbone`.")

    def extend_items(
        self,
        new_items: Ids,
        init: NewRows | Tensor = "mean",
        *,
        data: SessionDataModule | None = None,
        content: Table | str | Path | None = None,
    ) -> None:
        """Append items to the vocabulary and to all weights that have a row for each item.

        The known items keep their indices, embeddings and queries to the last bit. Optimizers that were made
        before do not know the new weights, so call it before `Trainer.fit`, which makes new ones.

        Args:
            new_items: Ids of the vocabulary's type, in the order of their indices. Known ids and repeats are
                ignored; without new ones nothing changes.
            init: The first embeddings of the new items. `mean`: the mean of all known items. `nearest`: the
                weighted mean of the known items beside the new one in the training set of `data`. A known
                item's weight is how often it is the new item's predecessor or follower
                (`SessionDataModule.transition_counts`, with this module's `target_rule`); an item without
                such neighbours gets the mean. `content`: zero, so that an item is what its content says; for
                a module with `item_features`. Or a tensor [N, D] with a row for each of N new ids.
            data: Sessions with the new items, for `nearest` alone.
            content: The content of the new items, a table or Parquet file as for `ItemFeatures.extended`; for
                a module with `item_features`. None if nothing is known of them.

        Raises:
            TypeError: Ids or the tensor have another type, or a head has weights for each item but no method
                `extend_items(num_new)`.
            ValueError: The module has no vocabulary, is being trained or is sharded, the tensor has another
                shape or is not finite, or `data` or `content` is given or missing against `init`.

        Examples:
            >>> from skipcl_lightning.backbones import SASRec
            >>> from skipcl_lightning.data import ItemVocabulary
            >>> module = SkipCLModule(SASRec(16), num_items=2)
            >>> module.encoder = SessionEncoder(ItemVocabulary(["song", "tune"]), max_length=50)
            >>> module.extend_items(["air", "song"])
            >>> module.num_items, module.encoder.vocabulary.ids, module.growth
            (3, ['song', 'tune', 'air'], [2, 3])
        """
        refuse_while_running(self, "extend_items")
        if extend_module(self, new_items, init, data, content):
            self.save_hyperparameters({"num_items": self.num_items})
            self._make_metrics(self.hparams["top_k"])
            self._candidates = None

    def retire_items(self, items: Ids) -> None:
        """Let items no longer be recommended, until `restore_items`; checkpoints keep the choice.

        Retired items are no candidates in evaluation, prediction, `Recommender` and callbacks. A held-out
        target that is retired counts as a miss: it has the worst rank, like a cold target. Sessions may still
        hold retired items, and training goes on with them.

        Args:
            items: Ids of the vocabulary; those that are retired already may be among them.

        Raises:
            TypeError: An id has another type than the vocabulary's.
            ValueError: The module has no vocabulary, an id is unknown, or no item would be left.

        Examples:
            >>> from skipcl_lightning.backbones import SASRec
            >>> from skipcl_lightning.data import ItemVocabulary
            >>> module = SkipCLModule(SASRec(16), num_items=2)
            >>> module.encoder = SessionEncoder(ItemVocabulary(["song", "tune"]), max_length=50)
            >>> module.retire_items(["tune"])
            >>> module.retired_items
            ['tune']
        """
        mark_retired(self, items, retired=True)

    def restore_items(self, items: Ids) -> None:
        """Let retired items be recommended again.

        Args:
            items: Ids of the vocabulary; those that are not retired may be among them.

        Raises:
            TypeError: An id has another type than the vocabulary's.
            ValueError: The module has no vocabulary, or an id is unknown.
        """
        mark_retired(self, items, retired=False)

    @property
    def retired_items(self) -> list[str] | list[int]:
        """The ids of the retired items, in the order of the vocabulary."""
        if self.retired is None:
            return []
        return require_encoder(self).vocabulary.decode(self.retired.nonzero().squeeze(1))

    def embed(self, batch: SessionBatch, keys: Tensor) -> Tensor:
        """Return the backbone's input; override it to add inputs of your own.

        Args:
            batch: B sessions, without the items that are hidden from a bidirectional backbone.
            keys: [B, L, D] the embeddings of their items.

        Returns:
            [B, L, D].
        """
        return self.model.embed(batch, keys)

    def forward(self, batch: SessionBatch) -> Tensor:
        """Return the backbone's output at each position: `SessionModel.forward`."""
        output: Tensor = self.model(batch)
        return output

    def prepare_training(self, batch: SessionBatch) -> SessionBatch:
        """Return the batch on which a step is trained.

        Args:
            batch: B sessions.

        Returns:
            The latest positions that the backbone takes. For a causal backbone one item more, the target of
            the last position; for a bidirectional one with a new `cloze_mask`.
        """
        if self.model.causal:
            return self.model.shorten(batch, more=1)
        batch = self.model.shorten(batch)
        hides_rejected = getattr(self.skip_head, "hides_rejected", False)
        mask = draw_cloze_mask(
            batch.valid_mask if hides_rejected else possible_targets(batch, self.target_rule),
            probability=self.mask_probability,
            last_probability=self.last_mask_probability,
        )
        return batch.replace(cloze_mask=mask)

    def part_losses(self, batch: SessionBatch) -> TrainingStates:
        """Compute the states of a step and its losses before any weight; this is the part to compile.

        `module.part_losses = torch.compile(module.part_losses, dynamic=True)` gives one graph for batches of
        any size. Two backbones are limited by torch itself: it cannot compile a GRU, and it compiles `Caser`
        again for each length. A sparse item table cannot be compiled.

        Args:
            batch: B sessions.

        Returns:
            The states and the parts of the loss.
        """
        batch = self.prepare_training(batch)
        # A compiler fuses the gradients itself.
        gathers = self._looks_rows_up and not torch.compiler.is_compiling()
        with self.model.training_table(gathers=gathers) as candidates:
            return self._part_losses(batch, candidates)

    def _part_losses(self, batch: SessionBatch, candidates: Tensor) -> TrainingStates:
        table = self.model.item_table
        keys = self.model.embed_items(batch.items)
        query = self.model.encode(batch, keys)
        positions = training_targets(batch, self.target_rule)
        target = torch.where(positions >= 0, batch.items.gather(1, positions.clamp(min=0)), PADDING_INDEX)
        weights = () if self.like_weight == 1 else (target_weights(batch, positions, self.like_weight),)
        takes_most = getattr(self.next_item_loss, "takes_most_targets", False)
        known = {"most_targets": batch.num_tracks} if takes_most else {}
        parts: dict[str, Tensor] = {
            "next_item_loss": self.next_item_loss(query, candidates, target, *weights, **known)
        }
        if isinstance(self.skip_head, CombinedHead):
            parts |= self.skip_head.losses(query, keys, batch, table)
        elif self.skip_head is not None:
            extra = (table,) if getattr(self.skip_head, "uses_item_table", False) else ()
            parts["skip_loss"] = self.skip_head(query, keys, batch, *extra)
        return TrainingStates(keys, query, parts)

    def losses(self, states: TrainingStates) -> dict[str, Tensor]:
        """Return the weighted loss of a step; override it to add a loss on the same states.

        Args:
            states: The result of `part_losses`.

        Returns:
            Scalars: `loss`, `next_item_loss` and, with a head, `skip_loss` before its weight. For a
            `CombinedHead`, `skip_loss` is its weighted sum and each part is `skip_loss/<its class>`.
        """
        parts = states.parts
        if self.skip_head is None:
            return {"loss": parts["next_item_loss"], **parts}
        if isinstance(self.skip_head, CombinedHead):
            of_heads = {name: value for name, value in parts.items() if name != "next_item_loss"}
            skip_loss = self.skip_head.combine(of_heads)
            named = {f"skip_loss/{name}": value for name, value in of_heads.items()}
        else:
            skip_loss, named = parts["skip_loss"], {}
        loss = parts["next_item_loss"] + getattr(self.skip_head, "weight", 1.0) * skip_loss
        return {"loss": loss, "next_item_loss": parts["next_item_loss"], "skip_loss": skip_loss, **named}

    def setup(self, stage: str) -> None:
        """Take the item vocabulary from the data module, or check that it equals the trained one.

        Before training with a `transition_weight`, count the transitions; those of another log are added to
        the ones that the module has. With a `history_length` of the data module, let the model use the
        histories. The trainer gets a `WholeCheckpointIO`, unless it has another plugin for checkpoints.

        Args:
            stage: Lightning's stage.

        Raises:
            ValueError: The data has another catalogue, or transitions are counted without a data module.
        """
        keep_checkpoints_whole(self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit":
            self.take_data(data)
            check_precision(self.trainer)
            check_averaging(self.trainer)
            check_settings(self.hparams)
            self._divergence = DivergenceWatch()
            self.batch_seed = None  # that of an earlier run; a checkpoint is loaded after this
        elif isinstance(encoder := getattr(data, "encoder", None), SessionEncoder):
            self.encoder = match_encoder(encoder, self.encoder, self.num_items)

    def take_data(self, data: object) -> None:
        """Take the item vocabulary from the data of a training, and add the weights and counts that it needs.

        `SessionDataModule.setup` calls it before callbacks' `setup`, so callbacks that average weights copy
        the whole module. A second call does nothing.

        Args:
            data: The data module, or None.

        Raises:
            ValueError: The data has another catalogue, or transitions are counted without a data module.
        """
        if isinstance(data, SessionDataModule):
            check_inputs(self, data)
        encoder = getattr(data, "encoder", None)
        if isinstance(encoder, SessionEncoder):
            if self.encoder is None and self._trainer is not None:
                warn_of_new_processes(self._trainer)
            self.encoder = match_encoder(encoder, self.encoder, self.num_items)
            if encoder.history_length:
                self.model.use_history()
                self.encoder = self.encoder.replace(history_length=encoder.history_length)
        count_transitions(self, data)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the parts and the vocabulary to Lightning's checkpoint, as plain values."""
        save_settings(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the vocabulary and what can be set after training, and make room for the transitions.

        A run that resumes with more items, behind those of the checkpoint, appends their rows to it. Raises a
        `ValueError` if the data has other items.
        """
        trainer = self._trainer
        path = None if trainer is None else trainer.ckpt_path
        fits = trainer is not None and trainer.state.fn == TrainerFn.FITTING
        with named_in_errors(path):
            restore(self, checkpoint, getattr(trainer, "datamodule", None), fits=fits)
            state = checkpoint.get("state_dict")
            if state is None and path is not None and Path(path).is_file():
                # The strategy of shards has read the file, without a comparison of its checksums.
                state = open_checkpoint(path)["state_dict"]
            if state is not None:
                strict = _STRICT.get()
                check_weights(state, self, strict=self.strict_loading if strict is None else strict)
            if fits:
                correct_progress(checkpoint)
                self._take_seed(checkpoint)
            if trainer is not None:
                check_training_state(trainer, checkpoint)
            load_dials(self, checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}))

    def _take_seed(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the seed of the batches from a checkpoint; None for one without."""
        self.batch_seed = next(iter(load_list(checkpoint, "batch_seed")), None)
        check_integer("batch_seed", self.batch_seed or 0, minimum=0)

    @_restricted_classmethod
    def load_from_checkpoint(  # type: ignore[override]  # a path alone: the file is read twice
        cls,  # noqa: N805 - a class method that an instance cannot call
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **parts: Any,
    ) -> Self:
        """Load a trained module, without data or settings; no code of the file runs.

        Args:
            checkpoint_path: A file on this machine.
            map_location: Where tensors go, as for `torch.load`.
            hparams_file: Settings in place of those of the checkpoint, as for Lightning.
            strict: Whether the checkpoint must have exactly the module's weights; None for the module's own.
            weights_only: True.
            parts: Instances of your own classes by argument name, and other settings.

        Returns:
            The module.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, is another program's, or does not fit this class.
        """
        check_weights_only(weights_only)
        given = _STRICT.set(strict)
        try:
            with named_in_errors(checkpoint_path):
                checkpoint = open_checkpoint(checkpoint_path)
                if hparams_file is None and "num_items" not in parts:
                    check_num_items(checkpoint)
                loaded: Self = super().load_from_checkpoint(
                    checkpoint_path,
                    map_location=map_location,
                    hparams_file=hparams_file,
                    strict=strict,
                    weights_only=True,
                    **parts,
                )
        finally:
            _STRICT.reset(given)
        return loaded

    def init_from(self, path: str | Path, data: SessionDataModule) -> None:
        """Take weights, vocabulary, transitions and retired items from a checkpoint, before a training.

        The settings stay this module's own; the optimizer and all counters start anew. Items of `data` that
        the checkpoint does not know get rows as by `extend_items(..., "nearest", data=data)`.

        Args:
            path: A checkpoint of a module with the same weights for all but the items.
            data: The sessions to train on, with the checkpoint's vocabulary or more items behind it.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The items of the data are others, or the weights do not fit.
        """
        refuse_while_running(self, "init_from")
        checkpoint = read_for_training(self, path, data)
        self.load_state_dict(checkpoint["state_dict"])

    def extend_checkpoint(self, path: str | Path, extended: str | Path, data: SessionDataModule) -> None:
        """Write a checkpoint of a sharded run with the new items of `data`, from which this module resumes.

        Without shards, `Trainer.fit(ckpt_path=path)` appends new items by itself. Under Lightning's
        `ModelParallelStrategy`, call this first, in each process, and resume from `extended`. Moments of new
        items are zero, and their rows as of `init_from`. The seed of the batches stays that of the run.

        Args:
            path: A checkpoint, one file, of a run with `ModelParallelStrategy`.
            extended: The new file; process 0 writes it.
            data: The sessions to train on, with the checkpoint's vocabulary and more items behind it.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The items of the data are others.
        """
        refuse_while_running(self, "extend_checkpoint")
        checkpoint = read_for_training(self, path, data)
        old_items = self.growth[-2] if len(self.growth) > 1 else self.num_items
        checkpoint["optimizer_states"] = [
            append_moments(self, state, old_items=old_items, num_items=self.num_items)
            for state in checkpoint["optimizer_states"]
        ]
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY]["num_items"] = self.num_items
        self._take_seed(checkpoint)
        self.on_save_checkpoint(checkpoint)
        if getattr(rank_zero_only, "rank", 0) == 0:
            save_checkpoint(checkpoint, Path(extended))

    def configure_model(self) -> None:
        """Shard all weights under Lightning's `ModelParallelStrategy`; do nothing under other strategies.

        Its `data_parallel_size` is the number of processes that share the weights and the optimizer's state.
        Each step gathers the weights while it runs.
        """
        if self.device_mesh is not None:
            shard(self, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerConfig | OptimizerLRSchedulerConfig:
        """Return AdamW with the warm-up and the `schedule`; `SparseAdamW` with `sparse_item_table`.

        Returns:
            Lightning's dictionary of the optimizer and, unless the learning rate is constant, the schedule.

        Raises:
            ValueError: The `schedule` is `cosine`, but the run has no end.
        """
        table = self.model.item_embedding.weight
        optimizer = make_adamw(
            [parameter for parameter in self.parameters() if parameter is not table],
            table,
            sparse=self.model.item_embedding.sparse,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            fused=may_fuse(self),
        )
        check_when_loaded(optimizer, self)
        schedule = make_schedule(optimizer, self._trainer, self.schedule, warmup_steps=self.warmup_steps)
        if schedule is None:
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients by the Trainer's settings: `optimizers.clip_gradients`."""
        if gradient_clip_val:
            sparse = self.model.item_embedding.sparse
            clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm, sparse=sparse)

    def on_fit_start(self) -> None:
        """Warn if there is a skip head but no rejected item, and tell the model which items have plays.

        If the checkpoint of a resumed run has fewer items, let the optimizers append zeros to its moments.
        """
        if self.grown_from is not None:
            append = partial(append_moments, old_items=self.grown_from, num_items=self.num_items)
            for optimizer in self.trainer.optimizers:
                optimizer.register_load_state_dict_pre_hook(append)
            self.grown_from = None
        data = getattr(self.trainer, "datamodule", None)
        self.model.num_trained = None
        if not isinstance(data, SessionDataModule):
            return
        if self.skip_head is not None:
            data.warn_without_rejected()
        self.model.num_trained = int(data.item_counts.nonzero().max())

    def on_train_start(self) -> None:
        """Draw the seed of the batches, unless the run resumes; an override must call it.

        A rate that `LearningRateFinder` has found is the one from which the schedule starts.
        """
        if self.batch_seed is None:
            self.batch_seed = self.trainer.strategy.broadcast(draw_seed())
            follow_found_rate(self.trainer, self.learning_rate)

    def on_train_batch_start(self, batch: SessionBatch, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's
        """Seed the batch's random numbers, so that a resumed run has the same; an override must call it.

        Once in a thousand batches, it stops a run whose weights are NaN or infinite.
        """
        if batch_idx and batch_idx % CHECKED_BATCHES == 0:
            self._divergence.check(self)
        if self.batch_seed is not None:
            rank = self.trainer.global_rank
            seed_batch(self.batch_seed, self.trainer.current_epoch, batch_idx, rank, self.device)

    def training_step(self, batch: SessionBatch, batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's
        """Return the loss of a batch, and log its parts.

        Args:
            batch: B sessions.
            batch_idx: Unused.

        Returns:
            A scalar.

        Raises:
            TypeError: The batch is no `SessionBatch`.
            ValueError: The batch has held-out targets.
        """
        if not isinstance(batch, SessionBatch):
            raise TypeError(
                f"`batch` must be a SessionBatch, got a {type(batch).__name__}. Return "
                "`SessionBatch(items, feedback)` from the loader's `collate_fn`."
            )
        if batch.target is not None:
            raise ValueError(
                "`train_dataloaders` must give batches without a held-out target, got one with it. Pass "
                "`SessionDataModule.train_dataloader()` or the data module, not a loader for evaluation."
            )
        losses = self.losses(self.part_losses(batch))
        # Lightning copies the values of the progress bar to the host in every step, even without a bar.
        has_bar = getattr(self.trainer, "progress_bar_callback", None) is not None
        for name, value in losses.items():
            self.log(f"train/{name}", value, prog_bar=has_bar and name == "loss", batch_size=len(batch))
        # Under Fabric there is neither a bar nor a step.
        self._divergence.update(losses, getattr(self.trainer, "global_step", 0))
        return losses["loss"]

    def on_train_epoch_end(self) -> None:
        """Stop a run whose weights are not finite, before a checkpoint is saved; an override must call it.

        Raises:
            ValueError: They are.
        """
        self._divergence.check(self)

    def on_validation_epoch_start(self) -> None:
        """Drop the candidates of an earlier epoch, and stop a run that diverged; an override must call it."""
        self._candidates = None
        self.val_metrics.reset()  # perhaps an earlier run was interrupted
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._divergence.check(self)

    def on_test_epoch_start(self) -> None:
        """Drop the candidates of an earlier epoch; an override must call it."""
        self._candidates = None
        self.test_metrics.reset()
        self._check_history()

    def on_predict_epoch_start(self) -> None:
        """Drop the candidates of an earlier epoch; an override must call it."""
        self._candidates = None
        self._check_history()

    def on_predict_epoch_end(self) -> None:
        """Drop the candidates."""
        self._candidates = None

    def validation_step(
        self,
        batch: SessionBatch,
        batch_idx: int,  # noqa: ARG002 - Lightning's
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Rank the held-out targets of B sessions; callbacks get the `ranks` [B]."""
        if self._trainer is not None:
            _check_one_loader(self._trainer.num_val_batches)
        return {"ranks": self._evaluate(batch, self.val_metrics)}

    def test_step(
        self,
        batch: SessionBatch,
        batch_idx: int,  # noqa: ARG002 - Lightning's
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Rank the held-out targets of B sessions; callbacks get the `ranks` [B]."""
        if self._trainer is not None:
            _check_one_loader(self._trainer.num_test_batches)
        return {"ranks": self._evaluate(batch, self.test_metrics)}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all validation targets; an override must call it."""
        self._candidates = None
        self._log_metrics(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of all test targets; an override must call it."""
        self._candidates = None
        self._log_metrics(self.test_metrics)

    def predict_step(self, batch: SessionBatch, batch_idx: int) -> pl.DataFrame:  # noqa: ARG002 - Lightning's
        """Return the best next items of each session, as many as the largest cut-off of the metrics.

        Items that the session rejected are left out, as `Recommender` does by default.

        Args:
            batch: B sessions, from a `SessionDataModule`.
            batch_idx: Unused.

        Returns:
            `session_id`, `rank`, `item_id`, `score`, and `skip_probability` with a `SkipPrediction` head;
            with external ids.

        Raises:
            ValueError: The module was not given its data by a `SessionDataModule`.
        """
        session_ids = getattr(getattr(self.trainer, "datamodule", None), "session_ids", None)
        if self.encoder is None or batch.session_index is None or session_ids is None:
            raise ValueError(
                "`predict` must be called with a `SessionDataModule`, got other data, whose sessions and "
                "items have no external ids. Use `Recommender` for sessions from elsewhere."
            )
        rejected = torch.where(batch.rejected_mask, batch.items, PADDING_INDEX)
        excluded = batch.seen_items if self.exclude_seen else rejected
        top_k = min(max(self.hparams["top_k"]), self.num_items)
        query, added = self.session_query(batch), self.added_scores(batch)
        items, scores = top_k_items(
            query, self._epoch_table(), top_k, exclude=excluded, added=added, retired=self.retired
        )
        skips = self.skip_probability(batch, items) if self.predicts_skips else None
        names = session_ids.gather(batch.session_index.cpu().numpy())
        return recommendation_frame(names, items, scores, self.encoder.vocabulary, skips)

    def _make_metrics(self, top_k: Sequence[int]) -> None:
        metrics = session_metrics(self.num_items, top_k=top_k, ties=self.ties).to(self.device)
        self.val_metrics, self.test_metrics = metrics.clone(prefix="val/"), metrics.clone(prefix="test/")

    def _check_history(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if self.model.history_embedding is not None and isinstance(data, SessionDataModule):
            data.warn_without_history()

    @property
    def item_features(self) -> ItemFeatures | None:
        """The content of the items, as its table was encoded; None without."""
        tower = self.model.item_tower
        if self.item_columns is None or not isinstance(tower, ItemTower):
            return None
        return ItemFeatures.from_rows(self.item_columns, *tower.rows())

    def _cloze_setting(self, name: str, value: float | None, default: float) -> float:
        if self.model.causal:
            if value is None:
                return default
            raise ValueError(
                f"`{name}` must be None for a causal backbone, got {value!r}. Nothing is hidden from "
                f"{type(self.model.backbone).__name__}, which sees no later track anyway."
            )
        value = default if value is None else value
        check_number(name, value, minimum=0, maximum=1, open_minimum=name == "mask_probability")
        self.save_hyperparameters({name: value})  # the task of a checkpoint does not change with the default
        return value

    def _log_metrics(self, metrics: MetricCollection) -> None:
        # Over all processes, so that all log the same keys.
        values = metrics.compute()
        metrics.reset()
        undefined = torch.stack(list(values.values())).isnan().tolist()
        kept = {name: value for (name, value), nan in zip(values.items(), undefined, strict=True) if not nan}
        # The maximum of equal values is exact on any number of processes; their mean is not.
        cut_off = min(self.hparams["top_k"], key=lambda k: abs(k - 10))
        for name, value in kept.items():
            shown = name.partition("/")[2] in (f"hit_rate@{cut_off}", f"skip_hit_rate@{cut_off}")
            self.log(name, value, sync_dist=True, reduce_fx="max", prog_bar=shown)
        left_out = describe_left_out(name for name in values if name not in kept)
        if left_out != self._left_out and not self.trainer.sanity_checking:
            self._left_out = left_out
            rank_zero_info(left_out)

    def _epoch_table(self) -> Tensor:
        """Return `item_table`; with a penalty or a tower, compute it once for all batches of an epoch."""
        if self.skip_penalty == 0 and self.model.item_tower is None:
            return self.item_table
        if self._candidates is None or self._candidates[0] != self.skip_penalty:
            self._candidates = self.skip_penalty, self.item_table.detach()
        return self._candidates[1]

    def _evaluate(self, batch: SessionBatch, metrics: MetricCollection) -> Tensor:
        query = self.session_query(batch)
        ranked = rank_batch(
            query,
            self._epoch_table(),
            batch,
            exclude_seen=self.exclude_seen,
            ties=self.ties,
            added=self.added_scores(batch),
            retired=self.retired,
        )
        metrics.update(**ranked._asdict())
        return ranked.ranks


def _check_one_loader(num_batches: Sequence[int | float]) -> None:
    """Raise if there are several loaders, whose targets would be added up in the same metrics."""
    if len(num_batches) > 1:
        raise ValueError(
            f"`dataloaders` must be a single one, got {len(num_batches)}. Evaluate one after the other, or "
            "override the step and log metrics of your own by `dataloader_idx`."
        )
