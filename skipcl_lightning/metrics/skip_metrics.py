"""Metrics of how low a model ranks what listeners skip."""

from typing import Any

import torch
from torch import Tensor

from skipcl_lightning._checks import check_integer
from skipcl_lightning.functional.ranking.metrics import hit_rate, pairwise_wins, rank_percentile
from skipcl_lightning.functional.ranking.ranks import TieRule
from skipcl_lightning.metrics.rank_metrics import Among, FeedbackMetric, Population, RankMetric

__all__ = ["DeltaHitRate", "PairwiseSkipAccuracy", "SkipRankPercentile"]


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
