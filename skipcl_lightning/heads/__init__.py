"""Losses as modules: settings, and a learnable temperature, over the formulas of `functional`."""

from types import MappingProxyType

from skipcl_lightning.heads.next_item import GBCE, BPRMax, FullSoftmax, SampledSoftmax
from skipcl_lightning.heads.opposing_sequences import OpposingSequences
from skipcl_lightning.heads.score_heads import SkipMargin, SkipSoftmax, SkipUnlikelihood
from skipcl_lightning.heads.session_head import CombinedHead, SessionHead, WeightedHead
from skipcl_lightning.heads.skip_info_nce import SkipInfoNCE
from skipcl_lightning.heads.skip_prediction import SkipPrediction

__all__ = [
    "GBCE",
    "NEXT_ITEM_LOSSES",
    "SKIP_HEADS",
    "BPRMax",
    "CombinedHead",
    "FullSoftmax",
    "OpposingSequences",
    "SampledSoftmax",
    "SessionHead",
    "SkipInfoNCE",
    "SkipMargin",
    "SkipPrediction",
    "SkipSoftmax",
    "SkipUnlikelihood",
    "WeightedHead",
]

# By name, for YAML and checkpoints only.
NEXT_ITEM_LOSSES = MappingProxyType(
    {loss.__name__: loss for loss in (FullSoftmax, SampledSoftmax, GBCE, BPRMax)}
)
SKIP_HEADS = MappingProxyType(
    {
        head.__name__: head
        for head in (
            SkipInfoNCE,
            SkipUnlikelihood,
            SkipSoftmax,
            SkipMargin,
            SkipPrediction,
            OpposingSequences,
            CombinedHead,
        )
    }
)
