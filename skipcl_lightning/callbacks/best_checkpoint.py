"""A checkpoint of the best epoch, in runs of any length."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

__all__ = ["BestCheckpoint"]


class BestCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, which keeps the latest state while its metric does not exist.

    `ModelCheckpoint` raises an error if its metric is missing, for example because `max_steps` ends a run
    before its first validation, or `limit_val_batches` leaves no target for the metric.

    The arguments are those of `ModelCheckpoint`.

    Examples:
        >>> BestCheckpoint(monitor="val/ndcg@20", mode="max", filename="best", save_last=True).monitor
        'val/ndcg@20'
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this is the moment; see `ModelCheckpoint`."""
        with self._known_metric_only(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this is the moment; see `ModelCheckpoint`."""
        with self._known_metric_only(trainer):
            super().on_validation_end(trainer, pl_module)

    @contextmanager
    def _known_metric_only(self, trainer: Trainer) -> Iterator[None]:
        monitor = self.monitor
        if monitor not in trainer.callback_metrics:
            self.monitor = None
        try:
            yield
        finally:
            self.monitor = monitor
