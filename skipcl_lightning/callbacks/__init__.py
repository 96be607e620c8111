"""Callbacks that log or steer a run of `SkipCLModule` or of any `WatchedModule`."""

from skipcl_lightning.callbacks.checkpoints import BestCheckpoint, CheckpointArtifact
from skipcl_lightning.callbacks.diagnostics import EmbeddingDiagnostics, ListDiagnostics
from skipcl_lightning.callbacks.protocol import SessionData, WatchedModule
from skipcl_lightning.callbacks.rank_plot import RankPlot
from skipcl_lightning.callbacks.recommendation_table import RecommendationTable
from skipcl_lightning.callbacks.run_facts import RunFacts
from skipcl_lightning.callbacks.skip_loss_warmup import SkipLossWarmup
from skipcl_lightning.callbacks.skip_trade_off_table import SkipTradeOffTable
from skipcl_lightning.callbacks.training_signals import TrainingSignals
from skipcl_lightning.callbacks.transition_weight import ChooseTransitionWeight

__all__ = [
    "BestCheckpoint",
    "CheckpointArtifact",
    "ChooseTransitionWeight",
    "EmbeddingDiagnostics",
    "ListDiagnostics",
    "RankPlot",
    "RecommendationTable",
    "RunFacts",
    "SessionData",
    "SkipLossWarmup",
    "SkipTradeOffTable",
    "TrainingSignals",
    "WatchedModule",
]
