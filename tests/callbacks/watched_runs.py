"""Small watched runs, and what their loggers hold, that several tests of the callbacks share."""

import csv
import math
import struct
import time

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from torch import nn

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.callbacks import (
    CheckpointArtifact,
    EmbeddingDiagnostics,
    RankPlot,
    RecommendationTable,
    RunFacts,
    TrainingSignals,
)
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import SkipInfoNCE


def small_data(sessions=40, **settings):
    log = simulate_sessions(sessions, num_items=30, num_moods=3)
    return SessionDataModule(log, **{"batch_size": 16, "max_length": 10, **settings})


def small_module(data, head=None, **settings):
    seed_everything(0, verbose=False)
    head = SkipInfoNCE(weight=0.3, learn_temperature=True) if head is None else head
    return SkipCLModule(
        SASRec(8, max_length=10),
        head,
        **{"num_items": data.num_items, "embedding_size": 8, "learning_rate": 0.01, **settings},
    )


def all_callbacks(folder):
    return [
        LearningRateMonitor("step"),
        TrainingSignals(),
        RunFacts(),
        EmbeddingDiagnostics(num_items=20),
        RecommendationTable(num_sessions=3, top_k=4),
        RankPlot(top_k=5),
        CheckpointArtifact(),
        ModelCheckpoint(dirpath=folder / "checkpoints", monitor="val/ndcg@20", mode="max"),
    ]


def watched_trainer(callbacks, *, logger=False, **settings):
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "logger": logger,
            "callbacks": callbacks,
            "enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            **settings,
        }
    )


class OwnModule(LightningModule):
    """A module of another make, which meets the protocol and no more."""

    def __init__(self, num_items, size=8):
        super().__init__()
        self.table = nn.Embedding(num_items + 1, size)

    @property
    def item_table(self):
        return self.table.weight

    def session_query(self, batch):
        mask = batch.valid_mask[..., None]
        return (self.table(batch.items) * mask).sum(dim=1) / mask.sum(dim=1)

    def training_step(self, batch, batch_idx):
        query = self.session_query(batch)
        loss = nn.functional.cross_entropy(query @ self.item_table.T, batch.items[:, 0])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def read_csv_metrics(folder):
    """The rows of a CSVLogger, without the cells that are empty."""
    (path,) = folder.rglob("metrics.csv")
    with path.open(encoding="utf-8", newline="") as stream:
        return [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(stream)]


def read_wandb_records(path, patience=60):
    """The records of an offline run's file, once it is whole: `finish` returns before all is written."""
    end = time.monotonic() + patience
    while True:
        records = parse_wandb_records(path.read_bytes())
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < end, f"{path} is not whole after {patience} s"
        time.sleep(0.1)


def parse_wandb_records(content):
    """Records as far as they go, in the format of LevelDB's log.

    It has blocks of 32 KiB with chunks of a checksum, a length and a type (1 whole, 2 first, 3 middle, 4
    last), after a header of 7 bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    place, parts, records = 7, b"", []
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if place > len(content):
            break
        if kind in (1, 4):
            records.append(Record.FromString(parts))
            parts = b""
    return records


def wandb_runs(folder):
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))


def same_scalar(left, right):
    return math.isclose(left, right, rel_tol=1e-6) or (math.isnan(left) and math.isnan(right))
