"""How often a listened target outranks the skipped tracks that came before it."""

from typing import Any

import torch
from torch import Tensor

from skipcl_lightning.functional.ranking.metrics import pairwise_wins
from skipcl_lightning.functional.ranking.ranks import TieRule
from skipcl_lightning.metrics.feedback_metric import FeedbackMetric

__all__ = ["PairwiseSkipAccuracy"]


class PairwiseSkipAccuracy(FeedbackMetric):
    """The share of (listened target, earlier skipped track) pairs that are scored the right way round.

    Pairs are pooled: each counts once, so that a session with ten skips weighs ten times one with a single
    skip. Scores of both sides must come from one query, the session as known before the target. Higher is
    better; a half is chance. Formula in `skipcl_lightning.functional.pairwise_wins`.

    In a `MetricCollection` with the rank metrics, call `update` by keywords: the collection hands each
    metric those that it names.

    Args:
        ties: How a tie counts.
        skip_threshold: The feedback under which a target counts as skipped, in (-1, 1].
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is unknown or out of range.

    Examples:
        >>> metric = PairwiseSkipAccuracy()
        >>> metric(
        ...     target_scores=torch.tensor([0.5, 0.1]),
        ...     skip_scores=torch.tensor([[0.1, 0.9, 0.3], [0.7, 0.0, 0.0]]),
        ...     skip_mask=torch.tensor([[True, True, True], [True, False, False]]),
        ...     target_feedback=torch.tensor([1.0, -1.0]),  # the second target was skipped: no pairs
        ... )
        tensor(0.6667)
    """

    higher_is_better = True

    def __init__(self, *, ties: TieRule = "pessimistic", skip_threshold: float = 0.0, **kwargs: Any) -> None:
        super().__init__(ties=ties, skip_threshold=skip_threshold, **kwargs)
        self._half_points = self._add_sum("half_points", "listened")
        self._pairs = self._add_sum("pairs", "listened")

    def update(
        self,
        target_scores: Tensor,
        skip_scores: Tensor,
        skip_mask: Tensor,
        target_feedback: Tensor | None = None,
    ) -> None:
        """Count the pairs of the sessions whose target was listened to.

        Args:
            target_scores: [N] floating point, each session's score of its target.
            skip_scores: [N, L] floating point, its scores of its tracks before the target.
            skip_mask: [N, L] bool, True where such a track was skipped.
            target_feedback: [N] floating point, what the listener did with the target; NaN leaves the
                session out. Without it, every session counts.

        Raises:
            TypeError: A tensor has the wrong dtype.
            ValueError: Shapes disagree.
        """
        half_points, pairs = pairwise_wins(target_scores, skip_scores, skip_mask, ties=self.ties)
        members = self._members("listened", target_scores, target_feedback)
        self._increase(self._half_points, torch.where(members, half_points, 0).sum())
        self._increase(self._pairs, torch.where(members, pairs, 0).sum())

    def compute(self) -> Tensor:
        """The share of all pairs counted so far; NaN without any."""
        return self._sum(self._half_points) / (2 * self._sum(self._pairs))
