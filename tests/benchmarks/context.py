"""What the context of a play adds to a backbone that sees items and feedback, on logs with times.

python tests/benchmarks/context.py FOLDER      # a folder with LOGS, about 10 minutes on one core

For each log, input and seed, trains SASRec with and without the input and evaluates validation and test.
Prints Markdown: the metrics of the plain model, then the mean paired difference with its 95 % interval over
the seeds, and the least and greatest bound of the seeds' 95 % intervals over sessions (`compare`).
"""

import logging
import statistics
from pathlib import Path

import polars as pl
import torch
from jsonargparse import auto_cli
from lightning.pytorch import seed_everything

from skipcl_lightning import SkipCLModule, evaluate
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule, read_30music, read_streaming_history
from skipcl_lightning.evaluation import EvaluationReport, compare
from skipcl_lightning.evaluation.statistics import student_margin
from skipcl_lightning.study.runs import quiet_lightning, train

METRICS = ("hit_rate@10", "ndcg@10")
SPLITS = ("validation", "test")
TIMES: dict[str, tuple[str, ...]] = {
    "gap": ("gap",),
    "hour, weekday": ("hour", "weekday"),
    "place": ("place",),
    "all of these": ("gap", "hour", "weekday", "place"),
}
# The smallest count of an item, the epochs and the inputs of each log.
LOGS: dict[str, tuple[int, int, dict[str, tuple[str, ...]]]] = {
    "30music": (5, 10, TIMES),
    "streaming_history": (2, 15, {**TIMES, "shuffle": ("shuffle",)}),
    # Without times.
    "listening_sessions": (10, 8, {"place": ("place",)}),
}
MAX_LENGTH = 50
# Of `listening_sessions`.
SESSIONS = 6000


def benchmark(folder: Path, logs: tuple[str, ...] = tuple(LOGS), seeds: int = 3) -> None:
    """Print the tables.

    Args:
        folder: The folder of the logs.
        logs: Names of `LOGS`.
        seeds: Seeds, at least 2.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {seeds} seeds")
    for name in logs:
        min_count, epochs, inputs = LOGS[name]
        log = read(folder / name, name)
        runs = {
            variant: [run(log, context, seed, min_count, epochs) for seed in range(seeds)]
            for variant, context in {"plain": (), **inputs}.items()
        }
        describe(name, runs)


def read(folder: Path, name: str) -> pl.DataFrame:
    """Return a log with its times."""
    if name == "30music":
        return read_30music(folder).collect()
    if name == "streaming_history":
        return read_streaming_history(folder, skip_rule="fwdbtn", columns=["shuffle"]).collect()
    plays = pl.read_parquet(folder / "sessions.parquet")
    kept = plays.filter(pl.col("session_id").rank("dense") <= SESSIONS)
    return kept.with_columns(feedback=pl.when(pl.col("seconds_played") < 30).then(-1.0).otherwise(1.0))


def run(
    log: pl.DataFrame, context: tuple[str, ...], seed: int, min_count: int, epochs: int
) -> dict[str, EvaluationReport]:
    """Train one model, and return its reports by split."""
    data = SessionDataModule(
        log, context=context, min_item_count=min_count, max_length=MAX_LENGTH, bucket_batches=8, seed=seed
    )
    seed_everything(seed, verbose=False)
    module = SkipCLModule(
        SASRec(64, max_length=MAX_LENGTH, num_layers=1, dropout=0.2),
        num_items=data.num_items,
        context_sizes=data.context_sizes,
        learning_rate=3e-3,
    )
    with quiet_lightning():
        train(module, data, epochs=epochs)
    return {
        split: evaluate(module, data, split=split, top_k=[10], num_resamples=1000, compare_markov=False)
        for split in SPLITS
    }


def describe(name: str, runs: dict[str, list[dict[str, EvaluationReport]]]) -> None:
    """Print the table of a log."""
    heads = [f"{metric}, {split}" for split in SPLITS for metric in METRICS]
    print(f"\n{name}\n\n| input | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}")
    plain = runs["plain"]
    means = [
        f"{statistics.mean(one[split][metric] for one in plain):.4f}"
        for split in SPLITS
        for metric in METRICS
    ]
    print(f"| plain | {' | '.join(means)} |", flush=True)
    for variant, reports in runs.items():
        if variant == "plain":
            continue
        cells = []
        for split in SPLITS:
            tables = [compare(one[split], other[split]) for one, other in zip(plain, reports, strict=True)]
            for metric in METRICS:
                rows = [table.row(by_predicate=pl.col("metric") == metric, named=True) for table in tables]
                differences = [row["difference"] for row in rows]
                margin = float(student_margin(statistics.stdev(differences), len(rows)))
                low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
                cells.append(f"{statistics.mean(differences):+.4f} ± {margin:.4f} [{low:+.4f}, {high:+.4f}]")
        print(f"| {variant} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=True)
