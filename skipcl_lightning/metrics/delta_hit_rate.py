"""Difference of the hit rates of listened and skipped targets."""

from typing import Any

from torch import Tensor

from skipcl_lightning._checks import check_integer
from skipcl_lightning.functional.ranking.metrics import hit_rate
from skipcl_lightning.functional.ranking.ranks import TieRule
from skipcl_lightning.metrics.feedback_metric import Among, Population
from skipcl_lightning.metrics.rank_metric import RankMetric

__all__ = ["DeltaHitRate"]


class DeltaHitRate(RankMetric):
    """HR@k of the listened targets minus HR@k of the skipped ones. Higher is better.

    delta HR@k = HR@k - SkipHitRate@k, in [-1, 1]; NaN if either population is empty. The feedback is
    required: without it both populations would be all rows, and the difference always 0.

    Args:
        top_k: k, at least 1.
        ties: The rule for equal scores; see `score_ranks`.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        among: `all` targets, only those that the session already held (`repeat`), or only new ones
            (`explore`).
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is unknown or out of range.

    Examples:
        >>> import torch
        >>> metric = DeltaHitRate(top_k=2)
        >>> metric(ranks=torch.tensor([1, 2, 3]), target_feedback=torch.tensor([1.0, -1.0, -0.2]))
        tensor(0.5000)
    """

    higher_is_better = True
    plot_lower_bound = -1.0

    def __init__(
        self,
        top_k: int = 10,
        *,
        ties: TieRule = "pessimistic",
        skip_threshold: float = 0.0,
        among: Among = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(ties=ties, skip_threshold=skip_threshold, among=among, **kwargs)
        check_integer("top_k", top_k)
        self.top_k = top_k
        populations: tuple[Population, ...] = ("listened", "skipped")
        self._hits = {each: self._add_sum(f"hits_{top_k}", each) for each in populations}
        self._targets = {each: self._add_sum("targets", each) for each in populations}

    def _count(self, ranks: Tensor, target_feedback: Tensor | None, target_seen: Tensor | None) -> None:
        if target_feedback is None:
            raise ValueError(
                "`target_feedback` must be given, got None. Without it no target is known as skipped; "
                "use `HitRate` for one population."
            )
        hits = hit_rate(ranks, top_k=self.top_k) > 0
        for population in self._hits:
            members = self._members(population, ranks, target_feedback, target_seen)
            self._increase(self._hits[population], (hits & members).sum())
            self._increase(self._targets[population], members.sum())

    def compute(self) -> Tensor:
        """Return the difference over all targets so far; NaN if either population is empty."""
        return self._share("listened") - self._share("skipped")

    def _share(self, population: Population) -> Tensor:
        return self._sum(self._hits[population]) / self._sum(self._targets[population])
