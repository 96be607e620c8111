"""Last-item Markov: what followed this track before."""

from collections.abc import Iterable
from typing import get_args

import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.functional import last_position, next_item_targets
from skipcl_lightning.functional.positions import TargetRule

__all__ = ["LastItemMarkov"]


class LastItemMarkov:
    """Items by how often they follow the session's last track in the training part.

    Ties, most of all among items that never followed it, are broken by popularity.

    Args:
        batches: The training batches, such as ``SessionDataModule.train_dataloader()``; read once.
        num_items: V.
        rule: What follows a track: the ``next`` one, or the ``next_listened`` one.

    Raises:
        ValueError: ``num_items`` is below 1 or the rule is unknown.

    Example:
        >>> sessions = SessionBatch(torch.tensor([[1, 2, 1, 2, 1, 3]]), torch.ones(1, 6))
        >>> now = SessionBatch(torch.tensor([[3, 1]]), torch.ones(1, 2))
        >>> LastItemMarkov([sessions], num_items=3).scores(now)
        tensor([[0.0000, 0.7500, 2.5000, 1.2500]], dtype=torch.float64)
    """

    def __init__(self, batches: Iterable[SessionBatch], *, num_items: int, rule: TargetRule = "next") -> None:
        check_integer("num_items", num_items)
        check_choice("rule", rule, get_args(TargetRule))
        self.width = num_items + 1
        codes, popularity = [], torch.zeros(self.width, dtype=torch.int64)
        for batch in batches:
            following = next_item_targets(
                batch.items, batch.feedback, rule=rule, skip_threshold=batch.skip_threshold
            )
            followed = following != PADDING_INDEX
            codes.append(batch.items[followed] * self.width + following[followed])
            items = batch.items[batch.valid_mask]
            popularity.index_add_(0, items, torch.ones_like(items))
        # One sorted code a pair (track, follower): its memory grows with the log, not with V².
        self.codes, self.counts = torch.unique(torch.cat(codes), return_counts=True)
        self.tie_break = popularity.double() / (popularity.max() + 1)

    def scores(self, batch: SessionBatch) -> Tensor:
        """How often each item followed the session's last track.

        Args:
            batch: B sessions, on the CPU.

        Returns:
            [B, V + 1] float64: the count, and a fraction below 1 for popularity.
        """
        last = last_position(batch.items[..., None], batch.valid_mask).squeeze(1)  # [B]
        first, end = (torch.searchsorted(self.codes, edge * self.width) for edge in (last, last + 1))
        lengths = end - first
        rows = torch.repeat_interleave(torch.arange(len(batch)), lengths)  # one entry a follower
        offset = torch.arange(len(rows)) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        pairs = torch.repeat_interleave(first, lengths) + offset
        scores = self.tie_break.repeat(len(batch), 1)
        scores[rows, self.codes[pairs] % self.width] += self.counts[pairs]
        return scores
