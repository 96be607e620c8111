"""The skip-contrastive head."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from skipcl_lightning._checks import check_choice, check_integer, check_number
from skipcl_lightning._settings import records_settings
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.functional.contrast import Anchors, Contrast, SkipWeights, weighted_mean
from skipcl_lightning.functional.contrast_candidates import Candidates, rejected_candidates
from skipcl_lightning.functional.look_up import look_up
from skipcl_lightning.functional.skip_info_nce import Negatives, skip_info_nce_terms
from skipcl_lightning.heads.across_ranks import gather_candidates, mean_across_ranks
from skipcl_lightning.heads.session_head import SessionHead, require_table

__all__ = ["Query", "SkipInfoNCE"]

Query = Literal["session", "item"]


class SkipInfoNCE(SessionHead):
    """Pulls each position towards the next listened track and pushes it from the skipped ones.

    `forward` returns the loss before its `weight`, by which the training step multiplies it. Mined
    tracks join wherever the batch brings some (`SessionDataModule(mined_negatives=…)`): those of the track
    at t, or of the one before where t itself is asked for.

    Where the batch hides tracks from a bidirectional backbone, the anchors are hidden positions only, each
    pulled to its own hidden track; `query="item"` and `anchors="all"` mean nothing there.

    Args:
        weight: λ ≥ 0, what the loss is multiplied by in the sum; 0.1 by the study in the README.
        temperature: τ > 0; where it starts, if it is learned.
        learn_temperature: Learn log τ along with the model.
        query: What is contrasted at position t: the `session` as known after t tracks (z_t), or the
            `item` at t (e(i_t)); the predecessor paper tries both.
        anchors: `listened` positions, or `all` real ones.
        negatives: Skips of the `session`, of its `past`, those `passed` over on the way to the next
            listened track, or those of the whole `batch`.
        skip_weights: `uniform`, or by the `strength` of the skip.
        dislike_weight: What the weight of a disliked track is multiplied by, above 0.
        like_weight: How much an anchor counts whose positive is liked, above 0.
        num_hardest: Push each anchor only from so many negatives: the most similar ones, or by similarity and
            weight with the `strength` of skips or a `dislike_weight`; None for all.
        bank_size: Push it from so many of the latest skips of earlier steps too; 0 for none. They are
            embedded anew in each step, so that none is stale.
        gather_ranks: Share the `batch` negatives of all processes, and take the mean over all their
            anchors.
        mined_positive_weight: β ≥ 0, how much a mined positive counts beside the next listened track.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range or not among its choices, or has no use.

    Reference:
        Seshadri, Shashaani, Knees, RecSys 2024, arXiv 2409.07367; for `query`, Seshadri and Knees:
        Leveraging Negative Signals with Self-Attention for Sequential Music Recommendation, MuRS 2023,
        arXiv 2309.11623; for the bank, Wang et al.: Cross-Batch Memory for Embedding Learning, CVPR 2020,
        arXiv 1912.06798.

    Examples:
        >>> items, feedback = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
        >>> head = SkipInfoNCE(weight=0.5, temperature=1.0)
        >>> head(torch.ones(1, 3, 2), torch.ones(1, 3, 2), SessionBatch(items, feedback)).round(decimals=4)
        tensor(0.6931)
    """

    uses_item_table = True
    sparse_gradients = False

    @records_settings
    def __init__(
        self,
        *,
        weight: float = 0.1,
        temperature: float = 0.1,
        learn_temperature: bool = False,
        query: Query = "session",
        anchors: Anchors = "listened",
        negatives: Negatives = "session",
        skip_weights: SkipWeights = "uniform",
        dislike_weight: float = 1.0,
        like_weight: float = 1.0,
        num_hardest: int | None = None,
        bank_size: int = 0,
        gather_ranks: bool = False,
        mined_positive_weight: float = 0.5,
    ) -> None:
        check_choice("negatives", negatives, get_args(Negatives))
        super().__init__(
            weight=weight,
            anchors=anchors,
            negatives="session" if negatives == "batch" else negatives,
            skip_weights=skip_weights,
            dislike_weight=dislike_weight,
            like_weight=like_weight,
        )
        check_number("temperature", temperature, minimum=0, open_minimum=True)
        check_choice("query", query, get_args(Query))
        check_integer("bank_size", bank_size, minimum=0)
        check_number("mined_positive_weight", mined_positive_weight, minimum=0)
        if num_hardest is not None:
            check_integer("num_hardest", num_hardest)
        if gather_ranks and negatives != "batch":
            raise ValueError(
                f"`negatives` must be 'batch' with `gather_ranks`, got {negatives!r}. Negatives within a "
                "session are on its own process."
            )
        self.query: Query = query
        self.negatives: Negatives = negatives
        self.num_hardest = num_hardest
        self.gather_ranks = gather_ranks
        self.mined_positive_weight = mined_positive_weight
        self.log_temperature: Tensor
        if learn_temperature:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        else:
            self.register_buffer("log_temperature", torch.tensor(math.log(temperature)))
        self.bank: Tensor | None
        bank = torch.full((bank_size,), PADDING_INDEX) if bank_size else None
        self.register_buffer("bank", bank)

    @property
    def temperature(self) -> Tensor:
        """τ, a scalar; positive whatever the optimizer does, since its logarithm is what is learned."""
        return self.log_temperature.exp()

    def forward(
        self, query: Tensor, keys: Tensor, batch: SessionBatch, item_embeddings: Tensor | None = None
    ) -> Tensor:
        """The mean contrastive loss over the batch's anchors, or over those of all processes.

        Args:
            query: [B, L, D] floating point, the backbone's output.
            keys: [B, L, D] floating point, the embeddings of the session's items.
            batch: Their items and feedback.
            item_embeddings: [V + 1, D] floating point, the item table; row 0 is padding. Needed for a
                memory bank and mined tracks.

        Returns:
            A scalar; exactly 0, with a zero gradient, without anchors.

        Raises:
            ValueError: The batch hides tracks, and a setting has no meaning then; or the table is missing.
        """
        losses, weights = self.terms(query, keys, batch, item_embeddings)
        return mean_across_ranks(losses, weights) if self.gather_ranks else weighted_mean(losses, weights)

    def terms(
        self, query: Tensor, keys: Tensor, batch: SessionBatch, item_embeddings: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """[B, L] losses of the anchors and [B, L] what each counts in the mean; 0 where there is none."""
        contrast = self.contrast(batch)
        terms = skip_info_nce_terms(
            keys if self.query == "item" else query,
            keys,
            batch.items,
            contrast,
            within_session=self.negatives != "batch",
            temperature=self.temperature,
            candidates=self._candidates(keys, batch, contrast, item_embeddings),
            mined_negatives=self._mined(batch.mined_negatives, batch, item_embeddings),
            mined_positives=self._mined(batch.mined_positives, batch, item_embeddings),
            mined_positive_weight=self.mined_positive_weight,
            num_hardest=self.num_hardest,
        )
        self._remember(torch.where(contrast.rejected_mask, batch.items, PADDING_INDEX).flatten())
        return terms

    def check_cloze(self) -> None:
        """Raise unless the settings have a meaning where tracks are hidden from a bidirectional backbone.

        Raises:
            ValueError: A setting has none.
        """
        super().check_cloze()
        if self.query == "item":
            raise ValueError(
                "`query` must be 'session' for a bidirectional backbone, got 'item'. The item at a hidden "
                "position is the very one that it is pulled to."
            )

    def _candidates(
        self, keys: Tensor, batch: SessionBatch, contrast: Contrast, item_embeddings: Tensor | None
    ) -> Candidates | None:
        """Negatives that all sessions share: the batch's, or all processes', and those of the bank."""
        parts = []
        if self.negatives == "batch":
            own = rejected_candidates(keys, batch.items, contrast)
            parts.append(gather_candidates(own) if self.gather_ranks else own)
        if self.bank is not None:
            table = require_table(item_embeddings, "a memory bank")
            weight = torch.zeros_like(self.bank, dtype=torch.float32)
            parts.append(Candidates(self.bank, self._rows(self.bank, table).to(keys.dtype), weight))
        if not parts:
            return None
        items, embeddings, weights = zip(*parts, strict=True)
        return Candidates(torch.cat(items), torch.cat(embeddings), torch.cat(weights))

    @torch.no_grad()
    def _remember(self, rejected: Tensor) -> None:
        """Put a batch's skips in front of the bank; how many are not 0 the host need not know."""
        if self.bank is None or not self.training:
            return
        both = torch.cat([rejected, self.bank])
        order = (both == PADDING_INDEX).to(torch.uint8).sort(stable=True).indices
        # Not in place: the backward pass may still ask for the bank as it was.
        self.bank = both[order][: len(self.bank)]

    def _mined(
        self, items: Tensor | None, batch: SessionBatch, item_embeddings: Tensor | None
    ) -> Candidates | None:
        """What was mined for the track before each positive, as far as it is known there."""
        if items is None:
            return None
        if batch.cloze_mask is not None:
            # A hidden track is asked for in its own place, so that what often follows it says nothing there.
            items = nn.functional.pad(items[:, :-1], (0, 0, 1, 0), value=PADDING_INDEX)
        return Candidates(items, self._rows(items, require_table(item_embeddings, "mined tracks")))

    def _rows(self, items: Tensor, table: Tensor) -> Tensor:
        return look_up(items, table, sparse=self.sparse_gradients)
