"""Sequence models with one signature: `forward(x [B, L, D], valid_mask [B, L]) -> [B, L, D]`."""

from types import MappingProxyType

from skipcl_lightning._checks import clean_input
from skipcl_lightning.backbones.caser import Caser
from skipcl_lightning.backbones.contract import check_backbone, is_causal
from skipcl_lightning.backbones.gru4rec import GRU4Rec
from skipcl_lightning.backbones.hugging_face import HFBackbone
from skipcl_lightning.backbones.nextitnet import NextItNet
from skipcl_lightning.backbones.transformer import BERT4Rec, ESASRec, SASRec

__all__ = [
    "BACKBONES",
    "BERT4Rec",
    "Caser",
    "ESASRec",
    "GRU4Rec",
    "HFBackbone",
    "NextItNet",
    "SASRec",
    "check_backbone",
    "clean_input",
    "is_causal",
]

# By name, for YAML and checkpoints only.
BACKBONES = MappingProxyType(
    {
        backbone.__name__: backbone
        for backbone in (BERT4Rec, Caser, ESASRec, GRU4Rec, HFBackbone, NextItNet, SASRec)
    }
)
