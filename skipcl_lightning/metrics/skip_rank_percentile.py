"""Mean place of skipped targets in the catalogue."""

from typing import Any

import torch
from torch import Tensor

from skipcl_lightning._checks import check_integer
from skipcl_lightning.functional.ranking.metrics import rank_percentile
from skipcl_lightning.functional.ranking.ranks import TieRule
from skipcl_lightning.metrics.feedback_metric import Among
from skipcl_lightning.metrics.rank_metric import RankMetric

__all__ = ["SkipRankPercentile"]


class SkipRankPercentile(RankMetric):
    """Mean rank percentile of the skipped targets: 0 if all are first, 1 if all are last. Higher is better.

    Formula: `functional.rank_percentile`. If items are excluded from the ranking, V stays the size of the
    whole catalogue, and the last possible place is slightly below 1.

    Args:
        num_items: V, the catalogue's size, at least 2.
        ties: The rule for equal scores; see `score_ranks`.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        among: `all` targets, only those that the session already held (`repeat`), or only new ones
            (`explore`).
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is unknown or out of range.

    Examples:
        >>> metric = SkipRankPercentile(num_items=5)
        >>> metric(ranks=torch.tensor([5, 1, 2]), target_feedback=torch.tensor([-1.0, 1.0, -0.5]))
        tensor(0.6250)
    """

    higher_is_better = True

    def __init__(
        self,
        num_items: int,
        *,
        ties: TieRule = "pessimistic",
        skip_threshold: float = 0.0,
        among: Among = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(ties=ties, skip_threshold=skip_threshold, among=among, **kwargs)
        check_integer("num_items", num_items, minimum=2, cure="One item's percentile is undefined.")
        self.num_items = num_items
        self._doubled_ranks = self._add_sum("doubled_ranks", "skipped")
        self._targets = self._add_sum("targets", "skipped")

    def _count(self, ranks: Tensor, target_feedback: Tensor | None, target_seen: Tensor | None) -> None:
        members = self._members("skipped", ranks, target_feedback, target_seen)
        # Doubled, because a mean tie has half ranks.
        doubled = (2 * ranks).to(torch.int64)
        self._increase(self._doubled_ranks, torch.where(members, doubled, 0).sum())
        self._increase(self._targets, members.sum())

    def compute(self) -> Tensor:
        """Return the mean over all skipped targets so far; NaN without any."""
        mean_rank = self._sum(self._doubled_ranks) / (2 * self._sum(self._targets))
        return rank_percentile(mean_rank, num_items=self.num_items)
