"""Pure tensor functions: the formulas, without state, and without any knowledge of Lightning."""

from skipcl_lightning.functional.positions import last_position, next_item_targets, next_listened
from skipcl_lightning.functional.ranks import score_ranks, target_ranks
from skipcl_lightning.functional.skip_info_nce import skip_info_nce
from skipcl_lightning.functional.softmax import (
    full_softmax_loss,
    sample_items,
    sampled_softmax_loss,
    sampling_log_probability,
)

__all__ = [
    "full_softmax_loss",
    "last_position",
    "next_item_targets",
    "next_listened",
    "sample_items",
    "sampled_softmax_loss",
    "sampling_log_probability",
    "score_ranks",
    "skip_info_nce",
    "target_ranks",
]
