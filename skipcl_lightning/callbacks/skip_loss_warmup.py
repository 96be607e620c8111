"""A schedule for λ, the weight of the skip loss."""

import math
from typing import Any, Literal, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from skipcl_lightning._checks import check_choice, check_integer, check_number
from skipcl_lightning.callbacks.protocol import named_heads

__all__ = ["SkipLossWarmup"]

Shape = Literal["linear", "cosine"]


class SkipLossWarmup(Callback):
    r"""Raises λ from 0 to the head's own `weight` over the first steps.

    $$
    \lambda(s) = \lambda \cdot \min(1, s / S) \quad \text{or} \quad
    \lambda \cdot (1 - \cos(\pi \min(1, s / S))) / 2
    $$

    after s optimizer steps. It needs a module with a `skip_head` whose `weight` is a number that is read
    anew in each step, as with the heads of this package; in a `CombinedHead` it sets each. When the fit
    ends, also by an error, the heads have their own weights again.

    Args:
        steps: S, optimizer steps, at least 1.
        fraction: In place of `steps`, S as a share of all optimizer steps, in (0, 1].
        shape: `linear` or `cosine`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range, or not exactly one of `steps` and `fraction` is given. When
            the fit starts: there is no head with a weight, or training has no end that a share could be
            taken of.

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
        """What λ is multiplied by.

        Args:
            step: Optimizer steps done so far, at least 0.
            length: S.

        Returns:
            In [0, 1].
        """
        progress = min(1.0, step / length)
        return progress if self.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the heads and what they weigh.

        Args:
            trainer: Lightning's.
            pl_module: The module.

        Raises:
            TypeError: A head's weight is no number.
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

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002 - Lightning's signature
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Set λ for the step that comes.

        Args:
            trainer: Lightning's.
            pl_module: The module.
            batch: Unused.
            batch_idx: Unused.
        """
        factor = self.factor_at(trainer.global_step, self._length)
        for head, weight in self._own_weights.items():
            _set_weight(head, weight * factor)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Give the heads their own weights back.

        Args:
            trainer: Lightning's.
            pl_module: The module.
        """
        self._restore()

    def on_exception(
        self,
        trainer: Trainer,  # noqa: ARG002 - Lightning's signature
        pl_module: LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Do what `on_fit_end` does, which Lightning leaves out after an error.

        Args:
            trainer: Lightning's.
            pl_module: The module.
            exception: The error.
        """
        self._restore()

    def _restore(self) -> None:
        for head, weight in self._own_weights.items():
            _set_weight(head, weight)
        self._own_weights = {}

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
    """λ, where a schedule can set it."""
    name = type(head).__name__
    weight: Any = getattr(head, "weight", None)
    if weight is None:
        raise ValueError(
            f"`skip_head` must have a `weight` for SkipLossWarmup, got {name} without. Multiply its loss by "
            "a number `weight` of its own."
        )
    check_number("weight", weight, minimum=0)
    return float(weight)


def _set_weight(head: nn.Module, weight: float) -> None:
    head.weight = weight  # type: ignore[assignment]  # torch types what a module holds as tensors and modules
