"""Evaluation that a reviewer can trust: reports with intervals, baselines, and comparisons."""

from skipcl_lightning.evaluation.baselines import (
    BPR,
    WRMF,
    ItemAndLastSkipRate,
    ItemSkipRate,
    LastItemMarkov,
    LastSkipRate,
    Popularity,
    SessionKNN,
    SessionPopularity,
)
from skipcl_lightning.evaluation.compare import compare
from skipcl_lightning.evaluation.evaluate import evaluate
from skipcl_lightning.evaluation.plots import save_rank_plot, save_segment_plot
from skipcl_lightning.evaluation.report import EvaluationReport
from skipcl_lightning.evaluation.skip_prediction import (
    SkipPredictor,
    calibrate_skip_prediction,
    compare_skip_predictions,
)
from skipcl_lightning.evaluation.skip_trade_off import SkipTradeOff, skip_trade_off
from skipcl_lightning.evaluation.target_rows import Baseline, QueryModel
from skipcl_lightning.evaluation.transition_weight import choose_transition_weight

__all__ = [
    "BPR",
    "WRMF",
    "Baseline",
    "EvaluationReport",
    "ItemAndLastSkipRate",
    "ItemSkipRate",
    "LastItemMarkov",
    "LastSkipRate",
    "Popularity",
    "QueryModel",
    "SessionKNN",
    "SessionPopularity",
    "SkipPredictor",
    "SkipTradeOff",
    "calibrate_skip_prediction",
    "choose_transition_weight",
    "compare",
    "compare_skip_predictions",
    "evaluate",
    "save_rank_plot",
    "save_segment_plot",
    "skip_trade_off",
]
