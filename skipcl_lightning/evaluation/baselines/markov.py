"""First-order Markov model of the last item."""

import torch
from torch import Tensor

from skipcl_lightning.batch import PADDING_INDEX, SessionBatch, TargetRule
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.evaluation.target_rows import checked_target
from skipcl_lightning.functional import last_position

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
        self.popularity = data.item_counts
        self.tie_break = self.popularity.double() / (self.popularity.max() + 1)

    def scores(self, batch: SessionBatch) -> Tensor:
        """Return how often each item followed the session's last item.

        Args:
            batch: B sessions, on the CPU.

        Returns:
            [B, V + 1] float64: the count plus a fraction below 1 for popularity.
        """
        rows, transitions = self._followers(batch)
        scores = self.tie_break.repeat(len(batch), 1)
        scores[rows, self.followers[transitions]] += self.counts[transitions]
        return scores

    def target_ranks(self, batch: SessionBatch, *, exclude_seen: bool = False) -> Tensor:
        """Return the targets' ranks by `scores`, without the scores of the whole catalogue.

        Args:
            batch: B sessions with targets, on the CPU.
            exclude_seen: Whether the items of a session are left out of the candidates. A target that the
                session already held has the worst rank then.

        Returns:
            [B] int64; a tie counts against the target, and a cold target has the worst rank.

        Raises:
            ValueError: The batch has no targets.
        """
        target = checked_target(batch)
        rows, transitions = self._followers(batch)
        followers, counts = self.followers[transitions], self.counts[transitions]
        of_target = torch.zeros(len(batch), dtype=torch.int64)
        hit = followers == target[rows]
        of_target[rows[hit]] = counts[hit]
        popularity = self.popularity[target]
        as_popular = self.popularity[followers] >= popularity[rows]
        at_least = (counts > of_target[rows]) | ((counts == of_target[rows]) & as_popular)
        ranks = torch.bincount(rows[at_least | hit], minlength=len(batch))
        # A target that never followed is behind all followers, and among the other items by popularity.
        others = len(self.popularity) - 1 - torch.searchsorted(self.popularity[1:].sort().values, popularity)
        others -= torch.bincount(rows[as_popular], minlength=len(batch))
        ranks += torch.where(of_target == 0, others, 0)
        worst = len(self.popularity) - 1
        if exclude_seen:
            ranks -= self._better_seen(batch, target, of_target)
            ranks[(batch.seen_items == target[:, None]).any(dim=1)] = worst
        return batch.worst_if_cold(ranks, worst)

    def _followers(self, batch: SessionBatch) -> tuple[Tensor, Tensor]:
        """[F] int64 each: the batch's row and the transition, for each follower of each last item."""
        last = last_position(batch.items[..., None], batch.valid_mask).squeeze(1)  # [B]
        first, end = torch.searchsorted(self.items, last), torch.searchsorted(self.items, last, right=True)
        lengths = end - first
        rows = torch.repeat_interleave(torch.arange(len(batch)), lengths)
        offset = torch.arange(len(rows)) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        return rows, torch.repeat_interleave(first, lengths) + offset

    def _better_seen(self, batch: SessionBatch, target: Tensor, of_target: Tensor) -> Tensor:
        """[B] int64: how many different items of a session have at least the target's score."""
        seen = batch.seen_items.sort(dim=1).values
        repeated = torch.zeros_like(seen, dtype=torch.bool)
        repeated[:, 1:] = seen[:, 1:] == seen[:, :-1]
        counts = torch.zeros_like(seen)
        rows, transitions = self._followers(batch)
        match = seen[rows] == self.followers[transitions][:, None]  # [F, L]
        counts.index_put_(
            (rows[:, None].expand_as(match)[match], match.nonzero()[:, 1]),
            (self.counts[transitions][:, None].expand_as(match)[match]),
        )
        as_popular = self.popularity[seen] >= self.popularity[target][:, None]
        better = (counts > of_target[:, None]) | ((counts == of_target[:, None]) & as_popular)
        return (better & ~repeated & (seen != PADDING_INDEX)).sum(dim=1)
