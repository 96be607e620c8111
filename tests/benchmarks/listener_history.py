"""Models with and without the listener's history in front of the session, on 30Music.

python tests/benchmarks/listener_history.py quality sessions.parquet   # 15 minutes on a core
python tests/benchmarks/listener_history.py speed

`quality` takes a file with the columns user_id, session_id, item_id, timestamp and play_ratio; a play of
less than half of a track is a skip. Each model is trained with each seed without and with a history. The
best epoch on the validation set, with transitions, is tested with and without them. Prints Markdown: a
row for each test, then the paired differences, of all targets and of those whose listener has a history,
with a 95 % interval over the seeds and the least and greatest bound of the seeds' intervals over
sessions. `speed` prints the time of a training step without and with full histories.
"""

import logging
import statistics
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from skipcl_lightning import SessionBatch, SkipCLModule, evaluate
from skipcl_lightning.backbones import GRU4Rec, SASRec
from skipcl_lightning.callbacks import BestCheckpoint
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.evaluation import EvaluationReport, LastItemMarkov, compare
from skipcl_lightning.evaluation.statistics import student_margin

METRICS = ("hit_rate@1", "hit_rate@10", "hit_rate@20", "ndcg@10")
SESSION = 30
HISTORY = 20
TRANSITIONS = 4.0


def quality(
    sessions: Path, seeds: int = 3, epochs: int = 15, backbones: tuple[str, ...] = ("SASRec",)
) -> None:
    """Print the test metrics of each model without and with histories, and their differences.

    Args:
        sessions: The Parquet file.
        seeds: The number of trainings of each model.
        epochs: The epochs of each.
        backbones: Any of `SASRec` and `GRU4Rec`.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="The first recommendation is the item that just played")
    data = {length: read(sessions, length) for length in (0, HISTORY)}
    known = known_listeners(data[HISTORY])
    print(f"{data[0].drop_report}\n{len(known):,} targets with a history\n")
    print(f"| model | history | {' | '.join(METRICS)} |\n|---|---:|{'---:|' * len(METRICS)}", flush=True)
    show("last-item Markov", 0, evaluate(LastItemMarkov(data[0]), data[0]))
    differences: dict[tuple[str, str], list[pl.DataFrame]] = {}
    for name in backbones:
        for seed in range(seeds):
            reports: dict[str, list[EvaluationReport]] = {}
            for length, one in data.items():
                seed_everything(seed, verbose=False)
                module = train(name, one, epochs)
                for weight, title in ((0.0, name), (TRANSITIONS, f"{name}, transitions")):
                    module.transition_weight = weight
                    report = evaluate(module, one, compare_markov=False)
                    reports.setdefault(title, []).append(report)
                    show(f"{title}, seed {seed}", length, report)
            for title, both in reports.items():
                differences.setdefault((title, "all"), []).append(compare(*both))
                some = [keep(report, known) for report in both]
                differences.setdefault((title, "with a history"), []).append(compare(*some))
    print("\n| model | targets | metric | without | difference | 95 %, seeds | 95 %, sessions |")
    print("|---|---|---|---:|---:|---:|---:|")
    for (name, part), tables in differences.items():
        for metric in METRICS:
            rows = pl.concat([table.filter(pl.col("metric") == metric) for table in tables])
            values = rows["difference"].to_numpy()
            margin = float(student_margin(float(np.std(values, ddof=1)), seeds)) if seeds > 1 else np.nan
            mean = values.mean()
            print(
                f"| {name} | {part} | {metric} | {rows['before'].mean():.4f} | {mean:+.4f} | "
                f"{mean - margin:+.4f} to {mean + margin:+.4f} | "
                f"{rows['low'].min():+.4f} to {rows['high'].max():+.4f} |"
            )


def read(sessions: Path, history_length: int) -> SessionDataModule:
    """Return sessions of 3 or more plays of items with 3 or more; the last two of each are held out."""
    skipped = pl.col("play_ratio") < 0.5
    log = pl.scan_parquet(sessions).select(
        "session_id", "user_id", "item_id", "timestamp", feedback=pl.when(skipped).then(-1.0).otherwise(1.0)
    )
    return SessionDataModule(
        log,
        batch_size=128,
        max_length=SESSION,
        min_item_count=3,
        bucket_batches=8,
        history_length=history_length,
    )


def known_listeners(data: SessionDataModule) -> pl.Series:
    """Return the ids of the sessions whose listener has a history at test."""
    rows = [batch.session_index[(batch.history > 0).any(dim=1)] for batch in data.test_dataloader()]
    return data.session_ids.gather(torch.cat(rows).numpy())


def keep(report: EvaluationReport, session_ids: pl.Series) -> EvaluationReport:
    """Return the report of some sessions."""
    rows = report.sessions.filter(pl.col("session_id").is_in(session_ids.implode()))
    return replace(report, sessions=rows)


def make_backbone(name: str) -> nn.Module:
    """Return a backbone of D 64 with room for session and history."""
    if name == "SASRec":
        return SASRec(64, max_length=SESSION + HISTORY, num_layers=1, dropout=0.3)
    return GRU4Rec(64, embedding_dropout=0.3)


def train(name: str, data: SessionDataModule, epochs: int) -> SkipCLModule:
    """Return the module of the best epoch on the validation set."""
    module = SkipCLModule(
        make_backbone(name), num_items=data.num_items, learning_rate=0.003, transition_weight=TRANSITIONS
    )
    with tempfile.TemporaryDirectory() as folder:
        best = BestCheckpoint(folder, monitor="val/ndcg@10", mode="max")
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[best],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
        return SkipCLModule.load_from_checkpoint(best.best_model_path, weights_only=True)


def show(name: str, length: int, report: EvaluationReport) -> None:
    """Print one row."""
    values = " | ".join(f"{report[metric]:.4f}" for metric in METRICS)
    print(f"| {name} | {length} | {values} |", flush=True)


def speed(rounds: int = 15, num_items: int = 6778) -> None:
    """Print the median processor time of a step on 128 sessions of 30 tracks, without and with 20 before.

    Args:
        rounds: The number of interleaved rounds.
        num_items: V.
    """
    print("| backbone | without, ms | with, ms | ratio, least to greatest |\n|---|---:|---:|---:|")
    for name in ("SASRec", "GRU4Rec"):
        torch.manual_seed(0)
        items = torch.randint(1, num_items + 1, (128, SESSION + HISTORY))
        plain = SessionBatch(items[:, HISTORY:].contiguous(), torch.ones(128, SESSION))
        batches = {0: plain, HISTORY: plain.replace(history=items[:, :HISTORY].contiguous())}
        module = SkipCLModule(make_backbone(name), num_items=num_items)
        module.model.use_history()
        times: dict[int, list[float]] = {0: [], HISTORY: []}
        for number in range(rounds + 2):
            for length, batch in batches.items():
                start = time.process_time()
                module.losses(module.part_losses(batch))["loss"].backward()
                if number >= 2:
                    times[length].append(time.process_time() - start)
                module.zero_grad()
        without, within = (1000 * statistics.median(times[length]) for length in (0, HISTORY))
        ratios = [more / less for less, more in zip(times[0], times[HISTORY], strict=True)]
        print(
            f"| {name} | {without:.0f} | {within:.0f} | {statistics.median(ratios):.2f}, "
            f"{min(ratios):.2f} to {max(ratios):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    auto_cli([quality, speed], as_positional=True)
