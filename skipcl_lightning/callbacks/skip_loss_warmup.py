"""Callback that warms up λ, the weight of the skip loss."""

import math
from typing import Any, Literal, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from skipcl_lightning._checks import check_choice, check_integer, check_number
from skipcl_lightning.callbacks.protocol import named_heads

__all__ = ["SkipLossWarmup"]

Shape = Literal["linear", "cosine"]


class SkipLossWarmup(Callback):
    r"""Callback that raises λ from 0 to the head's own `weight` over the first steps.

    After s optimizer steps, the weight is

    $$
    \lambda(s) = \lambda \cdot \min(1, s / S) \quad \text{or} \quad
    \lambda \cdot (1 - \cos(\pi \min(1, s / S))) / 2
    $$

    The module needs a `skip_head` whose `weight` is a number that the head reads in each step, as in this
    package. In a `CombinedHead`, the callback sets the weight of each head. When the fit ends, even by an
    error, it restores the original weights.

    Args:
        steps: S, optimizer steps, at least 1.
        fraction: S as a share of all optimizer steps, in (0, 1]; replaces `steps`.
        shape: `linear` (first formula) or `cosine` (second).

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range, or not exactly one of `steps` and `fraction` is given. When the
            fit starts: there is no head, a head has no weight, or `fraction` is given for endless training.

    Examples:
        >>> warmup = SkipLossWarmup(steps=100, shape="cosine")
        >>> warmup.factor_at(0, 100), round(warmup.factor_at(50, 100), 2), warmup.factor_at(500, 100)
        (0.0, 0.5, 1.0)
    """

    def __init__(
        self, *, steps: int | None = None, fraction: float | None = None, shape: Shape = "linear"
    ) -> None:
        check_choice("shape", shape, get_args(Shape))
        if (steps is None) == (fraction is None):
            raise ValueError(
                f"`steps` or `fraction` must be given, and not both, got steps={steps!r} and "
                f"fraction={fraction!r}. `fraction=0.1` takes the first tenth of the training."
            )
        if steps is not None:
            check_integer("steps", steps)
        if fraction is not None:
            check_number("fraction", fraction, minimum=0, maximum=1, open_minimum=True)
        self.steps = steps
        self.fraction = fraction
        self.shape: Shape = shape
        self._length = 1
        self._own_weights: dict[nn.Module, float] = {}

    def factor_at(self, step: int, length: int) -> float:
        """Return the factor of λ, in [0, 1].

        Args:
            step: Optimizer steps done so far, at least 0.
            length: S.

        Returns:
            The factor.
        """
        progress = min(1.0, step / length)
        return progress if self.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the heads and their weights.

        Raises:
            TypeError: A head's weight is not a number.
            ValueError: As for the class.
        """
        heads = named_heads(pl_module)
        if not heads:
            raise ValueError(
                "`skip_head` must be a head with a `weight` for SkipLossWarmup, got "
                f"{type(pl_module).__name__} without a head. Give the module one, or leave the callback out."
            )
        self._length = self._count_steps(trainer)
        self._own_weights = {head: _own_weight(head) for head in heads.values()}

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Set λ for the next step."""
        self._scale_weights(self.factor_at(trainer.global_step, self._length))

    def on_fit_end(self, *_: Any) -> None:
        """Restore the original weights."""
        self._scale_weights(1.0)
        self._own_weights = {}

    def on_exception(self, *_: Any) -> None:
        """Restore the original weights; Lightning does not call `on_fit_end` after an error."""
        self.on_fit_end()

    def _scale_weights(self, factor: float) -> None:
        for head, weight in self._own_weights.items():
            head.weight = weight * factor  # type: ignore[assignment]  # torch: a tensor or a module

    def _count_steps(self, trainer: Trainer) -> int:
        if self.fraction is None:
            return self.steps or 1
        total = trainer.estimated_stepping_batches
        if math.isinf(total):
            raise ValueError(
                f"`fraction` must be a share of a training that ends, got {self.fraction} of an endless one. "
                "Give the trainer `max_steps` or `max_epochs`, or use `steps`."
            )
        return max(1, round(self.fraction * total))


def _own_weight(head: nn.Module) -> float:
    """Return λ, or raise if a schedule cannot set it."""
    name = type(head).__name__
    weight: Any = getattr(head, "weight", None)
    if weight is None:
        raise ValueError(
            f"`skip_head` must have a `weight` for SkipLossWarmup, got {name} without. Multiply its loss by "
            "a number `weight` of its own."
        )
    check_number("weight", weight, minimum=0)
    return float(weight)
