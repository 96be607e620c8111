"""Losses as modules: settings, and a learnable temperature, over the formulas of ``functional``."""

from types import MappingProxyType

from skipcl_lightning.heads.next_item import FullSoftmax, SampledSoftmax
from skipcl_lightning.heads.skip_info_nce import SkipInfoNCE

__all__ = ["NEXT_ITEM_LOSSES", "SKIP_HEADS", "FullSoftmax", "SampledSoftmax", "SkipInfoNCE"]

# By name, for YAML and checkpoints only.
NEXT_ITEM_LOSSES = MappingProxyType({"FullSoftmax": FullSoftmax, "SampledSoftmax": SampledSoftmax})
SKIP_HEADS = MappingProxyType({"SkipInfoNCE": SkipInfoNCE})
