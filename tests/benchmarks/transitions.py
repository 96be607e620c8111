"""What the training set's transitions add to a model, beside last-item Markov, on a log of sessions.

python tests/benchmarks/transitions.py sessions.parquet               # some minutes a seed on 2 cores

The file has the columns session_id, position, item_id and seconds_played; less than 30 seconds is a skip. The
weight with the best NDCG@10 on the validation set is chosen; the test set is read once, at that weight.
Prints Markdown.
"""

import logging
from pathlib import Path

import polars as pl
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything

from skipcl_lightning import SkipCLModule, evaluate
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule, SplitBySession
from skipcl_lightning.evaluation import EvaluationReport, LastItemMarkov
from skipcl_lightning.heads import SampledSoftmax

METRICS = ("hit_rate@1", "hit_rate@10", "ndcg@10", "skip_hit_rate@10", "last_item_first")


def transitions(
    sessions: Path, seeds: int = 3, epochs: int = 8, weights: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0)
) -> None:
    """Print the test metrics of Markov, and of SASRec without and with transitions.

    Args:
        sessions: The Parquet file.
        seeds: The number of trainings.
        epochs: The epochs of each.
        weights: The weights to choose from.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    skipped = pl.col("seconds_played") < 30
    log = pl.scan_parquet(sessions).select(
        "session_id", "position", "item_id", feedback=pl.when(skipped).then(-1.0).otherwise(1.0)
    )
    data = SessionDataModule(
        log,
        batch_size=128,
        max_length=50,
        min_item_count=10,
        min_session_length=5,
        bucket_batches=32,
        split=SplitBySession(0.05, 0.05, targets="every"),
    )
    print(f"{data.num_items:,} items\n")
    print(f"| model | weight | {' | '.join(METRICS)} |\n|---|---:|{'---:|' * len(METRICS)}")
    for rule in ("next", "next_listened"):
        show(f"Markov, `{rule}`", 0, evaluate(LastItemMarkov(data, rule=rule), data, num_resamples=0))
    for seed in range(seeds):
        seed_everything(seed, verbose=False)
        module = SkipCLModule(
            SASRec(64, max_length=50, num_layers=1, dropout=0.1),
            num_items=data.num_items,
            next_item_loss=SampledSoftmax(1000),
            learning_rate=0.003,
            transition_weight=max(weights),
        )
        trainer = Trainer(
            max_epochs=epochs,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
        found = {}
        for module.transition_weight in weights:
            report = evaluate(module, data, split="validation", num_resamples=0)
            found[module.transition_weight] = report["ndcg@10"]
        for module.transition_weight in (0.0, max(found, key=lambda weight: found[weight])):
            report = evaluate(module, data, num_resamples=0)
            show(f"SASRec, seed {seed}", module.transition_weight, report)


def show(name: str, weight: float, report: EvaluationReport) -> None:
    """Print one row."""
    print(
        f"| {name} | {weight:g} | {' | '.join(f'{report[metric]:.4f}' for metric in METRICS)} |", flush=True
    )


if __name__ == "__main__":
    auto_cli(transitions, as_positional=True)
