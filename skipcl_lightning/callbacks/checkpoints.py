"""Callbacks that keep the best checkpoint, and that upload it to W&B."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from skipcl_lightning._files import newest_first, newest_whole
from skipcl_lightning.data import SessionEncoder
from skipcl_lightning.data.vocabulary import fingerprint_vocabulary

__all__ = ["BestCheckpoint", "CheckpointArtifact"]


class BestCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, which keeps the latest state while its metric does not exist.

    `ModelCheckpoint` raises an error if its metric is missing, for example because `max_steps` ends a run
    before its first validation, or `limit_val_batches` leaves no target for the metric. The first checkpoint
    with the metric replaces that state, also in a run that resumes; with `save_top_k=-1` all are kept.

    `Trainer.fit(ckpt_path="last")` skips a damaged file, takes the newest whole one of the folder, and warns.

    The arguments are those of `ModelCheckpoint`.

    Examples:
        >>> BestCheckpoint(monitor="val/ndcg@20", mode="max", filename="best", save_last=True).monitor
        'val/ndcg@20'
    """

    # The file that was saved without the metric, until one with it is saved.
    _unmeasured_path = ""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `ModelCheckpoint`, and the file that was saved without the metric."""
        return {**super().state_dict(), "unmeasured_path": self._unmeasured_path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint; see `ModelCheckpoint`."""
        super().load_state_dict(state_dict)
        if self.dirpath == state_dict.get("dirpath", self.dirpath):
            self._unmeasured_path = state_dict.get("unmeasured_path", "")

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        replaced = self._unmeasured_path
        if self.save_top_k == 0 or self.monitor is None or self.monitor in monitor_candidates:
            super()._save_topk_checkpoint(trainer, monitor_candidates)
            self._unmeasured_path = ""
        elif self.save_top_k == -1 or not self.best_k_models:
            self._save_unmeasured(trainer, monitor_candidates)
        # Otherwise the best one so far is kept.
        kept = {self._unmeasured_path, *self.best_k_models}
        if (
            replaced
            and replaced not in kept
            and self._should_remove_checkpoint(trainer, replaced, self.best_model_path)
        ):
            self._remove_checkpoint(trainer, replaced)

    def _save_unmeasured(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        path = self._get_metric_interpolated_filepath_name(monitor_candidates, trainer)
        # Both paths are set before the file is saved, because they are part of the state in it.
        if not self.best_k_models:
            self.best_model_path = path
        if self.save_top_k != -1:
            self._unmeasured_path = path
        self._save_checkpoint(trainer, path)

    def _get_metric_interpolated_filepath_name(
        self, monitor_candidates: dict[str, Tensor], trainer: Trainer, del_filepath: str | None = None
    ) -> str:
        """Return a name that no other file has, except the one that the new file replaces."""
        replaced = del_filepath or self._unmeasured_path
        return super()._get_metric_interpolated_filepath_name(monitor_candidates, trainer, replaced)

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """Return the newest whole one of the files that Lightning finds, or else of their folder."""
        found = [Path(path) for path in super()._find_last_checkpoints(trainer)]
        newest = newest_first(found)
        others = {path for folder in {path.parent for path in found} for path in folder.glob("*.ckpt")}
        whole = newest_whole([*newest, *newest_first(others.difference(found))])
        # Without a whole one, reading the newest tells what is wrong with it.
        return {str(path) for path in (newest[:1] if whole is None else [whole])}


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
            found = trainer.checkpoint_callback
            raise ValueError(
                "`callbacks` must have a ModelCheckpoint beside CheckpointArtifact, got "
                f"{'none' if found is None else type(found).__name__}. Add one, or leave the artifact out."
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
