"""Sequence models with one signature: ``forward(x [B, L, D], valid_mask [B, L]) -> [B, L, D]``."""

from skipcl_lightning.backbones.sasrec import SASRec

__all__ = ["SASRec"]
