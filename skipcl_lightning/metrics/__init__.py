"""Metrics of what listeners heard and of what they skipped, for torchmetrics and Lightning."""

from skipcl_lightning.metrics.delta_hit_rate import DeltaHitRate
from skipcl_lightning.metrics.pairwise_skip_accuracy import PairwiseSkipAccuracy
from skipcl_lightning.metrics.session_metrics import session_metrics
from skipcl_lightning.metrics.skip_rank_percentile import SkipRankPercentile
from skipcl_lightning.metrics.target_count import TargetCount
from skipcl_lightning.metrics.top_k import MAP, MRR, NDCG, HitRate, SkipHitRate, SkipMRR

__all__ = [
    "MAP",
    "MRR",
    "NDCG",
    "DeltaHitRate",
    "HitRate",
    "PairwiseSkipAccuracy",
    "SkipHitRate",
    "SkipMRR",
    "SkipRankPercentile",
    "TargetCount",
    "session_metrics",
]
