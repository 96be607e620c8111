"""Callback that chooses the weight of the training set's transitions."""

from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from skipcl_lightning.callbacks.protocol import skipcl_parts
from skipcl_lightning.evaluation.transition_weight import (
    ChoosingMetric,
    check_choosing,
    choose_transition_weight,
)

__all__ = ["ChooseTransitionWeight"]


class ChooseTransitionWeight(Callback):
    """Callback that sets `transition_weight` before each validation, by `choose_transition_weight`.

    The validation metrics and the checkpoints that follow have the chosen weight, which is logged as
    `transition_weight`. It does nothing for a module that is built with a `transition_weight` of 0. In a run
    of several processes, each process ranks the whole validation set.

    Args:
        weights: The weights to choose from, each at least 0.
        metric: The metric whose largest value decides, as in `choose_transition_weight`.
        max_targets: Approximate number of validation targets that are ranked for the choice; None for all.

    Raises:
        TypeError: A setting has the wrong type, or, when a run starts, the module is no `SkipCLModule` or its
            data no `SessionDataModule`.
        ValueError: A setting is out of range, or the metric unknown. When it measures: the validation set has
            no target for the metric.

    Examples:
        >>> callbacks = [ChooseTransitionWeight(weights=(0.0, 2.0, 4.0))]
    """

    def __init__(
        self,
        *,
        weights: Sequence[float] = (0.0, 1.0, 2.0, 4.0, 8.0),
        metric: ChoosingMetric = "ndcg@10",
        max_targets: int | None = 4096,
    ) -> None:
        check_choosing(weights, metric, max_targets)
        self.weights = tuple(weights)
        self.metric: ChoosingMetric = metric
        self.max_targets = max_targets

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise `TypeError` unless the module and its data are such that have transitions."""
        if stage == "fit":
            skipcl_parts(trainer, pl_module, self)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the weight; not in the sanity check."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        module, data = skipcl_parts(trainer, pl_module, self)
        if module.model.transitions is not None:
            # A loader draws a seed from torch's generator, on which the training depends.
            with torch.random.fork_rng(devices=[]):
                choose_transition_weight(
                    module, data, weights=self.weights, metric=self.metric, max_targets=self.max_targets
                )
            # Sums on a device may be rounded otherwise on another.
            module.transition_weight = float(trainer.strategy.broadcast(module.transition_weight))
            module.log("transition_weight", module.transition_weight, sync_dist=True)
