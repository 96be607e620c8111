"""Small models and sessions that several tests of the module share."""

import torch
from lightning.pytorch import Trainer

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import BERT4Rec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.heads import CombinedHead, OpposingSequences, SkipInfoNCE, SkipPrediction, SkipSoftmax

NUM_ITEMS = 9
MASK = NUM_ITEMS + 1
# Those that do nothing with the item table but look rows up.
ROW_HEADS = {
    "none": lambda: None,
    "contrast": SkipInfoNCE,
    "bank": lambda: SkipInfoNCE(bank_size=4, negatives="batch"),
    "softmax": lambda: SkipSoftmax(num_samples=3),
    "prediction": SkipPrediction,
    "opposing": lambda: OpposingSequences(8),
    "two": lambda: CombinedHead([SkipInfoNCE(bank_size=4), SkipInfoNCE(negatives="batch")]),
}


def module(backbone=None, head=None, **settings):
    torch.manual_seed(0)
    backbone = BERT4Rec(8, max_length=6, dropout=0.0) if backbone is None else backbone
    return SkipCLModule(backbone, head, **{"num_items": NUM_ITEMS, "embedding_size": 8, **settings})


def batch():
    items = torch.tensor([[5, 3, 4, 7, 5], [2, 1, 6, 0, 0]])
    feedback = torch.tensor([[1.0, -0.5, 0.5, 1.0, 0.2], [-1.0, 1.0, 0.2, 0.0, 0.0]])
    return SessionBatch(
        items, feedback, target=torch.tensor([9, 8]), target_feedback=torch.tensor([1.0, -1.0])
    )


def quiet_trainer(**settings):
    return Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **settings,
        }
    )
