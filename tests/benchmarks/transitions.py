"""Models with the training set's transitions, beside simple models, on a log of real sessions.

python tests/benchmarks/transitions.py sessions.parquet                # about 8 minutes a seed on 2 cores

The file has the columns session_id, position, item_id and seconds_played; less than 30 seconds is a skip. The
weight of the transitions is chosen on the validation set, and the test set is read once, at that weight.
Prints Markdown: a row for each model and seed, then the paired differences from last-item Markov, with a 95 %
interval over the seeds and the least and greatest bound of the seeds' intervals over sessions.
"""

import logging
from pathlib import Path

import numpy as np
import polars as pl
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from skipcl_lightning import SkipCLModule, evaluate
from skipcl_lightning.backbones import BERT4Rec, Caser, GRU4Rec, SASRec
from skipcl_lightning.data import SessionDataModule, SplitBySession
from skipcl_lightning.evaluation import (
    EvaluationReport,
    LastItemMarkov,
    SessionKNN,
    choose_transition_weight,
    compare,
)
from skipcl_lightning.evaluation.statistics import student_margin
from skipcl_lightning.heads import SampledSoftmax

METRICS = ("hit_rate@1", "hit_rate@10", "ndcg@10", "skip_hit_rate@10")
COLUMNS = (*METRICS, "last_item_first")
# So that only the transitions and, between equal counts, the model decide.
ALONE = 1e4


def transitions(
    sessions: Path, seeds: int = 5, epochs: int = 8, backbones: tuple[str, ...] = ("SASRec", "GRU4Rec")
) -> None:
    """Print the test metrics of simple models, and of backbones without and with transitions.

    Args:
        sessions: The Parquet file.
        seeds: The number of trainings of each backbone.
        epochs: The epochs of each.
        backbones: Any of `SASRec`, `GRU4Rec`, `Caser` and `BERT4Rec`.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    data = read(sessions)
    print(f"{data.num_items:,} items\n")
    print(f"| model | weight | {' | '.join(COLUMNS)} |\n|---|---:|{'---:|' * len(COLUMNS)}", flush=True)
    markov = evaluate(LastItemMarkov(data), data)
    show("last-item Markov, `next`", 0, markov)
    show("last-item Markov, `next_listened`", 0, evaluate(LastItemMarkov(data, rule="next_listened"), data))
    show("session-KNN", 0, evaluate(SessionKNN(data), data))
    differences: dict[str, list[pl.DataFrame]] = {}
    for name in backbones:
        for seed in range(seeds):
            seed_everything(seed, verbose=False)
            module = train(make_backbone(name), data, epochs)
            choose_transition_weight(module, data)
            chosen = module.transition_weight
            for weight in (0.0, chosen, ALONE):
                module.transition_weight = weight
                report = evaluate(module, data, compare_markov=False)
                show(f"{name}, seed {seed}", weight, report)
                if weight == chosen:
                    differences.setdefault(name, []).append(compare(markov, report))
    print("\n| model | metric | difference from Markov | 95 %, seeds | 95 %, sessions |")
    print("|---|---|---:|---:|---:|")
    for name, tables in differences.items():
        for metric in METRICS:
            rows = pl.concat([table.filter(pl.col("metric") == metric) for table in tables])
            values = rows["difference"].to_numpy()
            mean, low, high = values.mean(), rows["low"].min(), rows["high"].max()
            margin = float(student_margin(float(np.std(values, ddof=1)), seeds)) if seeds > 1 else np.nan
            print(
                f"| {name} | {metric} | {mean:+.4f} | {mean - margin:+.4f} to {mean + margin:+.4f} | "
                f"{low:+.4f} to {high:+.4f} |"
            )


def read(sessions: Path) -> SessionDataModule:
    """Return the log of real sessions; less than 30 seconds played is a skip."""
    skipped = pl.col("seconds_played") < 30
    log = pl.scan_parquet(sessions).select(
        "session_id", "position", "item_id", feedback=pl.when(skipped).then(-1.0).otherwise(1.0)
    )
    return split_every(log)


def split_every(log: pl.LazyFrame) -> SessionDataModule:
    """Return sessions of 5 or more plays, items of 10 or more; every item of a test session is a target."""
    return SessionDataModule(
        log,
        batch_size=128,
        max_length=50,
        min_item_count=10,
        min_session_length=5,
        bucket_batches=32,
        split=SplitBySession(0.05, 0.05, targets="every"),
    )


def make_backbone(name: str) -> nn.Module:
    """Return a backbone of D 64."""
    attention = {"max_length": 50, "num_layers": 1, "dropout": 0.1}
    match name:
        case "SASRec":
            return SASRec(64, **attention)
        case "GRU4Rec":
            return GRU4Rec(64)
        case "Caser":
            return Caser(64)
        case "BERT4Rec":
            return BERT4Rec(64, **attention)
    raise ValueError(f"`backbones` must be SASRec, GRU4Rec, Caser or BERT4Rec, got {name!r}.")


def train(backbone: nn.Module, data: SessionDataModule, epochs: int) -> SkipCLModule:
    """Return a module that is trained on the data."""
    module = SkipCLModule(
        backbone,
        num_items=data.num_items,
        next_item_loss=SampledSoftmax(1000),
        learning_rate=0.003,
        transition_weight=4.0,
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=epochs, limit_val_batches=0, enable_model_summary=False, **quiet)
    trainer.fit(module, data)
    return module


def show(name: str, weight: float, report: EvaluationReport) -> None:
    """Print one row."""
    values = " | ".join(f"{report[metric]:.4f}" for metric in COLUMNS)
    print(f"| {name} | {weight:g} | {values} |", flush=True)


if __name__ == "__main__":
    auto_cli(transitions, as_positional=True)
