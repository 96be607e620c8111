"""What the processes of the distributed tests run; in a file of its own, since they import it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import torch
from lightning.pytorch import Trainer, seed_everything

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import BERT4Rec, SASRec
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import CombinedHead, SkipInfoNCE, SkipPrediction

sys.path += [str(Path(__file__).parent / room) for room in ("heads", "metrics", "reliability")]
import metric_processes
import prediction_processes
import resumed_runs
from rank_processes import compute


def build(backbone, sessions):
    seed_everything(0, verbose=False)
    # Three listeners, whose sessions follow each other.
    number = pl.col("session_id").rank("dense").cast(pl.Int64)
    log = simulate_sessions(sessions, num_items=30, num_moods=3).with_columns(
        user_id=number % 3, timestamp=number * 1000 + pl.col("position")
    )
    context = ["gap", "place", "item_mood"]
    data = SessionDataModule(log, batch_size=3, max_length=20, history_length=4, context=context)
    head = CombinedHead([SkipInfoNCE(weight=0.3, learn_temperature=True), SkipPrediction()])
    backbone = {"SASRec": SASRec, "BERT4Rec": BERT4Rec}[backbone](8, max_length=20)
    settings = {"num_items": data.num_items, "context_sizes": data.context_sizes}
    return data, SkipCLModule(backbone, head, embedding_size=8, **settings)


def train_and_test(backbone, devices, sessions, folder):
    """Train an epoch and test, on so many processes; rank 0 writes what was logged."""
    early = build(backbone, sessions)[0].test_dataloader()  # before there are processes
    data, module = build(backbone, sessions)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    untrained = trainer.test(module, data, verbose=False)[0]
    assert trainer.test(module, early, verbose=False)[0] == untrained
    trainer.fit(module, data)
    if trainer.is_global_zero:
        loss = float(trainer.callback_metrics["train/loss"])
        (Path(folder) / f"module_{devices}.json").write_text(json.dumps([untrained, loss]), encoding="utf-8")
    if torch.distributed.is_initialized():
        # A process that ends with gloo's threads still running is aborted now and then, under load.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def run_in_two_processes(backbone, folder):
    """Run this script, which starts its second process itself."""
    run = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, __file__, backbone, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr


if __name__ == "__main__":
    backbone, folder = sys.argv[1:]
    train_and_test(backbone, 2, 9, folder)
    # Lightning starts the second process as this script.
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    compute(rank, 2, folder)
    metric_processes.evaluate_shard(rank, 2, folder)
    prediction_processes.evaluate_shard(rank, folder)
    resumed_runs.resume_in_processes(2, folder)
