"""Seven days with new tracks: train on each night, or from scratch, and compare hit rate and cost.

python examples/nightly.py
python examples/nightly.py --plot nightly.png
python examples/nightly.py --smoke true                   # seconds

Each model meets the next day with the tracks that it knows; a track that is new on that day is in no model.
`found@10` is the share of all listened plays of the day that were among the first ten recommendations, so a
play of an unknown track counts as not found, and so does the first play of a session. The hit rates are of
the known tracks only.
"""

import copy
import logging
import time
from pathlib import Path

import polars as pl
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything

from skipcl_lightning import SkipCLModule, evaluate
from skipcl_lightning.backbones import GRU4Rec
from skipcl_lightning.data import SessionDataModule, SplitBySession, simulate_sessions

EVERYTHING = SplitBySession(0.0, 1.0, targets="every")
TRAIN = SplitBySession(0.01, 0.01)  # almost everything
METRICS = ["found@10", "hit_rate@10", "skip_hit_rate@10"]
UPDATES = ["no update", "train on", "from scratch"]


def run_week(
    *,
    days: int = 7,
    sessions: int = 1000,
    items: int = 1000,
    new_share: float = 0.05,
    epochs: int = 12,
    nightly_epochs: int = 3,
    plot: Path | None = None,
    seed: int = 0,
    smoke: bool = False,
) -> None:
    """Simulate days, update a model after each, and test it on the next one.

    Args:
        days: Days, at least 3; the last one is only tested.
        sessions: Sessions of a day.
        items: Tracks on the last day.
        new_share: The share of these tracks that appears on each day after the first.
        epochs: Epochs from scratch, over all days so far.
        nightly_epochs: Epochs of training on, over the last day alone.
        plot: A PNG file for the picture; None for no picture.
        seed: Random seed of simulation, initialisation and shuffling.
        smoke: Quick check that everything works: few sessions, one epoch.
    """
    if smoke:
        days, sessions, items, epochs, nightly_epochs = 3, 60, 60, 1, 1
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    log = simulate_days(days, sessions, items, new_share, seed)
    first, cost = train(log.filter(day=0), epochs, seed)
    costs = dict.fromkeys(UPDATES, cost)
    models = {update: copy.deepcopy(first) for update in UPDATES}
    rows = []
    for day in range(1, days):
        if day > 1:
            models["from scratch"], costs["from scratch"] = train(
                log.filter(pl.col("day") < day), epochs, seed
            )
            costs["train on"] = train_on(models["train on"], log.filter(day=day - 1), nightly_epochs, seed)
            costs["no update"] = 0.0
        for update, module in models.items():
            row = {"day": day + 1, "update": update, "tracks": module.num_items, "seconds": costs[update]}
            rows.append(row | test(module, log.filter(day=day)))
    table = pl.DataFrame(rows)
    with pl.Config(tbl_rows=-1, tbl_width_chars=120, float_precision=3):
        print(table)
        means = table.group_by("update", maintain_order=True).agg(
            pl.col("seconds").sum(), pl.col(METRICS).mean()
        )
        print("Seconds of training in all, and means over the days:", means, sep="\n")
    if plot is not None:
        draw(table, plot)


def simulate_days(days: int, sessions: int, items: int, new_share: float, seed: int) -> pl.DataFrame:
    """Return sessions with their `day` from 0; a track cannot be played before its first day."""
    old = 1 - new_share * (days - 1)
    # The number of a simulated track says nothing about its mood or popularity.
    number = pl.col("item_id").str.strip_prefix("track-").cast(pl.Int64)
    appears = ((number / items - old) / new_share).floor() + 1
    log = simulate_sessions(days * sessions, num_items=items, seed=seed)
    return log.with_columns(day=pl.col("session_id") // sessions).filter(appears <= pl.col("day")).collect()


def train(log: pl.DataFrame, epochs: int, seed: int) -> tuple[SkipCLModule, float]:
    """Return a new model of a log, and the seconds of CPU time that it took."""
    started = time.process_time()
    seed_everything(seed, verbose=False)
    data = SessionDataModule(log, batch_size=128, max_length=20, split=TRAIN)
    module = SkipCLModule(GRU4Rec(64), num_items=data.num_items, learning_rate=0.003, transition_weight=1.0)
    fit(module, data, epochs)
    return module, time.process_time() - started


def train_on(module: SkipCLModule, log: pl.DataFrame, epochs: int, seed: int) -> float:
    """Train a model on a newer log, with its new tracks; return the seconds of CPU time."""
    started = time.process_time()
    seed_everything(seed, verbose=False)
    data = SessionDataModule(
        log, batch_size=128, max_length=20, split=TRAIN, vocabulary=module, new_items="append"
    )
    module.extend_items(data.vocabulary.ids, init="nearest", data=data)
    fit(module, data, epochs)
    return time.process_time() - started


def fit(module: SkipCLModule, data: SessionDataModule, epochs: int) -> None:
    """Train quietly; nothing is validated, because nothing is chosen."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(
        max_epochs=epochs, accelerator="cpu", limit_val_batches=0, enable_model_summary=False, **quiet
    ).fit(module, data)


def test(module: SkipCLModule, log: pl.DataFrame) -> dict[str, float]:
    """Test a model on every track of a log that it knows."""
    data = SessionDataModule(log, max_length=20, split=EVERYTHING, vocabulary=module)
    report = evaluate(module, data, num_resamples=0, compare_markov=False)
    found = (
        report["hit_rate@10"]
        * report.sessions.filter(~pl.col("skipped")).height
        / len(log.filter(pl.col("feedback") > 0))
    )
    return {"found@10": found, **{metric: report[metric] for metric in METRICS[1:]}}


def draw(table: pl.DataFrame, path: Path) -> None:
    """Write a picture of the hit rate of each day, and of the training time so far."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    rates, seconds = figure.subplots(1, 2)
    for update, rows in table.group_by("update", maintain_order=True):
        rates.plot(rows["day"], rows["found@10"], marker="o", label=update[0])
        seconds.plot(rows["day"], rows["seconds"].cum_sum(), marker="o", label=update[0])
    rates.set(xlabel="day", ylabel="found@10 on that day")
    seconds.set(xlabel="day", ylabel="training so far, seconds of CPU time")
    seconds.legend()
    figure.savefig(path, dpi=150)
    print(f"Picture: {path}")


if __name__ == "__main__":
    auto_cli(run_week, as_positional=False)
