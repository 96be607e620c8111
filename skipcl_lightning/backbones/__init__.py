"""Sequence models with one signature: `forward(x [B, L, D], valid_mask [B, L]) -> [B, L, D]`."""

from types import MappingProxyType

from skipcl_lightning.backbones.bert4rec import BERT4Rec
from skipcl_lightning.backbones.caser import Caser
from skipcl_lightning.backbones.contract import check_backbone, clean_input, is_causal
from skipcl_lightning.backbones.esasrec import ESASRec
from skipcl_lightning.backbones.gru4rec import GRU4Rec
from skipcl_lightning.backbones.hugging_face import HFBackbone
from skipcl_lightning.backbones.nextitnet import NextItNet
from skipcl_lightning.backbones.sasrec import SASRec

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
