"""Whether an hour of training, with an evaluation every two minutes, keeps its memory, handles and threads.

OMP_NUM_THREADS=1 python tests/benchmarks/soak.py
python tests/benchmarks/soak.py --minutes 2 --evaluate_every 10 --sample_every 1

SASRec with a skip head and a memory bank on simulated sessions. Each evaluation is a validation, a
checkpoint, an `evaluate` of the test set and a `Recommender`. Prints a row for each twelfth of the run, and
the growth per hour after a warm-up of a quarter of it. Ends with an error if the 95 % interval of a growth is
above its bound.
"""

import gc
import sys
import tempfile
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from jsonargparse import auto_cli
from lightning.pytorch.loggers import CSVLogger
from memory import memory_mebibytes
from scipy.stats import theilslopes

from skipcl_lightning import Recommender, SkipCLModule, evaluate
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.callbacks import BestCheckpoint
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import SkipInfoNCE

# What an hour may add. An allocator moves by some MiB; a file or thread leaked by each evaluation is more.
BOUNDS = {"resident MiB": 8.0, "handles": 1.0, "threads": 1.0, "objects": 3000.0}


class Watch(pl.Callback):
    """Samples the process, and does what a user does after each validation."""

    def __init__(self, data: SessionDataModule, sample_every: float) -> None:
        self.data = data
        self.sample_every = sample_every
        self.start = self.last = time.monotonic()
        self.rows: list[tuple[float, ...]] = []
        self.evaluations = 0

    def sample(self) -> None:
        """Add a row: seconds, and the values of `BOUNDS`."""
        gc.collect()
        self.last = time.monotonic()
        process = Path("/proc/self")
        counts = [sum(1 for _ in (process / kind).iterdir()) for kind in ("fd", "task")]
        self.rows.append((self.last - self.start, memory_mebibytes("VmRSS"), *counts, len(gc.get_objects())))

    def on_train_batch_end(self, *_: Any) -> None:
        """Sample if it is time."""
        if time.monotonic() - self.last >= self.sample_every:
            self.sample()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the test set, and recommend."""
        if trainer.sanity_checking:
            return
        self.evaluations += 1
        evaluate(pl_module, self.data, num_resamples=20, compare_markov=False)
        Recommender(pl_module).recommend([self.data.encoder.vocabulary.to_series()[:5].to_list()])
        pl_module.train()


def soak(minutes: float = 60, evaluate_every: float = 120, sample_every: float = 10) -> None:
    """Train, sample, print, and fail on growth.

    Args:
        minutes: How long to train.
        evaluate_every: Seconds between evaluations.
        sample_every: Seconds between samples.
    """
    warnings.filterwarnings("ignore", "The first recommendation is the item")  # once an evaluation
    pl.seed_everything(0, verbose=False)
    data = SessionDataModule(simulate_sessions(2000, num_items=500), batch_size=128, max_length=20)
    backbone = SASRec(32, max_length=20)
    module = SkipCLModule(backbone, SkipInfoNCE(bank_size=256), num_items=data.num_items)
    watch = Watch(data, sample_every)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=-1,
            max_time=timedelta(minutes=minutes),
            val_check_interval=timedelta(seconds=evaluate_every),
            logger=CSVLogger(folder),
            callbacks=[BestCheckpoint(monitor="val/ndcg@10", mode="max", save_last=True), watch],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
    report(np.array(watch.rows), watch.evaluations, trainer.global_step)


def report(rows: np.ndarray, evaluations: int, steps: int) -> None:
    """Print the samples and their growth, and exit with 1 if one is above its bound."""
    print("|minutes|" + "|".join(BOUNDS) + "|\n|" + "---:|" * (1 + len(BOUNDS)))
    for part in np.array_split(rows, 12):
        minute, *values = np.median(part, axis=0)
        print(f"|{minute / 60:.1f}|{values[0]:.1f}|" + "|".join(f"{value:.0f}" for value in values[1:]) + "|")
    late = rows[rows[:, 0] > rows[-1, 0] / 4]
    print(f"{steps:,} steps, {evaluations} evaluations, {len(rows)} samples")
    print("Growth per hour after the warm-up, with a 95 % interval:")
    grown = []
    for column, (name, bound) in enumerate(BOUNDS.items(), start=1):
        line = theilslopes(late[:, column], late[:, 0])
        slope, low, high = (3600 * line[number] for number in (0, 2, 3))
        print(f"  {name}: {slope:.2f} [{low:.2f}, {high:.2f}], at most {bound:.0f}")
        grown += [name] if low > bound else []
    if grown:
        sys.exit(f"Grew beyond noise: {', '.join(grown)}.")


if __name__ == "__main__":
    auto_cli(soak, as_positional=False)
