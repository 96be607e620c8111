"""Metrics of the first k places, for listened and skipped targets."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from skipcl_lightning._checks import check_integer
from skipcl_lightning.functional.ranking.metrics import average_precision, hit_rate, mrr, ndcg
from skipcl_lightning.functional.ranking.ranks import TieRule
from skipcl_lightning.metrics.feedback_metric import Among, Population
from skipcl_lightning.metrics.rank_metric import RankMetric

__all__ = ["MAP", "MRR", "NDCG", "HitRate", "SkipHitRate", "SkipMRR", "TopKMetric"]


class TopKMetric(RankMetric):
    """Mean over a population of a gain that is 0 beyond rank k.

    Its states count the targets of each rank up to k, in half steps, and all targets. `compute` applies the
    gain to the ranks, so metrics of one population and k share their states.

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
    """

    population: ClassVar[Population] = "listened"

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
        self._histogram = self._add_sum("histogram", self.population, 2 * top_k - 1)
        self._targets = self._add_sum("targets", self.population)

    def _count(self, ranks: Tensor, target_feedback: Tensor | None, target_seen: Tensor | None) -> None:
        members = self._members(self.population, ranks, target_feedback, target_seen)
        # Not `bincount`, for whose size the host would wait on a GPU.
        at_rank = (ranks[:, None] == self._ranks(ranks.device)) & members[:, None]  # [N, 2 * top_k - 1]
        self._increase(self._histogram, at_rank.sum(dim=0))
        self._increase(self._targets, members.sum())

    def compute(self) -> Tensor:
        """Return the mean gain over all targets so far; NaN without any."""
        histogram = self._sum(self._histogram)
        gains = self._gain(self._ranks(histogram.device))
        return (histogram * gains).sum() / self._sum(self._targets)

    def _ranks(self, device: torch.device) -> Tensor:
        """Return the ranks of possible hits: 1, 1.5 (a mean tie), 2, up to k."""
        return torch.arange(2, 2 * self.top_k + 1, device=device).float() / 2

    @abstractmethod
    def _gain(self, ranks: Tensor) -> Tensor:
        """Return the gain at each rank."""


class HitRate(TopKMetric):
    """HR@k: the share of listened targets among the first k. Higher is better.

    Arguments as in `TopKMetric`; formula in `skipcl_lightning.functional.hit_rate`.

    Examples:
        >>> metric = HitRate(top_k=2)
        >>> metric.update(ranks=torch.tensor([1, 3, 2]), target_feedback=torch.tensor([1.0, 1.0, -1.0]))
        >>> metric.compute()
        tensor(0.5000)
        >>> HitRate(top_k=1)(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        tensor(0.5000)
    """

    higher_is_better = True

    def _gain(self, ranks: Tensor) -> Tensor:
        return hit_rate(ranks, top_k=self.top_k)


class NDCG(TopKMetric):
    """NDCG@k: the mean of 1 / log2(rank + 1) of the listened targets. Higher is better.

    Arguments as in `TopKMetric`; formula in `skipcl_lightning.functional.ndcg`.

    Examples:
        >>> NDCG(top_k=3)(ranks=torch.tensor([1, 3, 4]))
        tensor(0.5000)
    """

    higher_is_better = True

    def _gain(self, ranks: Tensor) -> Tensor:
        return ndcg(ranks, top_k=self.top_k)


class MRR(TopKMetric):
    """MRR@k: the mean reciprocal rank of the listened targets. Higher is better.

    Arguments as in `TopKMetric`; formula in `skipcl_lightning.functional.mrr`.

    Examples:
        >>> MRR(top_k=2)(ranks=torch.tensor([1, 2, 3]))
        tensor(0.5000)
    """

    higher_is_better = True

    def _gain(self, ranks: Tensor) -> Tensor:
        return mrr(ranks, top_k=self.top_k)


class MAP(TopKMetric):
    """MAP@k of the listened targets, which equals MRR@k: each has one target. Higher is better.

    Arguments as in `TopKMetric`; formula in `skipcl_lightning.functional.average_precision`.

    Examples:
        >>> MAP(top_k=2)(ranks=torch.tensor([1, 2, 3]))
        tensor(0.5000)
    """

    higher_is_better = True

    def _gain(self, ranks: Tensor) -> Tensor:
        return average_precision(ranks, top_k=self.top_k)


class SkipHitRate(HitRate):
    """SkipHitRate@k: the share of skipped targets among the first k. Lower is better.

    Arguments as in `TopKMetric`; formula in `skipcl_lightning.functional.hit_rate`.

    Examples:
        >>> metric = SkipHitRate(top_k=2)
        >>> metric(ranks=torch.tensor([1, 2, 3]), target_feedback=torch.tensor([1.0, -1.0, -0.2]))
        tensor(0.5000)
    """

    higher_is_better = False
    population = "skipped"


class SkipMRR(MRR):
    """SkipMRR@k: the mean reciprocal rank of the skipped targets. Lower is better.

    Arguments as in `TopKMetric`; formula in `skipcl_lightning.functional.mrr`.

    Reference:
        Seshadri, Shashaani, Knees: Enhancing Sequential Music Recommendation with Negative
        Feedback-informed Contrastive Learning, RecSys 2024, doi 10.1145/3640457.3688188.

    Examples:
        >>> metric = SkipMRR(top_k=2)
        >>> metric(ranks=torch.tensor([1, 2, 3]), target_feedback=torch.tensor([1.0, -1.0, -0.2]))
        tensor(0.2500)
    """

    higher_is_better = False
    population = "skipped"
