"""Item table and backbone: what turns sessions into queries that score the whole catalogue."""

from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipcl_lightning._checks import check_choice, check_integer, check_number
from skipcl_lightning._settings import Part, build_part
from skipcl_lightning.backbones import BACKBONES, check_backbone, is_causal
from skipcl_lightning.backbones.contract import takes_argument
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.checkpoint import WholeCheckpoint
from skipcl_lightning.functional import (
    append_mask_token,
    draw_cloze_mask,
    hide_masked,
    last_position,
    target_positions,
)
from skipcl_lightning.functional.positions import TargetRule
from skipcl_lightning.item_embedding import ItemEmbedding

__all__ = ["SessionModel"]

MASK_PROBABILITY = 0.2
LAST_MASK_PROBABILITY = 0.1


class SessionModel(WholeCheckpoint):
    """One table of items, inputs and candidates alike, and a backbone over it.

    A causal backbone's output after each track is asked for what comes next. A bidirectional one has seen
    that: while it is trained, tracks are hidden behind a mask token and asked for in their place (the cloze
    task); what comes next is asked for by a mask token behind the session's last track. Either way the
    backbone gets the latest ``backbone.max_length`` positions, where it has such a limit.

    Args:
        backbone: As for ``SkipCLModule``, like all others.
        num_items: V.
        embedding_size: D.
        target_rule: Which tracks are asked for.
        feedback_input: Whether the backbone sees the feedback.
        mask_probability: How likely a track is hidden.
        last_mask_probability: How likely only the last one is.
        sparse_item_table: Whether the table's gradients are sparse.

    Raises:
        TypeError: A part or setting has the wrong type.
        ValueError: A setting is out of range or has no use, or the backbone does not fit.
    """

    def __init__(
        self,
        backbone: Part | None,
        *,
        num_items: int,
        embedding_size: int,
        target_rule: TargetRule,
        feedback_input: bool,
        mask_probability: float | None,
        last_mask_probability: float | None,
        sparse_item_table: bool,
    ) -> None:
        super().__init__()
        check_integer("num_items", num_items, minimum=2)
        check_integer("embedding_size", embedding_size)
        check_choice("target_rule", target_rule, get_args(TargetRule))
        # Before the backbone is built, since `build_backbone` reads a subclass's settings from them.
        self.save_hyperparameters(ignore=["backbone", "skip_head", "next_item_loss"])
        self.num_items = num_items
        self.embedding_size = embedding_size
        self.target_rule: TargetRule = target_rule
        self.builds_backbone = backbone is None
        self.backbone = (
            self.build_backbone() if backbone is None else build_part("backbone", backbone, BACKBONES)
        )
        check_backbone(self.backbone, embedding_size)
        self.causal = is_causal(self.backbone)
        self.mask_probability = self._cloze_setting("mask_probability", mask_probability, MASK_PROBABILITY)
        self.last_mask_probability = self._cloze_setting(
            "last_mask_probability", last_mask_probability, LAST_MASK_PROBABILITY
        )
        self.item_embedding = ItemEmbedding(num_items, embedding_size, sparse=sparse_item_table)
        self.item_embedding.weight.data[PADDING_INDEX + 1 :].normal_(std=embedding_size**-0.5)
        self.mask_embedding = (
            None if self.causal else nn.Parameter(torch.randn(embedding_size) * embedding_size**-0.5)
        )
        self.feedback_embedding = nn.Linear(4, embedding_size, bias=False) if feedback_input else None
        if self.feedback_embedding is not None:
            # From nothing: drawn at random it would outweigh the items, and a short log never unlearns that.
            nn.init.zeros_(self.feedback_embedding.weight)

    def build_backbone(self) -> nn.Module:
        """The backbone where none is passed: override it, and checkpoints load without arguments.

        Returns:
            The backbone; ``self.hparams`` holds the settings of the subclass as well.

        Raises:
            ValueError: It is not overridden.
        """
        raise ValueError("`backbone` must be given, got None. Pass a module, or override `build_backbone`.")

    @property
    def item_table(self) -> Tensor:
        """[V + 1, D], the candidates: row 0 is padding."""
        return self.item_embedding.table

    def embed_items(self, items: Tensor) -> Tensor:
        """The embeddings of a session's items, of a mask token among them.

        Args:
            items: [B, L] int64 in 0..V + 1; V + 1 is the mask token, which a causal backbone never meets.

        Returns:
            [B, L, D].
        """
        if self.mask_embedding is None:
            embedded: Tensor = self.item_embedding(items)
            return embedded
        hidden = items == self._mask_index
        keys = self.item_embedding(items.masked_fill(hidden, PADDING_INDEX))
        return torch.where(hidden[..., None], self.mask_embedding, keys)

    def embed(self, batch: SessionBatch, keys: Tensor) -> Tensor:
        """What the backbone sees of each track.

        Args:
            batch: B sessions, without what is hidden from a bidirectional backbone.
            keys: [B, L, D] the embeddings of their items.

        Returns:
            [B, L, D].
        """
        if self.feedback_embedding is None:
            return keys
        explicit = batch.explicit_feedback
        known = [batch.feedback, torch.zeros_like(batch.feedback) if explicit is None else explicit]
        # Listened to, skipped, liked, disliked; unknown is none of them.
        signed = torch.stack([part.clamp(min=0) for one in known for part in (one, -one)], dim=2)  # [B, L, 4]
        embedded: Tensor = keys + self.feedback_embedding(signed.to(keys.dtype))
        return embedded

    def forward(self, batch: SessionBatch, *, last_only: bool = False) -> Tensor:
        """What the backbone makes of each position.

        Args:
            batch: B sessions.
            last_only: Ask for the last track of each session alone, of a backbone that takes the argument.

        Returns:
            [B, L, D] in the space of the item table; of the latest ``backbone.max_length`` positions if L
            is more; or [B, 1, D]. From a causal backbone the session as known after each track; from a
            bidirectional one what each position should hold.
        """
        batch = self._shorten(batch)
        only = {"last_only": True} if last_only else {}
        return self.encode(batch, self.embed_items(batch.items), **only)

    def session_query(self, batch: SessionBatch) -> Tensor:
        """The sessions as known after all their tracks.

        Args:
            batch: B sessions.

        Returns:
            [B, D], whose inner products with the item table are the scores. A row without a track yields
            zeros, or what a mask token alone stands for.
        """
        if not self.causal:
            batch = append_mask_token(batch, self._mask_index)
        batch = self._shorten(batch)
        # An override, or a backbone of one's own, may not know how to leave out what nobody asks for.
        if takes_argument("last_only", self.forward, self.encode, self.backbone.forward):
            query: Tensor = self(batch, last_only=True).squeeze(1)
            return query
        return last_position(self(batch), batch.valid_mask)

    def prepare_training(self, batch: SessionBatch) -> SessionBatch:
        """The batch that is learned from.

        Args:
            batch: B sessions.

        Returns:
            The latest positions that the backbone can take, and for a causal one a track more, to be
            predicted at the last of them; for a bidirectional one with a ``cloze_mask`` drawn anew, over the
            tracks that ``target_rule`` lets be targets.
        """
        if self.causal:
            return self._shorten(batch, more=1)
        batch = self._shorten(batch)
        wanted = batch.listened_mask if self.target_rule == "next_listened" else batch.valid_mask
        if batch.explicit_feedback is not None:
            wanted = wanted & (batch.explicit_feedback >= 0)
        mask = draw_cloze_mask(
            wanted,
            probability=self.mask_probability,
            last_probability=self.last_mask_probability,
        )
        return batch.replace(cloze_mask=mask)

    def encode(self, batch: SessionBatch, keys: Tensor, *, last_only: bool = False) -> Tensor:
        """What the backbone makes of a batch that is short enough.

        Args:
            batch: B sessions, of as many positions as the backbone can take, or one more for a causal one.
            keys: [B, L, D] the embeddings of their items, hidden ones included.
            last_only: As in ``forward``; then of no more positions than the backbone can take.

        Returns:
            [B, L, D]; zero at a position more than the backbone can take, where there is nothing to ask; or
            [B, 1, D].

        Raises:
            ValueError: Tracks are hidden from a causal backbone.
        """
        if self.causal and batch.cloze_mask is not None:
            raise ValueError(
                "`batch` must hide nothing from a causal backbone, got a `cloze_mask`. Leave it None."
            )
        visible = hide_masked(batch, self._mask_index)
        if visible is not batch:
            keys = self.embed_items(visible.items)
        if last_only:
            last: Tensor = self.backbone(self.embed(visible, keys), visible.valid_mask, last_only=True)
            return last
        length = batch.items.shape[1]
        taken = min(length, self._max_length or length)
        output: Tensor = self.backbone(self.embed(visible, keys)[:, :taken], visible.valid_mask[:, :taken])
        return output if taken == length else F.pad(output, (0, 0, 0, length - taken))

    def targets(self, batch: SessionBatch) -> Tensor:
        """The item that each position is asked for.

        Args:
            batch: B sessions, from ``prepare_training``.

        Returns:
            [B, L] int64 in 0..V; 0 where nothing is asked for.
        """
        position = self._target_positions(batch)
        return torch.where(position >= 0, batch.items.gather(1, position.clamp(min=0)), PADDING_INDEX)

    def target_weights(self, batch: SessionBatch, like_weight: float) -> Tensor:
        """How much each position's target counts.

        Args:
            batch: B sessions, from ``prepare_training``.
            like_weight: How much a liked target counts; all others count 1.

        Returns:
            [B, L] float32.
        """
        if batch.explicit_feedback is None:
            return torch.ones_like(batch.feedback)
        position = self._target_positions(batch).clamp(min=0)
        liked = batch.explicit_feedback.gather(1, position) > 0
        return torch.where(liked, like_weight, 1.0)

    def _target_positions(self, batch: SessionBatch) -> Tensor:
        """[B, L] int64, where each position's target stands; -1 where nothing is asked for."""
        if batch.cloze_mask is not None:
            positions = torch.arange(batch.items.shape[1], device=batch.items.device)
            return torch.where(batch.cloze_mask, positions, -1)
        return target_positions(
            batch.items,
            batch.feedback,
            explicit_feedback=batch.explicit_feedback,
            rule=self.target_rule,
            skip_threshold=batch.skip_threshold,
        )

    @property
    def _mask_index(self) -> int:
        return self.num_items + 1

    @property
    def _max_length(self) -> int | None:
        return getattr(self.backbone, "max_length", None)

    def _shorten(self, batch: SessionBatch, more: int = 0) -> SessionBatch:
        return batch if self._max_length is None else batch.latest(self._max_length + more)

    def _cloze_setting(self, name: str, value: float | None, default: float) -> float:
        if value is None:
            return default
        if self.causal:
            raise ValueError(
                f"`{name}` must be None for a causal backbone, got {value!r}. Nothing is hidden from "
                f"{type(self.backbone).__name__}, which sees no later track anyway."
            )
        check_number(name, value, minimum=0, maximum=1, open_minimum=name == "mask_probability")
        return value
