"""Last-item Markov: what followed this track before."""

from typing import get_args

import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.functional import last_position, next_item_targets
from skipcl_lightning.functional.positions import TargetRule

__all__ = ["LastItemMarkov"]


class LastItemMarkov:
    """Items by how often they follow the session's last track in the training set.

    Ties, most of all among items that never followed it, are broken by popularity.

    Args:
        data: The data module, of which the whole training set is read: sessions longer than `max_length`
            too.
        rule: What follows a track: the `next` one, or the `next_listened` one.

    Raises:
        ValueError: The rule is unknown.

    Examples:
        >>> from skipcl_lightning.data import simulate_sessions
        >>> data = SessionDataModule(simulate_sessions(20, num_items=40, num_moods=4))
        >>> scores = LastItemMarkov(data).scores(next(iter(data.test_dataloader())))
        >>> scores.shape == (20, data.num_items + 1)
        True
    """

    def __init__(self, data: SessionDataModule, *, rule: TargetRule = "next") -> None:
        check_choice("rule", rule, get_args(TargetRule))
        self.width = data.num_items + 1
        codes = []
        for batch in data.training_sessions():
            following = next_item_targets(
                batch.items,
                batch.feedback,
                explicit_feedback=batch.explicit_feedback,
                rule=rule,
                skip_threshold=batch.skip_threshold,
            )
            followed = following != PADDING_INDEX
            codes.append(batch.items[followed] * self.width + following[followed])
        # One sorted code a pair (track, follower): its memory grows with the log, not with V².
        self.codes, self.counts = torch.unique(torch.cat(codes), return_counts=True)
        popularity = data.item_counts
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
