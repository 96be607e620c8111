"""A trained module and its checkpoint, which the tests of reliability damage."""

import os

import torch
from small_models import quiet_trainer

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import SkipInfoNCE


def make_data():
    return SessionDataModule(simulate_sessions(60, num_items=30, num_moods=3), batch_size=30, max_length=10)


def make_module(data, **settings):
    backbone = SASRec(8, max_length=10, num_layers=1, num_heads=1)
    return SkipCLModule(backbone, SkipInfoNCE(weight=0.1), num_items=data.num_items, **settings)


def fill_disk(folder, room=0):
    """Leave room for some bytes on the disk of a folder, in blocks of 4,096."""
    (folder / "filler").unlink(missing_ok=True)
    disk = os.statvfs(folder)
    with (folder / "filler").open("wb") as stream:
        stream.write(bytes(disk.f_bavail * disk.f_frsize - room))


def train(path):
    """Train, and write a checkpoint."""
    torch.manual_seed(0)
    data = make_data()
    module = make_module(data)
    trainer = quiet_trainer(limit_val_batches=0)
    trainer.fit(module, data)
    trainer.save_checkpoint(path)
    return module, data
