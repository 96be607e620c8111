"""Skip-aware contrastive session recommendation as a plug-in for PyTorch Lightning."""

from skipcl_lightning.module import SkipCLModule
from skipcl_lightning.recommender import Recommender

__all__ = ["Recommender", "SkipCLModule"]
