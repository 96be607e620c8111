"""Callback that logs gradient norms, λ and τ."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from skipcl_lightning.callbacks.protocol import named_heads
from skipcl_lightning.heads import CombinedHead

__all__ = ["TrainingSignals"]


class TrainingSignals(Callback):
    """Callback that logs gradient norms before clipping, λ and τ to any logger.

    - `train/gradient_norm` is the norm over all parameters, without a loss scale.
    - `train/gradient_norm/<part>` is the norm of each direct part of the module.
    - `train/skip_weight` is λ and `train/temperature` is τ. The heads of a `CombinedHead` add `/<head>`. A
      missing head or temperature is not logged.

    For the learning rate, use Lightning's `LearningRateMonitor`. Values are computed only in logged steps,
    and the host never waits for them. If a strategy shards gradients, the norms are those of the first
    process's shard.

    Examples:
        >>> from lightning.pytorch.callbacks import LearningRateMonitor
        >>> callbacks = [LearningRateMonitor("step"), TrainingSignals()]
    """

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log the values if this step is logged."""
        if not _is_logged(trainer):
            return
        signals = _gradient_norms(pl_module) | _skip_signals(pl_module)
        for name, value in signals.items():
            pl_module.log(f"train/{name}", value)


def _is_logged(trainer: Trainer) -> bool:
    every: int = getattr(trainer, "log_every_n_steps", 1)
    # With several optimizers, `global_step` counts the steps of each.
    return every > 0 and (len(trainer.optimizers) > 1 or (trainer.global_step + 1) % every == 0)


def _gradient_norms(module: LightningModule) -> dict[str, Tensor]:
    """Return scalar norms by log key."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            # For a `SkipCLModule`, use the parts of its model: item table, backbone, feedback input.
            part = name.removeprefix("model.").partition(".")[0]
            parts.setdefault(part, []).append(_values(parameter.grad.detach()))
    if not parts:
        return {}
    norms = {name: torch.nn.utils.get_total_norm(gradients) for name, gradients in parts.items()}
    whole = torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms.values()]))
    return {"gradient_norm": whole} | {f"gradient_norm/{name}": norm for name, norm in norms.items()}


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _skip_signals(module: LightningModule) -> dict[str, Tensor | float]:
    """Return λ and τ of each head that has them, by log key."""
    signals = {f"skip_weight{key}": weight for key, weight in _weights(module).items()}
    for key, head in named_heads(module).items():
        temperature: Any = getattr(head, "temperature", None)
        if temperature is not None:
            signals[f"temperature{key}"] = temperature
    return signals


def _weights(module: LightningModule) -> dict[str, Tensor | float]:
    head: Any = getattr(module, "skip_head", None)
    if head is None:
        return {}
    if isinstance(head, CombinedHead):
        return {f"/{name}": weight for name, weight in head.weights.items()}
    return {"": getattr(head, "weight", 1.0)}
