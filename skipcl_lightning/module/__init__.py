"""Training: the one LightningModule, and what it needs for checkpoints, new items and optimizers."""

from skipcl_lightning.module.resuming import WholeCheckpointIO
from skipcl_lightning.module.skipcl_module import SkipCLModule, TrainingStates

__all__ = ["SkipCLModule", "TrainingStates", "WholeCheckpointIO"]
