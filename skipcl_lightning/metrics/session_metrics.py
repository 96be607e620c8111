"""All metrics of one evaluation, fed by one call."""

from collections.abc import Sequence

from torchmetrics import Metric, MetricCollection

from skipcl_lightning.functional.ranks import TieRule
from skipcl_lightning.metrics.delta_hit_rate import DeltaHitRate
from skipcl_lightning.metrics.pairwise_skip_accuracy import PairwiseSkipAccuracy
from skipcl_lightning.metrics.skip_rank_percentile import SkipRankPercentile
from skipcl_lightning.metrics.target_count import TargetCount
from skipcl_lightning.metrics.top_k import MAP, MRR, NDCG, HitRate, SkipHitRate, SkipMRR

__all__ = ["session_metrics"]

TOP_K_METRICS: dict[str, type[HitRate | NDCG | MRR | MAP | SkipHitRate | SkipMRR | DeltaHitRate]] = {
    "hit_rate": HitRate,
    "ndcg": NDCG,
    "mrr": MRR,
    "map": MAP,
    "skip_hit_rate": SkipHitRate,
    "skip_mrr": SkipMRR,
    "delta_hit_rate": DeltaHitRate,
}


def session_metrics(
    num_items: int,
    *,
    top_k: Sequence[int] = (1, 5, 10, 20),
    ties: TieRule = "pessimistic",
    skip_threshold: float = 0.0,
    prefix: str = "",
) -> MetricCollection:
    """Every metric of this package in a collection, to update by keywords and to log with ``log_dict``.

    For each k: ``hit_rate@k``, ``ndcg@k``, ``mrr@k``, ``map@k`` (equal to ``mrr@k``), ``skip_hit_rate@k``,
    ``skip_mrr@k`` and ``delta_hit_rate@k``. Once: ``skip_rank_percentile``, ``pairwise_skip_accuracy`` and
    the sizes of both populations, ``num_listened`` and ``num_skipped``. A metric whose population is empty is
    NaN.

    Args:
        num_items: V, the catalogue's size, at least 2.
        top_k: The cut-offs k, each at least 1.
        ties: How a tie counts.
        skip_threshold: The feedback under which a target counts as skipped, in (-1, 1].
        prefix: What every key begins with, such as ``"val/"``.

    Returns:
        A ``torchmetrics.MetricCollection``. Its ``update`` takes ``ranks``, ``target_feedback``,
        ``target_scores``, ``skip_scores`` and ``skip_mask``, by keywords.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is unknown or out of range.

    Example:
        >>> import torch
        >>> metrics = session_metrics(num_items=100, top_k=[10], prefix="val/")
        >>> metrics.update(
        ...     ranks=torch.tensor([1, 50]),
        ...     target_feedback=torch.tensor([1.0, -1.0]),
        ...     target_scores=torch.tensor([3.0, 1.0]),
        ...     skip_scores=torch.tensor([[2.0, 0.0], [0.0, 0.0]]),
        ...     skip_mask=torch.tensor([[True, False], [False, False]]),
        ... )
        >>> results = metrics.compute()
        >>> results["val/hit_rate@10"], results["val/delta_hit_rate@10"], results["val/num_skipped"]
        (tensor(1.), tensor(1.), tensor(1.))
    """
    if not top_k:
        raise ValueError(
            f"`top_k` must hold at least one cut-off, got {top_k!r}. The papers use 1, 5, 10, 20."
        )
    metrics: dict[str, Metric | MetricCollection] = {
        "skip_rank_percentile": SkipRankPercentile(num_items, ties=ties, skip_threshold=skip_threshold),
        "pairwise_skip_accuracy": PairwiseSkipAccuracy(ties=ties, skip_threshold=skip_threshold),
        "num_listened": TargetCount("listened", skip_threshold=skip_threshold),
        "num_skipped": TargetCount("skipped", skip_threshold=skip_threshold),
    }
    for k in top_k:
        for name, metric in TOP_K_METRICS.items():
            metrics[f"{name}@{k}"] = metric(k, ties=ties, skip_threshold=skip_threshold)
    return MetricCollection(metrics, prefix=prefix)
