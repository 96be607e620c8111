"""The data and the model that the tests of evaluation share."""

import torch

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule, simulate_sessions

SIZE = 8


def make_data():
    log = simulate_sessions(150, num_items=40, num_moods=4, min_length=4)
    return SessionDataModule(log, batch_size=32, max_length=6)


def module(data, backbone=None, **settings):
    torch.manual_seed(0)
    backbone = SASRec(SIZE, max_length=6) if backbone is None else backbone
    return SkipCLModule(backbone, None, num_items=data.num_items, embedding_size=SIZE, **settings)
