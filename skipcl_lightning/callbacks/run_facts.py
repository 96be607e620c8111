"""Callback that logs facts about the data and the trainer's settings."""

from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, Trainer

from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.data.vocabulary import fingerprint_vocabulary

__all__ = ["RunFacts"]


class RunFacts(Callback):
    """Callback that adds facts about the data and the trainer's settings to the run's configuration.

    Every logger receives them once, when a run starts, in addition to the module's own settings.

    - `data`: number of sessions and items, what was dropped and why, number of held-out targets not in the
      training set, and a digest of the vocabulary.
    - `trainer`: the settings that determine how the module is trained and for how long.

    Raises:
        TypeError: When a run starts, if the data is not a `SessionDataModule`.

    Examples:
        >>> callbacks = [RunFacts()]
    """

    def setup(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Log the facts, or raise `TypeError` if the data is not a `SessionDataModule`."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, SessionDataModule):
            raise TypeError(
                f"`datamodule` must be a SessionDataModule for RunFacts, got {type(data).__name__}. Pass one "
                "to the trainer, or leave the callback out and log facts of your own by "
                "`logger.log_hyperparams`."
            )
        facts = {"data": _describe_data(data), "trainer": _describe_trainer(trainer)}
        for logger in trainer.loggers:
            logger.log_hyperparams(facts)


def _describe_data(data: SessionDataModule) -> dict[str, Any]:
    """Return plain values, without the data."""
    return {
        "num_items": data.num_items,
        "num_sessions": data.num_sessions,
        "num_cold_targets": data.num_cold_targets,
        "drop_report": asdict(data.drop_report),
        "vocabulary_sha256": fingerprint_vocabulary(data.vocabulary),
        "batch_size": data.batch_size,
        "max_length": data.max_length,
        "input_length": data.input_length,
        "skip_threshold": data.skip_threshold,
        **data.mined_samples,
    }


def _describe_trainer(trainer: Trainer) -> dict[str, Any]:
    return {
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "precision": trainer.precision,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "num_processes": trainer.world_size,
    }
