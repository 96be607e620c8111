"""The runs of a study: train and evaluate a model in each, and keep the results on disk."""

import hashlib
import json
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from rich.console import Console
from rich.progress import Progress
from torch import nn

from skipcl_lightning._files import write_whole
from skipcl_lightning._settings import describe_part
from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.evaluation import (
    Baseline,
    EvaluationReport,
    choose_transition_weight,
    evaluate,
    skip_trade_off,
)
from skipcl_lightning.heads import SKIP_HEADS
from skipcl_lightning.module import SkipCLModule
from skipcl_lightning.study.choices import (
    EMBEDDING_SIZE,
    Choice,
    Recipe,
    build_backbone,
    find_recipe,
    find_variant,
    make_data,
)

__all__ = [
    "Mode",
    "Run",
    "Tracking",
    "do_missing",
    "execute",
    "list_runs",
    "quiet_lightning",
    "read_record",
    "tracked",
    "train",
]

Mode = Literal["none", "offline", "online"]
PROJECT = "skipcl"
TOP_K = (1, 5, 10, 20)


@dataclass(frozen=True)
class Tracking:
    """The place where runs are logged in W&B; `offline` needs no account."""

    mode: Literal["offline", "online"]
    group: str
    folder: Path


@contextmanager
def tracked(
    tracking: Tracking | None, name: str, settings: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Log a run in W&B within a context, or nowhere without a place; an error marks it as failed.

    Yields a function that takes the metrics for the run's summary.
    """
    if tracking is None:
        yield lambda _: None
        return
    import wandb  # slow to import, and most studies do without

    tracking.folder.mkdir(parents=True, exist_ok=True)
    with wandb.init(
        project=PROJECT,
        group=tracking.group,
        name=name,
        dir=tracking.folder,
        mode=tracking.mode,
        config=dict(settings),
        settings=wandb.Settings(silent=True),
    ) as run:
        yield lambda metrics: run.summary.update(dict(metrics))


@dataclass(frozen=True)
class Run:
    """One training and its evaluation, as plain values.

    Args:
        dataset: As for `make_data`.
        backbone: One of `backbone_names()`.
        variant: One of `VARIANTS`, or that with `+input`, or one of `BASELINES`.
        weight: λ; None without a head.
        seed: Seed of initialisation and shuffling, and of a simulated log.
        epochs: Epochs of the training.
        sessions: Sessions of a simulated log; None for the recipe's number.
    """

    dataset: str
    backbone: str
    variant: str
    weight: float | None
    seed: int
    epochs: int
    sessions: int | None = None

    @property
    def title(self) -> str:
        """The data set's name, without its path."""
        return self.dataset.partition("=")[0]

    @property
    def label(self) -> str:
        """The run's name in messages."""
        weight = [] if self.weight is None else [f"λ {self.weight:g}"]
        return ", ".join([self.title, self.backbone, self.variant, *weight, f"seed {self.seed}"])

    @property
    def recipe(self) -> Recipe:
        """The recipe of the data set."""
        return find_recipe(self.dataset)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All values on which the result depends; runs with other settings have other keys."""
        recipe = vars(self.recipe)
        own = {name: value for name, value in asdict(self).items() if name != "sessions"}
        simulation = None if recipe["simulation"] is None else dict(recipe["simulation"])
        if simulation is not None and self.sessions is not None:
            simulation["num_sessions"] = self.sessions
        # Built, so that the defaults of the parts are included.
        backbone, head = self.build_parts()
        variant = find_variant(self.variant)
        return {
            **{name: recipe[name] for name in recipe if name not in ("epochs", "simulation")},
            **own,
            "simulation": simulation,
            "backbone_settings": describe_part(backbone, BACKBONES)["settings"],
            "head": None if head is None else describe_part(head, SKIP_HEADS),
            "feedback_input": variant.feedback_input,
            **variant.data_settings,
            **({"chosen": list(variant.chosen)} if variant.chosen else {}),
            **({"baseline": self.variant} if variant.baseline is not None else {}),
        }

    @property
    def training(self) -> str:
        """The settings of the training alone, as text; runs with equal ones share one training."""
        own = {name: value for name, value in self.settings.items() if name not in ("variant", "chosen")}
        return json.dumps(own, sort_keys=True)

    @property
    def key(self) -> str:
        """The name of the run's files: its values, and a hash of all settings."""
        settings = json.dumps(self.settings, sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
        weight = [] if self.weight is None else [f"{self.weight:g}"]
        return "_".join([self.title, self.backbone, self.variant, *weight, f"seed{self.seed}", digest])

    def file(self, folder: Path, ending: str) -> Path:
        """Return the place of a file of the run in the folder of a study."""
        return folder / "runs" / f"{self.key}.{ending}"

    def build_parts(self) -> tuple[nn.Module, nn.Module | None]:
        """Return the backbone and the head; None for no head."""
        head = None if self.weight is None else find_variant(self.variant).build_head(self.weight)
        return build_backbone(self.backbone, self.recipe.max_length), head


def list_runs(
    *,
    datasets: Sequence[str],
    backbones: Sequence[str],
    variants: Sequence[str],
    weights: Sequence[float],
    seeds: int,
    epochs: int | None = None,
    sessions: int | None = None,
) -> list[Run]:
    """Return every combination; a variant without a head has one run, not one for each weight.

    They come seed by seed, so that an interrupted study has complete seeds. `epochs` and `sessions` replace
    the numbers of the data sets' recipes.
    """
    choices: list[tuple[str, float | None]] = []
    for variant in variants:
        choices += [(variant, weight) for weight in (weights if find_variant(variant).parts else [None])]
    runs = []
    for seed, dataset, backbone, choice in product(range(seeds), datasets, backbones, choices):
        recipe = find_recipe(dataset)
        count = sessions if recipe.simulation else None
        runs.append(Run(dataset, backbone, *choice, seed, epochs or recipe.epochs, count))
    return runs


def do_missing(
    runs: Sequence[Run], folder: Path, *, jobs: int, tracking: Tracking | None, console: Console
) -> None:
    """Execute the runs that are not on disk yet, in `jobs` processes that share the cores.

    A failed run does not stop the others; a `RuntimeError` names the failed ones at the end.
    """
    missing = [run for run in runs if read_record(run, folder) is None]
    console.print(f"{len(runs)} runs, {len(runs) - len(missing)} of them done before.")
    if not missing:
        return
    threads = max(1, torch.get_num_threads() // jobs)
    failures: list[tuple[Run, BaseException]] = []
    spawn = multiprocessing.get_context("spawn")
    trainings: dict[str, list[Run]] = {}
    for run in missing:
        trainings.setdefault(run.training, []).append(run)
    workers = min(jobs, len(trainings))
    with Progress(console=console) as progress, ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        task = progress.add_task("Training", total=len(missing))
        futures = {
            pool.submit(execute, group, folder, threads, tracking): group for group in trainings.values()
        }
        for future in as_completed(futures):
            group, error = futures[future], future.exception()
            if error is not None:
                unfinished = [run for run in group if read_record(run, folder) is None]
                failures += [(run, error) for run in unfinished]
                for run in unfinished:
                    console.print(f"{run.label}: failed, {type(error).__name__}: {error}", markup=False)
            progress.advance(task, len(group))
    if failures:
        told = "\n".join(f"  {run.label}: {type(error).__name__}: {error}" for run, error in failures)
        raise RuntimeError(
            f"{len(failures)} of {len(missing)} runs failed; run again to do only these:\n{told}"
        ) from failures[0][1]


def execute(runs: Sequence[Run], folder: Path, threads: int, tracking: Tracking | None = None) -> None:
    """Train once, then evaluate each run, and write `runs/<key>.parquet` and then `runs/<key>.json`.

    Each file appears complete or not at all. The JSON, the record, comes last and marks a finished run.

    Args:
        runs: Runs with equal `training`, at least one.
        folder: The study's folder.
        threads: Threads of torch.
        tracking: The place where each run is logged in W&B; None for nowhere.
    """
    torch.set_num_threads(threads)
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    with quiet_lightning():
        for number, run in enumerate(runs):
            # Before the training, so that a failed login costs no time.
            with tracked(tracking, run.key, run.settings) as log:
                if not number:
                    model, data, facts = _train(runs)
                report, chosen = _measure(run, model, data)
                log(report.values)
            record = {
                "settings": run.settings,
                "metrics": report.values,
                "populations": report.populations,
                "chosen": chosen,
                **facts,
            }
            text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False)
            write_whole(run.file(folder, "parquet"), report.sessions.write_parquet)
            write_whole(run.file(folder, "json"), partial(Path.write_text, data=text, encoding="utf-8"))


def read_record(run: Run, folder: Path) -> dict[str, Any] | None:
    """Return the record of an earlier `execute`; None if there is none, or its files are damaged."""
    if not run.file(folder, "parquet").is_file():
        return None
    try:
        record = json.loads(run.file(folder, "json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("metrics"), Mapping):
        return None
    return record


def _train(runs: Sequence[Run]) -> tuple[SkipCLModule | Baseline, SessionDataModule, dict[str, Any]]:
    """Return the trained module of runs with equal `training`, or a baseline, its data and what it cost."""
    run = runs[0]
    recipe = run.recipe
    seed_everything(run.seed, verbose=False)
    variant = find_variant(run.variant)
    counted = any("transition_weight" in find_variant(each.variant).chosen for each in runs)
    data = make_data(run.dataset, run.seed, run.sessions, variant.data_settings)
    facts = {"items": data.num_items, "torch": torch.__version__}
    if variant.baseline is not None:
        return variant.baseline(data), data, facts
    module = SkipCLModule(
        *run.build_parts(),
        num_items=data.num_items,
        embedding_size=EMBEDDING_SIZE,
        feedback_input=variant.feedback_input,
        top_k=TOP_K,
        learning_rate=recipe.learning_rate,
        transition_weight=1.0 if counted else 0.0,  # counts the transitions; no part of the training
    )
    started = time.perf_counter()
    train(module, data, epochs=run.epochs)
    facts["seconds"] = time.perf_counter() - started
    facts["parameters"] = sum(weights.numel() for weights in module.parameters())
    return module, data, facts


def _measure(
    run: Run, model: SkipCLModule | Baseline, data: SessionDataModule
) -> tuple[EvaluationReport, dict[Choice, float]]:
    """Choose the variant's settings on the validation set, then read the test set once."""
    chosen = _choose(run, model, data) if isinstance(model, SkipCLModule) else {}
    # No intervals over sessions, because the study has intervals over seeds.
    report = evaluate(model, data, name=run.key, top_k=TOP_K, num_resamples=0, compare_markov=False)
    return report, chosen


def _choose(run: Run, module: SkipCLModule, data: SessionDataModule) -> dict[Choice, float]:
    """Set the settings that the variant chooses on the validation set, and return them."""
    module.transition_weight, module.skip_penalty = 0.0, 0.0
    chosen: dict[Choice, float] = {}
    for name in find_variant(run.variant).chosen:
        if name == "transition_weight":
            choose_transition_weight(module, data)
        else:
            module.skip_penalty = skip_trade_off(module, data).penalty
        chosen[name] = getattr(module, name)
    return chosen


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence the messages on data, devices and limits, which would disrupt a progress bar."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def train(
    module: SkipCLModule, data: SessionDataModule, *, epochs: int, callbacks: Sequence[Callback] = ()
) -> None:
    """Train on the CPU, without validation and files."""
    Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_val_batches=0,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, data)
