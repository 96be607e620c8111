"""Command `skipcl demo`, which shows what feedback, skip prediction and transitions change."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import polars as pl
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import LambdaCallback
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from skipcl_lightning._checks import check_integer
from skipcl_lightning.cli.predictions import check_folder
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.evaluation import (
    EvaluationReport,
    LastItemMarkov,
    choose_transition_weight,
    evaluate,
    save_rank_plot,
    skip_trade_off,
)
from skipcl_lightning.evaluation.report_metrics import is_higher_better
from skipcl_lightning.evaluation.statistics import judge, student_margin
from skipcl_lightning.heads import SkipPrediction
from skipcl_lightning.module import SkipCLModule
from skipcl_lightning.study.choices import build_backbone
from skipcl_lightning.study.runs import quiet_lightning, train

__all__ = ["Results", "demo", "describe_results"]

Results = dict[str, list[dict[str, float]]]

MAX_LENGTH = 20
PENALTIES = (0.25, 0.5, 1.0)
MARKOV, PLAIN, FEEDBACK = "Markov", "plain", "+ feedback"
HEAD, TRANSITIONS = "+ skip head", "+ counts"
ROWS = {
    "HitRate@1": "hit_rate@1",
    "HitRate@10": "hit_rate@10",
    "NDCG@10": "ndcg@10",
    "SkipHitRate@10": "skip_hit_rate@10",
    "SkipMRR@10": "skip_mrr@10",
    "SkipPercentile": "skip_rank_percentile",
    "PairAccuracy": "pairwise_skip_accuracy",
    "LastFirst": "last_item_first",
}
_CAUTION = (
    "The logs are simulated, and skips follow the listener's mood by construction: they show how the parts "
    "work, not how large the effect is for real listeners."
)
NEXT = """\
Next, with a log of your own, one row for each play:
  skipcl prepare table plays.csv --item track --user listener --timestamp time \\
    --gap_minutes 30 --skipped skipped --folder table_store
  skipcl fit --config table/sasrec
or on simulated sessions again, with checkpoints and recommendations:
  skipcl fit --config simulated/sasrec
`skipcl configs` lists all ready configurations."""


def demo(
    sessions: int = 4000,
    items: int = 1000,
    seeds: int = 3,
    epochs: int = 8,
    output: Path = Path("skipcl_demo.png"),
) -> None:
    """Train SASRec on simulated sessions: plain, with feedback as an input, and with skip prediction too.

    Args:
        sessions: Sessions in each simulated log.
        items: Items in the catalogue.
        seeds: Runs of each model, at least 2; each run simulates a new log.
        epochs: Training epochs of each run.
        output: The PNG file for the plot of the ranks.
    """
    check_integer("seeds", seeds, minimum=2, cure="One run says nothing about how much runs differ.")
    check_integer("epochs", epochs)
    output = Path(output)
    check_folder(output)
    console = Console(highlight=False)
    results: Results = {}
    ranks: dict[str, list[pl.DataFrame]] = {}
    console.print(
        f"{seeds} simulated logs of {sessions:,} sessions and {items:,} tracks; 4 in 10 plays are skips.\n"
        f"{PLAIN!r} is SASRec. {FEEDBACK!r} also shows it the feedback of each past track.\n"
        f"{HEAD!r} predicts skips, and ranks with a penalty on tracks that it expects\n"
        f"to be skipped. {TRANSITIONS!r} also counts how often a track followed the last ones.\n"
        f"Both penalties keep the hit rate of {PLAIN!r} on a validation set."
    )

    def add(name: str, module: SkipCLModule, data: SessionDataModule) -> None:
        # No bootstrap over sessions: the intervals are over seeds, whose variation is larger.
        report = evaluate(module, data, num_resamples=0, compare_markov=False)
        results.setdefault(name, []).append(report.values)
        ranks.setdefault(name, []).append(report.sessions.select("rank", "skipped"))

    to_keep: list[EvaluationReport] = []
    chosen: dict[str, tuple[float, float]] = {}
    with quiet_lightning(), Progress(console=console) as progress:
        task = progress.add_task("Training", total=seeds * 3 * epochs)
        for seed in range(seeds):
            data = SessionDataModule(
                simulate_sessions(sessions, num_items=items, seed=seed), max_length=MAX_LENGTH
            )
            results.setdefault(MARKOV, []).append(
                evaluate(LastItemMarkov(data), data, num_resamples=0).values
            )
            for name in (PLAIN, FEEDBACK, HEAD):
                progress.update(task, description=f"{name}, seed {seed}")
                module = _train(data, name, seed, epochs, lambda: progress.advance(task))
                if name != HEAD:
                    add(name, module, data)
                # Of the first model, which is the plain one.
                to_keep = to_keep or [
                    evaluate(module, data, split="validation", num_resamples=200, compare_markov=False)
                ]
            chosen = chosen or _choose(module, data, to_keep[0])
            for name, (module.skip_penalty, module.transition_weight) in chosen.items():
                add(name, module, data)
    shown = (PLAIN, FEEDBACK, HEAD)
    save_rank_plot(output, {name: pl.concat(ranks[name]) for name in shown}, num_items=items)
    console.print(_table(results))
    (alone, _), (beside, weight) = chosen.values()
    console.print(
        f"Chosen on the first log's validation set: penalty {alone:g}; beside counts of weight {weight:g}, "
        f"penalty {beside:g}."
    )
    for before, after in ((PLAIN, FEEDBACK), (PLAIN, HEAD), (PLAIN, TRANSITIONS)):
        console.print(describe_results(results, before, after))
    console.print(_CAUTION)
    console.print(f"Picture: {output}\n{NEXT}")


def _train(
    data: SessionDataModule, name: str, seed: int, epochs: int, tick: Callable[[], None]
) -> SkipCLModule:
    seed_everything(seed, verbose=False)
    module = SkipCLModule(
        build_backbone("SASRec", MAX_LENGTH),
        SkipPrediction() if name == HEAD else None,
        num_items=data.num_items,
        feedback_input=name != PLAIN,
        learning_rate=4e-3,
        transition_weight=1.0 if name == HEAD else 0.0,
    )
    train(module, data, epochs=epochs, callbacks=[LambdaCallback(on_train_epoch_end=lambda *_: tick())])
    module.transition_weight = 0.0
    return module


def _choose(
    module: SkipCLModule, data: SessionDataModule, plain: EvaluationReport
) -> dict[str, tuple[float, float]]:
    """Return the penalty of each variant, which keeps the plain model's hit rate, and the transition weight.

    They are 0 for a log without skipped targets in the validation set.
    """
    if not plain.populations["skipped"]:
        return {HEAD: (0.0, 0.0), TRANSITIONS: (0.0, 0.0)}
    chosen = {}
    for name in (HEAD, TRANSITIONS):
        if name == TRANSITIONS:
            choose_transition_weight(module, data)
        front = skip_trade_off(module, data, penalties=PENALTIES, reference=plain, num_resamples=200)
        chosen[name] = (front.penalty, module.transition_weight)
    return chosen


def _table(results: Results) -> Table:
    runs = len(results[PLAIN])
    table = Table(
        title=f"Test, whole catalogue: mean over {runs} seeds, ± 95 % interval",
        caption="SkipPercentile: mean rank percentile of skipped tracks.\n"
        "PairAccuracy: pairs of a listened and a skipped track in the right order.\n"
        "LastFirst: lists that begin with the track that just played.",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    for label, key in ROWS.items():
        # A small log may have no rejected target; then the cell is NaN.
        cells = {name: [run.get(key, math.nan) for run in runs_of] for name, runs_of in results.items()}
        arrow = "↑" if is_higher_better(key) else "↓"
        table.add_row(
            f"{label} {arrow}",
            *(_cell(values, interval=name != MARKOV) for name, values in cells.items()),
        )
    return table


def _cell(values: list[float], *, interval: bool) -> str:
    mean = _short(statistics.mean(values))
    if not interval:
        return mean
    return f"{mean} ± {_short(float(student_margin(statistics.stdev(values), len(values))))}"


def _short(share: float) -> str:
    """Format with three decimals and no leading zero, so that the table fits into 80 columns."""
    return f"{share:.3f}".removeprefix("0")


def describe_results(results: Results, before: str, after: str) -> str:
    """Return a line for each difference of two models, with its 95 % interval over seeds and verdict."""
    runs = len(results[before])
    lines = [f"{after!r} minus {before!r}, paired by seed, 95 % intervals over {runs} seeds:"]
    for label in ("HitRate@10", "SkipHitRate@10", "SkipPercentile"):
        key = ROWS[label]
        pairs = zip(results[before], results[after], strict=True)
        # A small log may hold no rejected target, and then has no such metric.
        differences = [new[key] - old[key] for old, new in pairs if key in old and key in new]
        if len(differences) < runs:
            continue
        mean = statistics.mean(differences)
        margin = float(student_margin(statistics.stdev(differences), runs))
        verdict = judge(mean - margin, mean + margin, higher_is_better=is_higher_better(key))
        lines.append(f"  {label}: {mean:+.3f} ± {margin:.3f}, {verdict}")
    return "\n".join(lines)
