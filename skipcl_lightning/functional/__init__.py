"""Pure tensor functions: the formulas, without state, and without any knowledge of Lightning."""

from skipcl_lightning.batch import (
    last_position,
    next_item_targets,
    next_listened,
    target_positions,
)
from skipcl_lightning.functional.backbone_input import (
    append_mask_token,
    cloze_positives,
    draw_cloze_mask,
    hide_masked,
)
from skipcl_lightning.functional.next_item.bpr_max import bpr_max_loss, chunked_bpr_max_loss
from skipcl_lightning.functional.next_item.full_softmax import chunked_softmax_loss, full_softmax_loss
from skipcl_lightning.functional.next_item.gbce import chunked_gbce_loss, gbce_loss
from skipcl_lightning.functional.next_item.sampled_softmax import (
    chunked_sampled_softmax_loss,
    sample_items,
    sampled_softmax_loss,
    sampling_log_probability,
)
from skipcl_lightning.functional.predictions import (
    CalibrationBins,
    SessionAccuracy,
    brier_score,
    calibration_bins,
    calibration_error,
    correct_predictions,
    fit_temperature,
    session_accuracy,
)
from skipcl_lightning.functional.ranking.diversity import (
    alignment,
    catalogue_coverage,
    count_recommendations,
    effective_rank,
    mean_self_information,
    self_information,
    uniformity,
)
from skipcl_lightning.functional.ranking.metrics import (
    RankedBatch,
    average_precision,
    candidate_ranks,
    hit_rate,
    mrr,
    ndcg,
    pairwise_wins,
    rank_batch,
    rank_percentile,
    rank_scored_batch,
    sample_candidates,
    skip_pair_mask,
    skip_pair_scores,
)
from skipcl_lightning.functional.ranking.ranks import score_ranks, target_ranks
from skipcl_lightning.functional.ranking.sparse_scores import SparseScores, look_up_scores
from skipcl_lightning.functional.ranking.top_k import top_k_items
from skipcl_lightning.functional.skip_losses.contrast import (
    Candidates,
    Contrast,
    ContrastSettings,
    rejected_candidates,
    session_contrast,
    skip_info_nce,
)
from skipcl_lightning.functional.skip_losses.opposing import (
    RejectedSequence,
    opposing_contrast,
    rejected_sequence,
)
from skipcl_lightning.functional.skip_losses.score_losses import skip_margin, skip_softmax, skip_unlikelihood
from skipcl_lightning.functional.skip_losses.skip_prediction import (
    PredictionTargets,
    prediction_targets,
    skip_prediction_loss,
)

__all__ = [
    "CalibrationBins",
    "Candidates",
    "Contrast",
    "ContrastSettings",
    "PredictionTargets",
    "RankedBatch",
    "RejectedSequence",
    "SessionAccuracy",
    "SparseScores",
    "alignment",
    "append_mask_token",
    "average_precision",
    "bpr_max_loss",
    "brier_score",
    "calibration_bins",
    "calibration_error",
    "candidate_ranks",
    "catalogue_coverage",
    "chunked_bpr_max_loss",
    "chunked_gbce_loss",
    "chunked_sampled_softmax_loss",
    "chunked_softmax_loss",
    "cloze_positives",
    "correct_predictions",
    "count_recommendations",
    "draw_cloze_mask",
    "effective_rank",
    "fit_temperature",
    "full_softmax_loss",
    "gbce_loss",
    "hide_masked",
    "hit_rate",
    "last_position",
    "look_up_scores",
    "mean_self_information",
    "mrr",
    "ndcg",
    "next_item_targets",
    "next_listened",
    "opposing_contrast",
    "pairwise_wins",
    "prediction_targets",
    "rank_batch",
    "rank_percentile",
    "rank_scored_batch",
    "rejected_candidates",
    "rejected_sequence",
    "sample_candidates",
    "sample_items",
    "sampled_softmax_loss",
    "sampling_log_probability",
    "score_ranks",
    "self_information",
    "session_accuracy",
    "session_contrast",
    "skip_info_nce",
    "skip_margin",
    "skip_pair_mask",
    "skip_pair_scores",
    "skip_prediction_loss",
    "skip_softmax",
    "skip_unlikelihood",
    "target_positions",
    "target_ranks",
    "top_k_items",
    "uniformity",
]
