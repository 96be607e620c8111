"""Metrics of what listeners heard and of what they skipped, for torchmetrics and Lightning."""

from skipcl_lightning.metrics.delta_hit_rate import DeltaHitRate
from skipcl_lightning.metrics.diversity import CatalogueCoverage, Novelty
from skipcl_lightning.metrics.pairwise_skip_accuracy import PairwiseSkipAccuracy
from skipcl_lightning.metrics.prediction_accuracy import (
    FirstPredictionAccuracy,
    MeanAverageAccuracy,
    SkipAccuracyByPlace,
)
from skipcl_lightning.metrics.prediction_calibration import SkipBrierScore, SkipCalibrationError
from skipcl_lightning.metrics.session_metrics import RankingMetrics, SkipRankMetrics, session_metrics
from skipcl_lightning.metrics.skip_prediction_metrics import SkipAUC, skip_prediction_metrics
from skipcl_lightning.metrics.skip_rank_percentile import SkipRankPercentile
from skipcl_lightning.metrics.target_count import TargetCount
from skipcl_lightning.metrics.top_k import MAP, MRR, NDCG, HitRate, SkipHitRate, SkipMRR

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
