"""Command `skipcl demo`, which compares training with and without the skip-contrastive head."""

import logging
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from skipcl_lightning._checks import check_integer
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.evaluation import Baseline, LastItemMarkov, Popularity, evaluate, save_rank_plot
from skipcl_lightning.evaluation.statistics import student_margin
from skipcl_lightning.heads import SkipInfoNCE
from skipcl_lightning.module import SkipCLModule

__all__ = ["Results", "demo", "describe_results"]

Results = dict[str, list[dict[str, float]]]

MAX_LENGTH = 20
EMBEDDING_SIZE = 64
PLAIN, CONTRASTIVE = "SASRec", "SASRec+skip"
ROWS = {
    "HitRate@1": "hit_rate@1",
    "HitRate@5": "hit_rate@5",
    "HitRate@10": "hit_rate@10",
    "HitRate@20": "hit_rate@20",
    "NDCG@10": "ndcg@10",
    "MRR@10": "mrr@10",
    "SkipMRR@10": "skip_mrr@10",
    "SkipHitRate@10": "skip_hit_rate@10",
    "SkipPercentile": "skip_rank_percentile",
    "PairAccuracy": "pairwise_skip_accuracy",
}
LOWER_IS_BETTER = {"SkipMRR@10", "SkipHitRate@10"}


def demo(
    sessions: int = 4000,
    items: int = 1000,
    seeds: int = 3,
    epochs: int = 8,
    weight: float = 0.3,
    output: Path = Path("skipcl_demo.png"),
) -> None:
    """Train SASRec with and without the skip-contrastive head on simulated sessions, and compare both.

    Args:
        sessions: Sessions in each simulated log.
        items: Items in the catalogue.
        seeds: Runs of each model, at least 2; each run simulates a new log.
        epochs: Training epochs of each run.
        weight: λ, the weight of the skip-contrastive loss.
        output: The PNG file for the plot of the ranks.
    """
    check_integer("seeds", seeds, minimum=2, cure="One run says nothing about how much runs differ.")
    check_integer("epochs", epochs)
    output = Path(output)
    if not output.absolute().parent.is_dir():
        raise ValueError(f"`output` must be in a folder that exists, got {output}. Make the folder first.")
    console = Console()
    results: Results = {}
    ranks: dict[str, list[pl.DataFrame]] = {PLAIN: [], CONTRASTIVE: []}
    console.print(
        f"{seeds} simulated logs of {sessions:,} sessions and {items:,} tracks, about 4 in 10 tracks skipped."
    )
    with _quiet_lightning(), Progress(console=console) as progress:
        task = progress.add_task("Training", total=seeds * 2 * epochs)
        for seed in range(seeds):
            data = SessionDataModule(
                simulate_sessions(sessions, num_items=items, seed=seed), max_length=MAX_LENGTH
            )
            for name, measured in _evaluate_baselines(data).items():
                results.setdefault(name, []).append(measured)
            for name, head in ((PLAIN, None), (CONTRASTIVE, SkipInfoNCE(weight=weight))):
                progress.update(task, description=f"{name}, seed {seed}")
                module = _train(data, head, seed, epochs, lambda: progress.advance(task))
                # No bootstrap over sessions: the intervals are over seeds, whose variation is larger.
                report = evaluate(module, data, num_resamples=0)
                results.setdefault(name, []).append(report.values)
                ranks[name].append(report.sessions.select("rank", "skipped"))
    save_rank_plot(output, {name: pl.concat(frames) for name, frames in ranks.items()}, num_items=items)
    console.print(_table(results))
    console.print(describe_results(results, plain=PLAIN, contrastive=CONTRASTIVE))
    console.print(f"Ranks of what was listened to and of what was skipped: {output}")


class _Tick(Callback):
    """Callback that calls `tick` after each training epoch."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self.tick = tick

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.tick()


def _train(
    data: SessionDataModule, head: SkipInfoNCE | None, seed: int, epochs: int, tick: Callable[[], None]
) -> SkipCLModule:
    seed_everything(seed, verbose=False)
    module = SkipCLModule(
        SASRec(EMBEDDING_SIZE, max_length=MAX_LENGTH, num_layers=1, dropout=0.1),
        head,
        num_items=data.num_items,
        embedding_size=EMBEDDING_SIZE,
        # As in the paper: only the head sees skips.
        feedback_input=False,
        learning_rate=4e-3,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_val_batches=0,
        callbacks=[_Tick(tick)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return module


def _evaluate_baselines(data: SessionDataModule) -> dict[str, dict[str, float]]:
    baselines: dict[str, Baseline] = {
        "Popularity": Popularity(data.item_counts),
        "Markov": LastItemMarkov(data),
    }
    return {name: evaluate(baseline, data, num_resamples=0).values for name, baseline in baselines.items()}


def _table(results: Results) -> Table:
    runs = len(results[PLAIN])
    caption = "SkipPercentile: mean rank percentile of skipped tracks. PairAccuracy: pairwise skip accuracy."
    table = Table(
        caption=caption, title=f"Test, whole catalogue, mean ± standard deviation over {runs} seeds"
    )
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    for label, key in ROWS.items():
        # A small log may have no rejected target; then the cell is NaN.
        cells = [[run.get(key, math.nan) for run in runs_of_model] for runs_of_model in results.values()]
        arrow = "↓" if label in LOWER_IS_BETTER else "↑"
        table.add_row(
            f"{label} {arrow}",
            *(f"{_short(statistics.mean(cell))} ± {_short(statistics.stdev(cell))}" for cell in cells),
        )
    return table


def _short(share: float) -> str:
    """Format with three decimals and no leading zero, so that the table fits into 80 columns."""
    return f"{share:.3f}".removeprefix("0")


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's messages on devices and limits, which would disrupt the progress bar."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def describe_results(results: Results, *, plain: str, contrastive: str) -> str:
    """Compare two models by the differences within each seed.

    Args:
        results: By model, the metrics of each seed's run.
        plain: The model without the head.
        contrastive: The model with it.

    Returns:
        Sentences: each difference with a 95 % interval over seeds, and whether it is significant.

    Examples:
        >>> keys = ["hit_rate@10", "skip_mrr@10", "skip_rank_percentile", "pairwise_skip_accuracy"]
        >>> results = {"a": [dict.fromkeys(keys, 0.5)] * 3, "b": [dict.fromkeys(keys, 0.5)] * 3}
        >>> print(describe_results(results, plain="a", contrastive="b").splitlines()[1])
          HitRate@10: +0.000 ± 0.000, not distinguishable from no effect
    """
    runs = len(results[plain])
    lines = [f"{contrastive} minus {plain}, paired by seed, with 95 % intervals over {runs} seeds:"]
    for label, key in (
        ("HitRate@10", "hit_rate@10"),
        ("SkipMRR@10", "skip_mrr@10"),
        ("skip rank percentile", "skip_rank_percentile"),
        ("pairwise skip accuracy", "pairwise_skip_accuracy"),
    ):
        pairs = zip(results[plain], results[contrastive], strict=True)
        # A small log may hold no rejected target, and then has no such metric.
        differences = [after[key] - before[key] for before, after in pairs if key in before and key in after]
        if len(differences) < runs:
            continue
        mean = statistics.mean(differences)
        margin = float(student_margin(statistics.stdev(differences), runs))
        lower_is_better = key == "skip_mrr@10"
        lines.append(f"  {label}: {mean:+.3f} ± {margin:.3f}, {_verdict(mean, margin, lower_is_better)}")
    lines.append(
        "What this does not show: the logs are simulated, and skips follow the listener's mood by "
        "construction, so it says little about real listeners. Each track often follows the one before, "
        "which is all that last-item Markov uses. And the plain model is trained towards the next listened "
        "track too, which already keeps skipped tracks out of its targets."
    )
    return "\n".join(lines)


def _verdict(mean: float, margin: float, lower_is_better: bool) -> str:
    if abs(mean) <= margin:
        return "not distinguishable from no effect"
    return "better" if (mean < 0) == lower_is_better else "worse"
