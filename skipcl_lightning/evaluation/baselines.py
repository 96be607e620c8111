"""Popularity and last-item Markov: what a neural model must beat."""

from collections.abc import Iterable
from typing import Protocol, get_args

import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.functional import last_position, next_item_targets, score_ranks, skip_pair_mask
from skipcl_lightning.functional.catalogue import exclude_items
from skipcl_lightning.functional.positions import TargetRule
from skipcl_lightning.functional.ranks import TieRule
from skipcl_lightning.metrics import session_metrics

__all__ = ["Baseline", "LastItemMarkov", "Popularity", "evaluate_baseline"]


class Baseline(Protocol):
    """Anything that scores the catalogue after each session."""

    def scores(self, batch: SessionBatch) -> Tensor:
        """[B, V + 1] floating point, a score an item; column 0, padding, is ignored."""
        ...


class Popularity:
    """The same list for everyone: items by how often they occur in the training part.

    Args:
        item_counts: [V + 1] integer counts; ``SessionDataModule.item_counts``.

    Example:
        >>> batch = SessionBatch(torch.tensor([[2]]), torch.tensor([[1.0]]))
        >>> Popularity(torch.tensor([0, 5, 1])).scores(batch)
        tensor([[0., 5., 1.]])
    """

    def __init__(self, item_counts: Tensor) -> None:
        self.item_counts = item_counts.float()

    def scores(self, batch: SessionBatch) -> Tensor:
        """How often each item occurs.

        Args:
            batch: B sessions.

        Returns:
            [B, V + 1].
        """
        return self.item_counts.to(batch.items.device).expand(len(batch), -1)


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
        tensor([[0.0000, 0.7500, 2.5000, 1.2500]])
    """

    def __init__(self, batches: Iterable[SessionBatch], *, num_items: int, rule: TargetRule = "next") -> None:
        check_integer("num_items", num_items)
        check_choice("rule", rule, get_args(TargetRule))
        self.width = num_items + 1
        codes, popularity = [], torch.zeros(self.width)
        for batch in batches:
            following = next_item_targets(
                batch.items, batch.feedback, rule=rule, skip_threshold=batch.skip_threshold
            )
            followed = following != PADDING_INDEX
            codes.append(batch.items[followed] * self.width + following[followed])
            items = batch.items[batch.valid_mask]
            popularity.index_add_(0, items, torch.ones(len(items)))
        # One sorted code a pair (track, follower): its memory grows with the log, not with V².
        self.codes, self.counts = torch.unique(torch.cat(codes), return_counts=True)
        self.tie_break = popularity / (popularity.max() + 1)

    def scores(self, batch: SessionBatch) -> Tensor:
        """How often each item followed the session's last track.

        Args:
            batch: B sessions, on the CPU.

        Returns:
            [B, V + 1]: the count, and a fraction below 1 for popularity.
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


def evaluate_baseline(
    baseline: Baseline,
    batches: Iterable[SessionBatch],
    *,
    num_items: int,
    top_k: Iterable[int] = (1, 5, 10, 20),
    ties: TieRule = "pessimistic",
    exclude_seen: bool = False,
) -> dict[str, float]:
    """The metrics that ``SkipCLModule`` logs, for something that is no LightningModule.

    Args:
        baseline: What scores the catalogue.
        batches: Batches with targets, such as ``SessionDataModule.test_dataloader()``.
        num_items: V.
        top_k: The cut-offs.
        ties: How ties count.
        exclude_seen: Leave each session's tracks, but for the target, out of the candidates.

    Returns:
        The values of ``session_metrics`` by name.

    Raises:
        ValueError: A batch has no targets.

    Example:
        >>> batch = SessionBatch(
        ...     torch.tensor([[2]]), torch.ones(1, 1), target=torch.tensor([1]), target_feedback=torch.ones(1)
        ... )
        >>> baseline = Popularity(torch.tensor([0, 5, 1]))
        >>> evaluate_baseline(baseline, [batch], num_items=2, top_k=[1])["hit_rate@1"]
        1.0
    """
    metrics = session_metrics(num_items, top_k=list(top_k), ties=ties)
    for batch in batches:
        if batch.target is None or batch.target_feedback is None:
            raise ValueError("`batches` must have targets, got none. Use a validation or test loader.")
        scores = baseline.scores(batch)
        candidates = exclude_items(scores, batch.seen_items, keep=batch.target) if exclude_seen else scores
        metrics.update(
            ranks=score_ranks(candidates[:, 1:], batch.target - 1, ties=ties),
            target_feedback=batch.target_feedback - batch.skip_threshold,
            target_seen=(batch.seen_items == batch.target[:, None]).any(dim=1),
            target_scores=scores.gather(1, batch.target[:, None]).squeeze(1),
            skip_scores=scores.gather(1, batch.items),
            skip_mask=skip_pair_mask(batch.target, batch.items, batch.skip_mask),
        )
    return {name: float(value) for name, value in metrics.compute().items()}
