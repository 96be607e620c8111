"""Losses as modules: settings, and a learnable temperature, over the formulas of ``functional``."""

from skipcl_lightning.heads.next_item import FullSoftmax, SampledSoftmax
from skipcl_lightning.heads.skip_info_nce import SkipInfoNCE

__all__ = ["FullSoftmax", "SampledSoftmax", "SkipInfoNCE"]
