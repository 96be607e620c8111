"""Callback that uploads the best checkpoint to W&B."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from skipcl_lightning.data import SessionEncoder
from skipcl_lightning.data.vocabulary import fingerprint_vocabulary

__all__ = ["CheckpointArtifact"]


class CheckpointArtifact(Callback):
    """Callback that logs the best checkpoint as a W&B artifact.

    The checkpoint contains the vocabulary, so `Recommender.from_checkpoint` needs no other file. The
    artifact's metadata contain the number of items and a digest of the vocabulary. Do not also set
    `WandbLogger(log_model=True)`: it saves checkpoints too, but not offline and without facts about the
    items. Loggers other than W&B receive nothing.

    Raises:
        ValueError: When the fit starts, if there is a `WandbLogger` but no `ModelCheckpoint`.

    Examples:
        >>> callbacks = [ModelCheckpoint(monitor="val/ndcg@20", mode="max"), CheckpointArtifact()]
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Raise `ValueError` if there is a `WandbLogger` but no `ModelCheckpoint`."""
        if _wandb_loggers(trainer) and not isinstance(trainer.checkpoint_callback, ModelCheckpoint):
            raise ValueError(
                "`callbacks` must have a ModelCheckpoint beside CheckpointArtifact, got "
                f"{_describe(trainer.checkpoint_callback)}. Add one, or leave the artifact out."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the best checkpoint, or the last one if there is no best."""
        saved = trainer.checkpoint_callback
        if not trainer.is_global_zero or not isinstance(saved, ModelCheckpoint):
            return
        path = saved.best_model_path or saved.last_model_path
        for logger in _wandb_loggers(trainer) if path else ():
            import wandb

            run = logger.experiment
            artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=_metadata(saved, pl_module))
            artifact.add_file(path, name=Path(path).name)
            run.log_artifact(artifact, aliases=["best"])


def _metadata(saved: ModelCheckpoint, module: LightningModule) -> dict[str, Any]:
    score = saved.best_model_score
    metadata: dict[str, Any] = {
        "monitor": saved.monitor,
        "score": score.item() if isinstance(score, Tensor) else score,
        "module": type(module).__name__,
    }
    encoder = getattr(module, "encoder", None)
    if isinstance(encoder, SessionEncoder):
        metadata |= {
            "num_items": len(encoder.vocabulary),
            "vocabulary_sha256": fingerprint_vocabulary(encoder.vocabulary),
        }
    return metadata


def _wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def _describe(callback: Checkpoint | None) -> str:
    return "none" if callback is None else type(callback).__name__
