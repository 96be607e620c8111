"""What a run stands on: its data, and how it is trained."""

from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.data.vocabulary import fingerprint_vocabulary

__all__ = ["RunFacts"]


class RunFacts(Callback):
    """Writes counts and drops of the data, and the trainer's settings, into the configuration of the run.

    Every logger gets them beside the module's own settings, which Lightning writes: `data` holds how many
    sessions and items there are, what was dropped and why, how many targets training never saw, and a digest
    of the vocabulary; `trainer` what decides how long and how it trains. Written once, as the run begins.

    Raises:
        TypeError: As the run begins: the data is not from a `SessionDataModule`.

    Examples:
        >>> callbacks = [RunFacts()]
    """

    def setup(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002 - Lightning's signature
        stage: str,  # noqa: ARG002
    ) -> None:
        """Write them.

        Args:
            trainer: Lightning's.
            pl_module: Unused.
            stage: Unused.

        Raises:
            TypeError: As for the class.
        """
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
    """Plain values, without any of the data itself."""
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
