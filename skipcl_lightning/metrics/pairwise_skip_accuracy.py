"""Share of skipped items that a listened target outranks."""

from typing import Any

import torch
from torch import Tensor

from skipcl_lightning.functional.ranking.metrics import pairwise_wins
from skipcl_lightning.functional.ranking.ranks import TieRule
from skipcl_lightning.metrics.feedback_metric import FeedbackMetric

__all__ = ["PairwiseSkipAccuracy"]


class PairwiseSkipAccuracy(FeedbackMetric):
    """The share of pairs (listened target, earlier skipped item) with the target scored higher.

    Pairs are pooled, so a session with ten skips has ten times the weight of one with a single skip. Both
    scores must come from one query, the session before the target. Higher is better; 0.5 is chance. Formula:
    `functional.pairwise_wins`.

    In a `MetricCollection` with rank metrics, call `update` with keywords; each metric gets the ones that it
    takes.

    Args:
        ties: The rule for equal scores.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
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
            target_scores: [N] floating point, the scores of the targets.
            skip_scores: [N, L] floating point, the scores of the items before the target.
            skip_mask: [N, L] bool, True at skipped items.
            target_feedback: [N] floating point, the feedback on the target; NaN leaves the session out. None
                counts every session.

        Raises:
            TypeError: A tensor has the wrong dtype.
            ValueError: Shapes disagree.
        """
        half_points, pairs = pairwise_wins(target_scores, skip_scores, skip_mask, ties=self.ties)
        members = self._members("listened", target_scores, target_feedback)
        self._increase(self._half_points, torch.where(members, half_points, 0).sum())
        self._increase(self._pairs, torch.where(members, pairs, 0).sum())

    def compute(self) -> Tensor:
        """Return the share over all pairs so far; NaN without any."""
        return self._sum(self._half_points) / (2 * self._sum(self._pairs))
