"""Checks that stop a run which cannot end well: pure float16 on a CPU, and weights that are not finite."""

from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["DivergenceWatch", "check_precision"]

_NEVER = torch.iinfo(torch.int64).max


class DivergenceWatch:
    """The first step of a run at which each part of the loss was NaN or infinite.

    A step adds a few small operations and no copy to the host; only `check` waits for the device.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.first_steps: Tensor | None = None

    def update(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Take the losses of a step.

        Args:
            losses: Scalars by name, the same names in each step.
            step: The number of optimizer steps before.
        """
        values = torch.stack([value.detach().float() for value in losses.values()])
        if self.first_steps is None:
            self.names = list(losses)
            self.first_steps = torch.full(values.shape, _NEVER, device=values.device)
        self.first_steps = torch.where(values.isfinite(), self.first_steps, self.first_steps.clamp(max=step))

    def check(self, module: LightningModule) -> None:
        """Stop a run whose weights are no longer finite.

        A loss that is not finite is no error by itself: float16 with a scaled loss skips such steps.

        Args:
            module: The module that is trained.

        Raises:
            ValueError: A weight is NaN or infinite.
        """
        weights = dict(module.named_parameters())
        finite = torch.stack([_is_finite(weight) for weight in weights.values()]).tolist()
        bad = [name for name, good in zip(weights, finite, strict=True) if not good]
        if not bad:
            return
        steps = [] if self.first_steps is None else self.first_steps.tolist()
        first = min(steps, default=_NEVER)
        parts = [name for name, step in zip(self.names, steps, strict=True) if step == first]
        where = f"since step {first} in {', '.join(parts)}" if first < _NEVER else "in no loss yet"
        raise ValueError(
            "`learning_rate` must be one at which the training does not diverge, got NaN or infinite values "
            f"{where} and in {len(bad)} of {len(weights)} weights, such as {bad[0]!r}. Lower it, raise "
            "`warmup_steps`, give the Trainer `gradient_clip_val=1.0` or a wider precision, and resume "
            "from a checkpoint before that step."
        )


def check_precision(trainer: Trainer) -> None:
    """Raise if a run would train in pure float16 on a CPU.

    Args:
        trainer: The Trainer that is about to fit.

    Raises:
        ValueError: It would.
    """
    if trainer.precision == "16-true" and trainer.strategy.root_device.type == "cpu":
        raise ValueError(
            "`precision` must not be '16-true' where a CPU trains, got '16-true'. The optimizer's small "
            "numbers are 0 in float16. Take 'bf16-true', 'bf16-mixed' or '32-true'."
        )


def _is_finite(weight: Tensor) -> Tensor:
    finite = weight.detach().isfinite().all()
    return finite.full_tensor() if isinstance(finite, DTensor) else finite
