"""Metrics of how low a model ranks what listeners skip, and collections of all metrics."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from skipcl_lightning._checks import check_integer
from skipcl_lightning.functional.ranking.metrics import hit_rate, pairwise_wins, rank_percentile
from skipcl_lightning.functional.ranking.ranks import TieRule, score_ranks
from skipcl_lightning.metrics.rank_metrics import (
    MRR,
    NDCG,
    Among,
    FeedbackMetric,
    HitRate,
    Population,
    RankMetric,
    SkipHitRate,
    SkipMRR,
    TargetCount,
)

__all__ = [
    "DeltaHitRate",
    "PairwiseSkipAccuracy",
    "RankingMetrics",
    "SkipRankMetrics",
    "SkipRankPercentile",
    "check_cut_offs",
    "describe_left_out",
    "session_metrics",
]


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


Metrics = dict[str, Metric | MetricCollection]
TopKMetrics = dict[str, Callable[..., Metric]]

# Without MAP, which equals MRR for one target.
RANKING_METRICS: TopKMetrics = {"hit_rate": HitRate, "ndcg": NDCG, "mrr": MRR}
SKIP_METRICS: TopKMetrics = {
    "skip_hit_rate": SkipHitRate,
    "skip_mrr": SkipMRR,
    "delta_hit_rate": DeltaHitRate,
}
PAPERS_TOP_K = (1, 5, 10, 20)


class _RankedCollection(MetricCollection):
    """Collection of rank metrics that ranks a batch of scores once for all of them."""

    def __init__(self, metrics: Metrics, *, ties: TieRule, prefix: str, postfix: str) -> None:
        super().__init__(metrics, prefix=prefix or None, postfix=postfix or None)
        self.ties: TieRule = ties

    def update(  # type: ignore[override]  # that of ModuleDict adds modules; torchmetrics overrides it too
        self,
        preds: Tensor | None = None,
        target: Tensor | None = None,
        *,
        ranks: Tensor | None = None,
        target_feedback: Tensor | None = None,
    ) -> None:
        """Count the targets of a batch, given by scores or by ranks.

        Args:
            preds: [N, C] floating-point scores of C candidates.
            target: [N] int64, the target's column in 0..C-1.
            ranks: [N] int64 or float32, in place of `preds` and `target`.
            target_feedback: [N] floating point, the feedback on the target; without it, every row counts in
                every metric.

        Raises:
            TypeError: A tensor has the wrong dtype.
            ValueError: Shapes disagree, or not exactly one of `preds` and `ranks` is given.
        """
        super().update(**self._rank(preds, target, ranks), target_feedback=target_feedback)

    def forward(
        self,
        preds: Tensor | None = None,
        target: Tensor | None = None,
        *,
        ranks: Tensor | None = None,
        target_feedback: Tensor | None = None,
    ) -> Any:
        """Count the targets of a batch, and return the values of this batch."""
        return super().forward(**self._rank(preds, target, ranks), target_feedback=target_feedback)

    def _rank(
        self, preds: Tensor | None, target: Tensor | None, ranks: Tensor | None
    ) -> dict[str, Tensor | None]:
        if preds is None or target is None or ranks is not None:
            # The metrics' own errors name missing or superfluous arguments.
            return {"preds": preds, "target": target, "ranks": ranks}
        return {"ranks": score_ranks(preds, target, ties=self.ties)}


class RankingMetrics(_RankedCollection):
    """HitRate, NDCG and MRR of the listened targets at several cut-offs.

    Keys are `hit_rate@k`, `ndcg@k`, `mrr@k` (equal to MAP@k, because each row has one target), and
    `num_listened`, the number of listened targets. A count has no better side, so
    `torchmetrics.MetricTracker` needs `maximize=True`.

    Args:
        top_k: The cut-offs k, each at least 1.
        ties: The rule for equal scores; see `score_ranks`.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        prefix: The start of every key, such as `"val/"`.
        postfix: The end of every key; `"/sampled1000"` where targets are ranked among 1,000 sampled
            candidates.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is unknown or out of range.

    Examples:
        >>> import torch
        >>> metrics = RankingMetrics(top_k=[1, 2])
        >>> metrics.update(torch.tensor([[0.1, 0.7, 0.2], [0.3, 0.4, 0.1]]), torch.tensor([1, 0]))
        >>> {name: round(float(value), 2) for name, value in metrics.compute().items()}["hit_rate@1"]
        0.5
    """

    def __init__(
        self,
        *,
        top_k: Sequence[int] = PAPERS_TOP_K,
        ties: TieRule = "pessimistic",
        skip_threshold: float = 0.0,
        prefix: str = "",
        postfix: str = "",
    ) -> None:
        metrics = _ranking_metrics(top_k, ties=ties, skip_threshold=skip_threshold)
        super().__init__(metrics, ties=ties, prefix=prefix, postfix=postfix)


class SkipRankMetrics(_RankedCollection):
    """Metrics of the skipped targets at several cut-offs.

    Keys are `skip_hit_rate@k`, `skip_mrr@k`, `delta_hit_rate@k` (which also counts the listened targets),
    `skip_rank_percentile`, and `num_skipped`, the number of skipped targets. `update` needs
    `target_feedback`. A count has no better side, so `torchmetrics.MetricTracker` needs
    `maximize=[metric.higher_is_better is not False for metric in metrics.values()]`.

    Args:
        num_items: V, the catalogue's size, at least 2.
        top_k: The cut-offs k, each at least 1.
        ties: The rule for equal scores; see `score_ranks`.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        prefix: The start of every key, such as `"val/"`.
        postfix: The end of every key.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is unknown or out of range.

    Examples:
        >>> import torch
        >>> metrics = SkipRankMetrics(3, top_k=[1])
        >>> scores, target = torch.tensor([[0.1, 0.7, 0.2], [0.3, 0.4, 0.1]]), torch.tensor([1, 0])
        >>> metrics.update(scores, target, target_feedback=torch.tensor([1.0, -1.0]))
        >>> metrics.compute()["skip_rank_percentile"]
        tensor(0.5000)
    """

    def __init__(
        self,
        num_items: int,
        *,
        top_k: Sequence[int] = PAPERS_TOP_K,
        ties: TieRule = "pessimistic",
        skip_threshold: float = 0.0,
        prefix: str = "",
        postfix: str = "",
    ) -> None:
        metrics = _skip_metrics(num_items, top_k, ties=ties, skip_threshold=skip_threshold)
        super().__init__(metrics, ties=ties, prefix=prefix, postfix=postfix)


def session_metrics(
    num_items: int,
    *,
    top_k: Sequence[int] = PAPERS_TOP_K,
    ties: TieRule = "pessimistic",
    skip_threshold: float = 0.0,
    prefix: str = "",
) -> MetricCollection:
    """Return all metrics of ranks as a collection, to update with keywords and to log with `log_dict`.

    It holds the metrics of `RankingMetrics` and `SkipRankMetrics`; `hit_rate@k/repeat` and
    `hit_rate@k/explore`, of listened targets that the session already held and of new ones;
    `pairwise_skip_accuracy`; and `num_repeated`, the number of repeats among the listened targets. A metric
    whose population is empty is NaN. A count has no better side, so `torchmetrics.MetricTracker` needs
    `maximize=[metric.higher_is_better is not False for metric in metrics.values()]`.

    Args:
        num_items: V, the catalogue's size, at least 2.
        top_k: The cut-offs k, each at least 1.
        ties: The rule for equal scores.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        prefix: The start of every key, such as `"val/"`.

    Returns:
        A `torchmetrics.MetricCollection`. Its `update` takes `ranks`, `target_feedback`, `target_seen`,
        `target_scores`, `skip_scores` and `skip_mask`, by keywords.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is unknown or out of range.

    Examples:
        >>> import torch
        >>> metrics = session_metrics(num_items=100, top_k=[10], prefix="val/")
        >>> metrics.update(
        ...     ranks=torch.tensor([1, 50]),
        ...     target_feedback=torch.tensor([1.0, -1.0]),
        ...     target_seen=torch.tensor([True, False]),
        ...     target_scores=torch.tensor([3.0, 1.0]),
        ...     skip_scores=torch.tensor([[2.0, 0.0], [0.0, 0.0]]),
        ...     skip_mask=torch.tensor([[True, False], [False, False]]),
        ... )
        >>> results = metrics.compute()
        >>> results["val/hit_rate@10"], results["val/delta_hit_rate@10"], results["val/num_skipped"]
        (tensor(1.), tensor(1.), tensor(1.))
    """
    settings: dict[str, Any] = {"ties": ties, "skip_threshold": skip_threshold}
    metrics: Metrics = {
        **_ranking_metrics(top_k, **settings),
        **_skip_metrics(num_items, top_k, **settings),
        "pairwise_skip_accuracy": PairwiseSkipAccuracy(**settings),
        "num_repeated": TargetCount("listened", skip_threshold=skip_threshold, among="repeat"),
    }
    for k in top_k:
        metrics[f"hit_rate@{k}/repeat"] = HitRate(k, **settings, among="repeat")
        metrics[f"hit_rate@{k}/explore"] = HitRate(k, **settings, among="explore")
    return MetricCollection(metrics, prefix=prefix or None)


def describe_left_out(names: Iterable[str]) -> str:
    """Return one line that names the metrics without a value.

    Examples:
        >>> describe_left_out(["skip_mrr@1", "skip_mrr@5", "skip_rank_percentile"])
        'Left out, as their population is empty: skip_mrr, skip_rank_percentile.'
    """
    families = dict.fromkeys(re.sub(r"@\d+", "", name) for name in names)
    return f"Left out, as their population is empty: {', '.join(families)}." if families else ""


def _ranking_metrics(top_k: Sequence[int], *, ties: TieRule, skip_threshold: float) -> Metrics:
    metrics = _at_each(RANKING_METRICS, top_k, ties=ties, skip_threshold=skip_threshold)
    return {**metrics, "num_listened": TargetCount("listened", skip_threshold=skip_threshold)}


def _skip_metrics(num_items: int, top_k: Sequence[int], *, ties: TieRule, skip_threshold: float) -> Metrics:
    percentile = SkipRankPercentile(num_items, ties=ties, skip_threshold=skip_threshold)
    return {
        **_at_each(SKIP_METRICS, top_k, ties=ties, skip_threshold=skip_threshold),
        "skip_rank_percentile": percentile,
        "num_skipped": TargetCount("skipped", skip_threshold=skip_threshold),
    }


def _at_each(metrics: TopKMetrics, top_k: Sequence[int], **settings: Any) -> Metrics:
    check_cut_offs(top_k)
    return {f"{name}@{k}": metric(k, **settings) for k in top_k for name, metric in metrics.items()}


def check_cut_offs(top_k: Any) -> None:
    """Raise unless these are several positive integers."""
    if not isinstance(top_k, Collection):
        raise TypeError(f"`top_k` must be a sequence of cut-offs, got {top_k!r}. Write one as `(10,)`.")
    if not len(top_k):
        raise ValueError("`top_k` must hold at least one cut-off, got none. The papers use 1, 5, 10, 20.")
    for k in top_k:
        check_integer("top_k", k)
