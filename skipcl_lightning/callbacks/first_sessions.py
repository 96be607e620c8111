"""Callback that sums values over the first sessions of each validation."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from skipcl_lightning.batch import SessionBatch

__all__ = ["FirstSessions"]


class FirstSessions(Callback):
    """Callback that adds up `measure` over the first sessions of each process, for `report`.

    Args:
        num_sessions: Approximate number of sessions per process and validation; whole batches are used.
        num_sums: The number of values that `measure` returns.
    """

    def __init__(self, num_sessions: int, num_sums: int) -> None:
        self.num_sessions = num_sessions
        self._num_sums = num_sums
        self._seen_sessions = 0
        # Not torchmetrics 1.9's MeanMetric: it makes the host check batches for NaN, or it forgets weights.
        self._sums = torch.zeros(num_sums)

    def measure(
        self, pl_module: LightningModule, batch: SessionBatch, target: Tensor, target_feedback: Tensor
    ) -> list[Tensor]:
        """Return the scalars that a batch of B sessions with targets adds to the sums."""
        raise NotImplementedError

    def report(self, pl_module: LightningModule, sums: Tensor) -> None:
        """Log what follows from the sums over all processes."""
        raise NotImplementedError

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Reset the sums."""
        self._seen_sessions = 0
        self._sums = torch.zeros(self._num_sums, device=pl_module.device)

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002 - Lightning's signature
        batch: Any,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Measure a batch, until `num_sessions` are reached."""
        if trainer.sanity_checking or self._seen_sessions >= self.num_sessions:
            return
        target, target_feedback = batch.target, batch.target_feedback
        if target is None or target_feedback is None:
            raise ValueError("`batch` must have targets, got none. Use a validation loader.")
        self._seen_sessions += len(batch)
        values = self.measure(pl_module, batch, target, target_feedback)
        self._sums += torch.stack([value.to(self._sums.dtype) for value in values])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the sums over all processes."""
        if not trainer.sanity_checking:
            sums: Tensor = trainer.strategy.reduce(self._sums, reduce_op="sum")
            self.report(pl_module, sums)
