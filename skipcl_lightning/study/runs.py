"""One run of the study: train and evaluate a model, and keep the result on disk."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from skipcl_lightning._settings import describe_part
from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.evaluation import EvaluationReport, evaluate
from skipcl_lightning.evaluation.plots import write_whole
from skipcl_lightning.heads import SKIP_HEADS
from skipcl_lightning.module import SkipCLModule
from skipcl_lightning.study.datasets import Recipe, find_recipe, make_data
from skipcl_lightning.study.variants import EMBEDDING_SIZE, build_backbone, find_variant

__all__ = ["Mode", "Run", "Tracking", "execute", "read_record", "tracked"]

Mode = Literal["none", "offline", "online"]
PROJECT = "skipcl"


@dataclass(frozen=True)
class Tracking:
    """The place where runs are logged.

    Args:
        mode: `offline`, which needs no account, or `online`.
        group: The runs' common group.
        folder: The folder of W&B's files.
    """

    mode: Literal["offline", "online"]
    group: str
    folder: Path


@contextmanager
def tracked(
    tracking: Tracking | None, name: str, settings: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Log a run in W&B within a context; an error marks it as failed.

    Args:
        tracking: The place; None for no logging.
        name: The run's name.
        settings: Its configuration.

    Yields:
        A function that takes the metrics for the run's summary.

    Examples:
        >>> with tracked(None, "run", {}) as log:
        ...     log({"hit_rate@10": 0.5})
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


TOP_K = (1, 5, 10, 20)


@dataclass(frozen=True)
class Run:
    """One training and its evaluation, as plain values.

    Args:
        dataset: As for `make_data`.
        backbone: One of `backbone_names()`.
        variant: One of `VARIANTS`, or that with `+input`.
        weight: λ; None without a head.
        seed: Seed of initialisation and shuffling, and of a simulated log.
        epochs: Epochs of the training.
        sessions: Sessions of a simulated log; None for the recipe's number.

    Examples:
        >>> run = Run("dense", "SASRec", "session", 0.3, seed=1, epochs=8)
        >>> run.label, run.key.rpartition("_")[0]
        ('dense, SASRec, session, λ 0.3, seed 1', 'dense_SASRec_session_0.3_seed1')
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
        return {
            **{name: recipe[name] for name in recipe if name not in ("epochs", "simulation")},
            **own,
            "simulation": simulation,
            "backbone_settings": describe_part(backbone, BACKBONES)["settings"],
            "head": None if head is None else describe_part(head, SKIP_HEADS),
            "feedback_input": find_variant(self.variant).feedback_input,
            **find_variant(self.variant).data_settings,
        }

    @property
    def key(self) -> str:
        """The name of the run's files: its values, and a hash of all settings."""
        settings = json.dumps(self.settings, sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
        weight = [] if self.weight is None else [f"{self.weight:g}"]
        return "_".join([self.title, self.backbone, self.variant, *weight, f"seed{self.seed}", digest])

    def build_parts(self) -> tuple[nn.Module, nn.Module | None]:
        """Return the backbone and the head.

        Returns:
            Both; None for no head.

        Raises:
            ValueError: One of the names or settings is wrong.
        """
        head = None if self.weight is None else find_variant(self.variant).build_head(self.weight)
        return build_backbone(self.backbone, self.recipe.max_length), head


def execute(run: Run, folder: Path, threads: int, tracking: Tracking | None = None) -> dict[str, Any]:
    """Train, evaluate, and write `runs/<key>.parquet` and then `runs/<key>.json`.

    Each file appears complete or not at all. The JSON comes last and marks a finished run.

    Args:
        run: The run.
        folder: The folder of the study, which is created if needed.
        threads: Threads of torch.
        tracking: Where the run is logged in W&B; None for no logging.

    Returns:
        The record in the JSON file.

    Raises:
        ValueError: A setting is wrong.
    """
    torch.set_num_threads(threads)
    # Without the lines on devices and limits of each run.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    # Before the training, so that a failed login costs no time.
    with tracked(tracking, run.key, run.settings) as log:
        report, facts = _measure(run)
        log(report.values)
    record = {"settings": run.settings, "metrics": report.values, "populations": report.populations, **facts}
    text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False)
    path = folder / "runs" / run.key
    write_whole(_with_ending(path, ".parquet"), report.sessions.write_parquet)
    write_whole(_with_ending(path, ".json"), lambda place: place.write_text(text, encoding="utf-8"))
    return record


def read_record(run: Run, folder: Path) -> dict[str, Any] | None:
    """Return the record of an earlier `execute`.

    Args:
        run: The run.
        folder: The folder of the study.

    Returns:
        The record; None if there is none, or its files are damaged.
    """
    path = folder / "runs" / run.key
    if not _with_ending(path, ".parquet").is_file():
        return None
    try:
        record = json.loads(_with_ending(path, ".json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("metrics"), Mapping):
        return None
    return record


def _measure(run: Run) -> tuple[EvaluationReport, dict[str, Any]]:
    recipe = run.recipe
    seed_everything(run.seed, verbose=False)
    variant = find_variant(run.variant)
    data = make_data(run.dataset, run.seed, run.sessions, variant.data_settings)
    module = SkipCLModule(
        *run.build_parts(),
        num_items=data.num_items,
        embedding_size=EMBEDDING_SIZE,
        feedback_input=variant.feedback_input,
        top_k=TOP_K,
        learning_rate=recipe.learning_rate,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=run.epochs,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    started = time.perf_counter()
    trainer.fit(module, data)
    facts = {
        "seconds": time.perf_counter() - started,
        "parameters": sum(weights.numel() for weights in module.parameters()),
        "items": data.num_items,
        "torch": torch.__version__,
    }
    # No intervals over sessions, because the study has intervals over seeds.
    return evaluate(module, data, name=run.key, top_k=TOP_K, num_resamples=0), facts


def _with_ending(path: Path, ending: str) -> Path:
    # Not `with_suffix`, which would cut the weight at its dot.
    return path.with_name(path.name + ending)
