"""Sequence models with one signature: ``forward(x [B, L, D], valid_mask [B, L]) -> [B, L, D]``."""

from types import MappingProxyType

from skipcl_lightning.backbones.contract import check_backbone
from skipcl_lightning.backbones.sasrec import SASRec

__all__ = ["BACKBONES", "SASRec", "check_backbone"]

# By name, for YAML and checkpoints only.
BACKBONES = MappingProxyType({"SASRec": SASRec})
