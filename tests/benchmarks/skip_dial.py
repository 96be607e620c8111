"""What the feedback input, heads, transitions and the skip penalty change, on a log of real sessions.

python tests/benchmarks/skip_dial.py sessions.parquet results.csv      # about 20 minutes a seed on one core
python tests/benchmarks/skip_dial.py sessions.parquet results.csv --backbones [GRU4Rec] --seeds 3
python tests/benchmarks/skip_dial.py sessions.parquet results.csv --short true  # what the README says
python tests/benchmarks/skip_dial.py high_skip results.csv --short true  # simulated, a new log for each seed

The columns of the log, the split and the training are those of transitions.py. Weights and penalties are
chosen on the validation set, and the test set is read once for each model. A run that is in `results.csv` is
not repeated. Prints Markdown: means over the seeds, then the paired differences from the plain model, with a
95 % interval over the seeds and the least and greatest bound of the seeds' intervals over sessions.
"""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from transitions import make_backbone, read, split_every

from skipcl_lightning import SkipCLModule, evaluate
from skipcl_lightning._files import write_whole
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.evaluation import (
    EvaluationReport,
    ItemAndLastSkipRate,
    ItemSkipRate,
    LastItemMarkov,
    LastSkipRate,
    SessionKNN,
    calibrate_skip_prediction,
    choose_transition_weight,
    compare,
    compare_skip_predictions,
    skip_trade_off,
)
from skipcl_lightning.evaluation.plots import make_figure
from skipcl_lightning.evaluation.statistics import student_margin
from skipcl_lightning.heads import FullSoftmax, SampledSoftmax, SkipInfoNCE, SkipPrediction

METRICS = (
    "hit_rate@1",
    "hit_rate@10",
    "ndcg@10",
    "skip_hit_rate@10",
    "skip_mrr@10",
    "pairwise_skip_accuracy",
    "last_item_first",
)
COMPARED = ("hit_rate@1", "hit_rate@10", "skip_hit_rate@10", "skip_mrr@10")
PLAIN = "plain"
BASELINE = "simple model"
SIMULATED = "high_skip"
# What may be chosen together.
WEIGHTS = (0.0, 0.5, 1.0, 2.0)
PENALTIES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)


def skip_dial(
    sessions: str,
    results: Path,
    backbones: tuple[str, ...] = ("SASRec",),
    seeds: int = 3,
    epochs: int = 8,
    picture: Path | None = None,
    short: bool = False,
    weight_decay: float = 0.0,
) -> None:
    """Run what is missing, then print the tables.

    Args:
        sessions: The Parquet file, or `high_skip` for simulated logs, in which 65 % of the plays are skips.
        results: The CSV file of the results, which is extended.
        backbones: Backbones of `transitions.py`.
        seeds: The number of trainings of each model.
        epochs: The epochs of each.
        picture: A PNG file for both hit rates of each model, means over the seeds.
        short: Leave out the variants without `SkipPrediction` and the comparison of skip predictors.
        weight_decay: That of all models; take another file of results for another one.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    done = pl.read_csv(results) if results.exists() else None
    for name in backbones:
        for seed in range(seeds):
            if done is not None and done.filter(backbone=name, seed=seed).height:
                continue
            data = simulate(seed) if sessions == SIMULATED else read(Path(sessions))
            rows = pl.DataFrame(run(name, seed, data, epochs, weight_decay, short=short))
            done = rows if done is None else pl.concat([done, rows], how="diagonal")
            done.write_csv(results)
    assert done is not None, "at least one backbone and seed"
    if not done.filter(backbone=BASELINE).height:
        rows = pl.DataFrame(run_baselines(simulate(0) if sessions == SIMULATED else read(Path(sessions))))
        done = pl.concat([done, rows], how="diagonal")
        done.write_csv(results)
    kept = pl.col("backbone").is_in(backbones) & (pl.col("seed") < seeds)
    print_tables(done.filter(kept | (pl.col("backbone") == BASELINE)))
    if picture is not None:
        draw(done.filter(kept | (pl.col("backbone") == BASELINE)), picture)


def simulate(seed: int) -> SessionDataModule:
    """Return 40,000 simulated sessions with many skips, split as the real ones are."""
    log = simulate_sessions(40_000, skip_bias=1.5, seed=seed)
    return split_every(log.select("session_id", "position", "item_id", "feedback"))


def run(
    name: str, seed: int, data: SessionDataModule, epochs: int, weight_decay: float, *, short: bool
) -> list[dict[str, float | str]]:
    """Train all models of one seed; return a row for each model that is tested."""
    rows: list[dict[str, float | str]] = []
    plain: EvaluationReport | None = None

    def add(variant: str, module: SkipCLModule) -> EvaluationReport:
        report = evaluate(module, data, compare_markov=False)
        row: dict[str, float | str] = {
            "backbone": name,
            "seed": seed,
            "variant": variant,
            "transition_weight": module.transition_weight,
            "skip_penalty": module.skip_penalty,
        }
        row |= {metric: report[metric] for metric in METRICS}
        if plain is not None:
            for found in (
                compare(plain, report).filter(pl.col("metric").is_in(COMPARED)).iter_rows(named=True)
            ):
                row |= {f"{found['metric']} {end}": found[end] for end in ("low", "high")}
        rows.append(row)
        print(variant, {metric: round(report[metric], 4) for metric in METRICS}, flush=True)
        return report

    train = partial(fit, name, data=data, seed=seed, epochs=epochs, weight_decay=weight_decay)
    module = train(None, feedback_input=False)
    plain = add(PLAIN, module)
    kept = evaluate(module, data, split="validation", top_k=(10,), num_resamples=300, compare_markov=False)
    if not short:
        add("+ feedback input", train(None))
        add("+ feedback, SkipInfoNCE", train(SkipInfoNCE(weight=0.1)))
    module = train(SkipPrediction())
    add("+ feedback, SkipPrediction", module)
    module.skip_penalty = skip_trade_off(module, data, num_resamples=300).penalty
    add("+ feedback, SkipPrediction, penalty", module)
    module.skip_penalty = 0.0
    choose_transition_weight(module, data, weights=(0.0, 2.0, 4.0, 8.0))
    add("+ feedback, SkipPrediction, transitions", module)
    front = skip_trade_off(module, data, num_resamples=300, penalties=(0.0, 0.25, 0.5, 1.0, 2.0, 4.0))
    module.skip_penalty = front.penalty
    add("+ feedback, SkipPrediction, transitions, penalty", module)
    module.skip_penalty = skip_trade_off(
        module, data, num_resamples=300, penalties=(1.0, 2.0, 4.0, 8.0), reference=kept
    ).penalty
    add("+ feedback, SkipPrediction, transitions, penalty that keeps the plain hit rate", module)
    front = skip_trade_off(
        module, data, num_resamples=300, penalties=PENALTIES, transition_weights=WEIGHTS, reference=kept
    )
    module.transition_weight, module.skip_penalty = front.transition_weight, front.penalty
    add("+ feedback, SkipPrediction, transitions and penalty together", module)
    print(front.table.to_dicts(), flush=True)
    if short:
        return rows
    calibrate_skip_prediction(module, data)
    predictors = {
        "item's skip rate": ItemSkipRate(data),
        "as the last one": LastSkipRate(data),
        "both": ItemAndLastSkipRate(data),
        f"{name} with SkipPrediction": module,
    }
    print(compare_skip_predictions(predictors, data).to_dicts(), flush=True)
    return rows


def run_baselines(data: SessionDataModule) -> list[dict[str, float | str]]:
    """Return a row for each simple model."""
    models = {
        "Markov, next track": LastItemMarkov(data),
        "Markov, next listened track": LastItemMarkov(data, rule="next_listened"),
        "session-KNN": SessionKNN(data),
    }
    rows: list[dict[str, float | str]] = []
    for variant, model in models.items():
        report = evaluate(model, data, num_resamples=0)
        rows.append({"backbone": BASELINE, "seed": 0, "variant": variant})
        rows[-1] |= {metric: report[metric] for metric in METRICS}
    return rows


def fit(
    name: str,
    head: nn.Module | None,
    *,
    data: SessionDataModule,
    seed: int,
    epochs: int,
    weight_decay: float = 0.0,
    feedback_input: bool = True,
) -> SkipCLModule:
    """Return a trained module, whose `transition_weight` is 0 but can be set."""
    seed_everything(seed, verbose=False)
    module = SkipCLModule(
        make_backbone(name),
        head,
        num_items=data.num_items,
        feedback_input=feedback_input,
        next_item_loss=SampledSoftmax(1000) if data.num_items > 1000 else FullSoftmax(),
        learning_rate=0.003,
        weight_decay=weight_decay,
        transition_weight=1.0,
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=epochs, limit_val_batches=0, enable_model_summary=False, **quiet)
    trainer.fit(module, data)
    module.transition_weight = 0.0
    return module


def print_tables(rows: pl.DataFrame) -> None:
    """Print the means over seeds, and the differences from the plain model of the same seed."""
    keys = ["backbone", "variant"]
    print(f"\n| backbone | model | {' | '.join(METRICS)} |\n|---|---|{'---:|' * len(METRICS)}")
    for key, group in rows.group_by(keys, maintain_order=True):
        means = " | ".join(f"{group[metric].mean():.4f}" for metric in METRICS)
        print(f"| {key[0]} | {key[1]} | {means} |")
    print("\n| backbone | model | metric | difference | 95 %, seeds | 95 %, sessions |")
    print("|---|---|---|---:|---:|---:|")
    plain = rows.filter(variant=PLAIN)
    trained = rows.filter(pl.col("variant") != PLAIN, pl.col("backbone") != BASELINE)
    for key, group in trained.group_by(keys, maintain_order=True):
        paired = group.join(plain, on=["backbone", "seed"], suffix=" plain")
        for metric in COMPARED:
            values = (paired[metric] - paired[f"{metric} plain"]).to_numpy()
            margin = np.nan
            if len(values) > 1:
                margin = float(student_margin(float(np.std(values, ddof=1)), len(values)))
            low, high = group[f"{metric} low"].min(), group[f"{metric} high"].max()
            mean = values.mean()
            seeds, sessions = (mean - margin, mean + margin), (low, high)
            ends = " | ".join(f"{one:+.4f} to {other:+.4f}" for one, other in (seeds, sessions))
            print(f"| {key[0]} | {key[1]} | {metric} | {mean:+.4f} | {ends} |")


def draw(rows: pl.DataFrame, path: Path) -> None:
    """Draw SkipHitRate@10 against HitRate@10, a numbered point for each model."""
    figure = make_figure(7.2, 6.0)
    axis = figure.subplots()
    means = rows.group_by("backbone", "variant", maintain_order=True).mean()
    variants = means["variant"].unique(maintain_order=True).to_list()
    for marker, (backbone, group) in zip(
        "osD^x", means.group_by("backbone", maintain_order=True), strict=False
    ):
        x, y = group["skip_hit_rate@10"].to_numpy(), group["hit_rate@10"].to_numpy()
        axis.plot(x, y, marker, markersize=4, label=backbone[0])
        for place, variant in zip(zip(x, y, strict=True), group["variant"], strict=True):
            number = str(variants.index(variant) + 1)
            axis.annotate(number, place, xytext=(3, 3), textcoords="offset points", fontsize=8)
    axis.set_xlabel("SkipHitRate@10: skipped tracks among the first ten (left is better)")
    axis.set_ylabel("HitRate@10 (up is better)")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="lower right")
    figure.suptitle(
        "\n".join(f"{number} {variant}" for number, variant in enumerate(variants, start=1)),
        x=0.13,
        ha="left",
        fontsize=8,
    )
    write_whole(path, lambda part: figure.savefig(part, format="png", dpi=160))


if __name__ == "__main__":
    auto_cli(skip_dial, as_positional=True)
