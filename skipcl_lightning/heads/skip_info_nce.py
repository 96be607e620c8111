"""The skip-contrastive head."""

import math
from typing import Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from skipcl_lightning._checks import check_choice, check_integer, check_number
from skipcl_lightning._settings import records_settings_and
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch, Sessions, as_batch
from skipcl_lightning.functional.next_item.look_up import look_up, require_table
from skipcl_lightning.functional.skip_losses.contrast import (
    Candidates,
    ContrastOptions,
    ContrastSettings,
    check_info_nce_settings,
    gather_latest,
    move_padding_last,
    skip_info_nce,
)
from skipcl_lightning.heads.session_head import SessionHead

__all__ = ["Query", "SkipInfoNCE"]

Query = Literal["session", "item"]
# A learned τ that falls further has similarities beyond ±100, and one update may then end the training.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 100.0


class SkipInfoNCE(SessionHead):
    """Head with the loss `skip_info_nce`: pull to the next listened item, push from the skipped items.

    `forward` returns the loss before its `weight`; `SkipCLModule` multiplies it. Items mined by
    `SessionDataModule(mined_negatives=…)` take part if the batch has them.

    With a bidirectional backbone the anchors are the hidden positions; `query="item"` and `anchors="all"` are
    not defined there.

    Args:
        weight: λ ≥ 0, the factor of the loss in the sum.
        temperature: τ > 0; its first value if it is learned.
        learn_temperature: Whether log τ is learned with the model. τ then stays in [0.01, 100], and so must
            its first value.
        query: What is compared at position t: the `session` after t items (z_t), or the `item` at t (e(i_t)).
            The predecessor paper tries both.
        num_hardest: Keep only this many negatives of each anchor, those with the largest terms of the sum
            (similarity and weight); None for all.
        bank_size: Number of the latest skipped items of earlier steps that are negatives too; 0 for none.
            The bank holds item indices, which are embedded again in each step. In a distributed run all
            processes have the same bank, with the skips of all.
        gather_ranks: Share the `batch` negatives of all processes, and average over all their anchors.
        mined_positive_weight: β ≥ 0, the weight of a mined positive; the next listened item has 1.
        contrast: Keyword arguments of `ContrastSettings`: `anchors`, `negatives`, `skip_weights`,
            `dislike_weight`, `like_weight`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range, not among its choices, or has no effect.

    Reference:
        Seshadri, Shashaani, Knees, RecSys 2024, arXiv 2409.07367; for `query`, Seshadri and Knees:
        Leveraging Negative Signals with Self-Attention for Sequential Music Recommendation, MuRS 2023,
        arXiv 2309.11623; for the bank, Wang et al.: Cross-Batch Memory for Embedding Learning, CVPR 2020,
        arXiv 1912.06798.

    Examples:
        >>> items, feedback = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
        >>> head = SkipInfoNCE(weight=0.5, temperature=1.0)
        >>> head(torch.ones(1, 3, 2), torch.ones(1, 3, 2), (items, feedback)).round(decimals=4)
        tensor(0.6931)
    """

    uses_item_table = True
    sparse_gradients = False

    @records_settings_and(contrast=ContrastSettings())
    def __init__(
        self,
        *,
        weight: float = 0.1,
        temperature: float = 0.1,
        learn_temperature: bool = False,
        query: Query = "session",
        num_hardest: int | None = None,
        bank_size: int = 0,
        gather_ranks: bool = False,
        mined_positive_weight: float = 0.5,
        **contrast: Unpack[ContrastOptions],
    ) -> None:
        super().__init__(weight=weight, contrast=ContrastSettings(**contrast))
        check_choice("query", query, get_args(Query))
        check_integer("bank_size", bank_size, minimum=0)
        check_info_nce_settings(temperature, num_hardest, gather_ranks, mined_positive_weight, self.contrast)
        self.query: Query = query
        self.num_hardest = num_hardest
        self.gather_ranks = gather_ranks
        self.mined_positive_weight = mined_positive_weight
        self.log_temperature: Tensor
        self.learn_temperature = learn_temperature
        if learn_temperature:
            check_number("temperature", temperature, minimum=LEAST_TEMPERATURE, maximum=MOST_TEMPERATURE)
            self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        else:
            self.register_buffer("log_temperature", torch.tensor(math.log(temperature)))
        self.bank: Tensor | None
        bank = torch.full((bank_size,), PADDING_INDEX) if bank_size else None
        self.register_buffer("bank", bank)

    @property
    def temperature(self) -> Tensor:
        """τ, a scalar; always positive, because its logarithm is the parameter; bounded if it is learned."""
        logarithm = self.log_temperature
        if self.learn_temperature:
            bounded = logarithm.detach().clamp(math.log(LEAST_TEMPERATURE), math.log(MOST_TEMPERATURE))
            # The gradient is that without bounds, so that τ can return from a bound.
            logarithm = bounded + (logarithm - logarithm.detach())
        return logarithm.exp()

    def forward(
        self, query: Tensor, keys: Tensor, sessions: Sessions, item_embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss over the anchors of the batch, or of all processes.

        Args:
            query: [B, L, D] floating point, the backbone's output.
            keys: [B, L, D] floating point, the embeddings of the sessions' items.
            sessions: A `SessionBatch`, or the pair `(items, feedback)`.
            item_embeddings: [V + 1, D] floating point, the item table; row 0 is padding. Needed for a memory
                bank and mined items.

        Returns:
            A scalar; exactly 0, with a zero gradient, without anchors.

        Raises:
            ValueError: The batch hides items and a setting is not defined for that, or the table is missing.
        """
        batch = as_batch(sessions)
        if batch.cloze_mask is not None:
            self.check_cloze()
        candidates = None
        if self.bank is not None:
            table = require_table(item_embeddings, "a memory bank")
            rows = look_up(self.bank, table, sparse=self.sparse_gradients)
            candidates = Candidates(self.bank, rows.to(keys.dtype))
        loss = skip_info_nce(
            keys if self.query == "item" else query,
            keys,
            batch,
            item_embeddings,
            temperature=self.temperature,
            num_hardest=self.num_hardest,
            gather_ranks=self.gather_ranks,
            mined_positive_weight=self.mined_positive_weight,
            candidates=candidates,
            sparse_gradients=self.sparse_gradients,
            **self.contrast.options,
        )
        if self.bank is not None and self.training:
            # Not in place: the backward pass may still need the old bank.
            self.bank = _remember(self.bank, batch)
        return loss

    def check_cloze(self) -> None:
        """Check that the settings are defined for a bidirectional backbone.

        Raises:
            ValueError: `anchors` is 'all' or `query` is 'item'; only 'listened' and 'session' are defined.
        """
        super().check_cloze()
        if self.query == "item":
            raise ValueError(
                "`query` must be 'session' for a bidirectional backbone, got 'item'. The item at a hidden "
                "position is the very one that it is pulled to."
            )


def _remember(bank: Tensor, batch: SessionBatch) -> Tensor:
    """Return the bank with the rejected items of a batch at its front."""
    rejected = torch.where(batch.rejected_mask, batch.items, PADDING_INDEX).flatten()
    latest = torch.cat([gather_latest(rejected, len(bank)), bank])
    return move_padding_last(latest)[: len(bank)]
