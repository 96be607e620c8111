"""Metrics of what listeners heard and of what they skipped, for torchmetrics and Lightning."""

from skipcl_lightning.metrics.diversity import CatalogueCoverage, Novelty
from skipcl_lightning.metrics.rank_metrics import MAP, MRR, NDCG, HitRate, SkipHitRate, SkipMRR, TargetCount
from skipcl_lightning.metrics.session_metrics import (
    DeltaHitRate,
    PairwiseSkipAccuracy,
    RankingMetrics,
    SkipRankMetrics,
    SkipRankPercentile,
    session_metrics,
)
from skipcl_lightning.metrics.skip_prediction_metrics import (
    FirstPredictionAccuracy,
    MeanAverageAccuracy,
    SkipAccuracyByPlace,
    SkipAUC,
    SkipBrierScore,
    SkipCalibrationError,
    skip_prediction_metrics,
)

__all__ = [
    "MAP",
    "MRR",
    "NDCG",
    "CatalogueCoverage",
    "DeltaHitRate",
    "FirstPredictionAccuracy",
    "HitRate",
    "MeanAverageAccuracy",
    "Novelty",
    "PairwiseSkipAccuracy",
    "RankingMetrics",
    "SkipAUC",
    "SkipAccuracyByPlace",
    "SkipBrierScore",
    "SkipCalibrationError",
    "SkipHitRate",
    "SkipMRR",
    "SkipRankMetrics",
    "SkipRankPercentile",
    "TargetCount",
    "session_metrics",
    "skip_prediction_metrics",
]
