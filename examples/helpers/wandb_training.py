"""One W&B run: training on simulated sessions with every callback, and the test."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.callbacks import (
    CheckpointArtifact,
    EmbeddingDiagnostics,
    RankPlot,
    RecommendationTable,
    RunFacts,
    SkipLossWarmup,
    TrainingSignals,
)
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import SkipInfoNCE

MONITOR = "val/ndcg@20"


def train_with_wandb(
    *,
    output: Path = Path("runs"),
    wandb: Literal["offline", "online"] = "offline",
    group: str | None = None,
    sessions: int = 2000,
    items: int = 500,
    epochs: int = 8,
    embedding_size: int = 64,
    weight: float = 0.1,
    temperature: float = 0.1,
    learning_rate: float = 0.003,
    warmup: float = 0.1,
    accelerator: str = "auto",
    seed: int = 0,
    smoke: bool = False,
) -> dict[str, float]:
    """Train SASRec with the skip-contrastive head and all callbacks, and test it, in one W&B run.

    Args:
        output: The folder for checkpoints and W&B's files.
        wandb: Where to log the run; offline needs no account, and `wandb sync` uploads it later.
        group: The run's group, such as a sweep's name.
        sessions: Simulated sessions.
        items: Simulated items.
        epochs: Epochs of training.
        embedding_size: The size of the item embeddings.
        weight: λ, the weight of the skip-contrastive loss.
        temperature: τ of the skip-contrastive loss.
        learning_rate: The learning rate of AdamW.
        warmup: The share of the training steps during which λ rises from 0.
        accelerator: The accelerator of Lightning's Trainer.
        seed: Random seed of simulation, initialisation and shuffling.
        smoke: Quick check that everything works: few sessions, one epoch.

    Returns:
        The best validation NDCG@20, and the test metrics of its checkpoint.
    """
    if smoke:
        sessions, items, epochs, embedding_size = 60, 40, 1, 8
    seed_everything(seed)
    data = SessionDataModule(
        simulate_sessions(sessions, num_items=items, num_moods=8, seed=seed), batch_size=64, max_length=20
    )
    module = SkipCLModule(
        SASRec(embedding_size, max_length=20),
        SkipInfoNCE(weight=weight, temperature=temperature),
        num_items=data.num_items,
        embedding_size=embedding_size,
        learning_rate=learning_rate,
    )
    output.mkdir(parents=True, exist_ok=True)
    with wandb_run(output, offline=wandb == "offline", group=group) as logger:
        best = ModelCheckpoint(
            dirpath=output / "checkpoints" / str(logger.version), monitor=MONITOR, mode="max"
        )
        callbacks: list[Callback] = [
            best,
            CheckpointArtifact(),
            RunFacts(),
            LearningRateMonitor("step"),
            TrainingSignals(),
            SkipLossWarmup(fraction=warmup),
            EmbeddingDiagnostics(),
            RecommendationTable(),
            RankPlot(),
        ]
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=epochs,
            logger=logger,
            callbacks=callbacks,
            log_every_n_steps=1,
        )
        trainer.fit(module, data)
        (tested,) = trainer.test(module, data, ckpt_path="best", weights_only=True)
        print(f"Checkpoint: {best.best_model_path}")
        return {MONITOR: float(best.best_model_score or 0.0), **tested}


@contextmanager
def wandb_run(output: Path, *, offline: bool, group: str | None) -> Iterator[WandbLogger]:
    """Open a W&B run that ends with the context, so that the next training starts another run.

    Args:
        output: The folder for W&B's files.
        offline: Whether to upload nothing.
        group: The run's group.

    Yields:
        The logger of the run.
    """
    logger = WandbLogger(project="skipcl", save_dir=output, offline=offline, group=group)
    run = logger.experiment
    try:
        yield logger
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
