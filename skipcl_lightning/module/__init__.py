"""Training: the one LightningModule, and what it needs for checkpoints, new items and optimizers."""

from skipcl_lightning.module.skipcl_module import SkipCLModule, TrainingStates
from skipcl_lightning.module.training_run import WholeCheckpointIO

__all__ = ["SkipCLModule", "TrainingStates", "WholeCheckpointIO"]
