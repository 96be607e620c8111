"""First-order Markov model of the last item."""

import torch
from torch import Tensor

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.functional import last_position
from skipcl_lightning.functional.positions import TargetRule

__all__ = ["LastItemMarkov"]


class LastItemMarkov:
    """Baseline that ranks items by how often they follow the session's last item in the training set.

    Ties are broken by popularity; items that never followed the last item are all tied.

    Args:
        data: The data module; the whole training set is read, not cut to `max_length`.
        rule: Which item counts as the follower: the `next` item, or the `next_listened` item.

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
        # One row for each transition: memory grows with the log, not with V².
        self.items, self.followers, self.counts = data.transition_counts(rule)
        popularity = data.item_counts
        self.tie_break = popularity.double() / (popularity.max() + 1)

    def scores(self, batch: SessionBatch) -> Tensor:
        """Return how often each item followed the session's last item.

        Args:
            batch: B sessions, on the CPU.

        Returns:
            [B, V + 1] float64: the count plus a fraction below 1 for popularity.
        """
        last = last_position(batch.items[..., None], batch.valid_mask).squeeze(1)  # [B]
        first, end = torch.searchsorted(self.items, last), torch.searchsorted(self.items, last, right=True)
        lengths = end - first
        rows = torch.repeat_interleave(torch.arange(len(batch)), lengths)  # one entry for each follower
        offset = torch.arange(len(rows)) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        pairs = torch.repeat_interleave(first, lengths) + offset
        scores = self.tie_break.repeat(len(batch), 1)
        scores[rows, self.followers[pairs]] += self.counts[pairs]
        return scores
