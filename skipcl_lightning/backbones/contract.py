"""The contract of backbones, checked on a small input before training."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = [
    "check_backbone",
    "evaluation_mode",
    "is_causal",
    "takes_argument",
]

_LENGTH = 4


def is_causal(backbone: nn.Module) -> bool:
    """Return whether a backbone declares that its outputs depend only on earlier positions.

    Args:
        backbone: Any backbone.

    Returns:
        Its `causal`; True without one.

    Examples:
        >>> is_causal(nn.Identity())
        True
    """
    return bool(getattr(backbone, "causal", True))


def takes_argument(name: str, *functions: Callable[..., object]) -> bool:
    """Return whether all functions declare an argument; False if the signature of one is unknown."""
    try:
        return all(name in inspect.signature(function).parameters for function in functions)
    except ValueError:  # scripted and traced modules have no signature
        return False


def check_backbone(backbone: nn.Module, embedding_size: int) -> None:
    """Raise unless a backbone has the right signature and sees only what it may see.

    A causal backbone must not see later positions. One with `causal = False` must not see padding. It runs
    without gradients, in evaluation mode, on two short random sessions, and is restored afterwards. A
    backbone with parameters on the meta device is not checked.

    Args:
        backbone: Any module with `forward(x [B, L, D], valid_mask [B, L]) -> [B, L, D]`, and optionally
            `causal` (True without it) and `max_length`.
        embedding_size: D.

    Raises:
        TypeError: It is no module, or does not return a tensor.
        ValueError: The output has another shape or is not finite, or depends on what must not be seen.

    Examples:
        >>> class Echo(nn.Module):
        ...     def forward(self, x, valid_mask):
        ...         return x.flip(1)
        >>> check_backbone(Echo(), 8)
        Traceback (most recent call last):
            ...
        ValueError: `backbone` must be causal, got Echo, whose output at a track depends on later ones. ...
    """
    if not isinstance(backbone, nn.Module):
        raise TypeError(f"`backbone` must be a torch module, got {type(backbone).__name__}.")
    first = next(backbone.parameters(), torch.empty(0))
    if first.is_meta:
        return
    length = min(_LENGTH, getattr(backbone, "max_length", None) or _LENGTH)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, length, embedding_size, generator=generator).to(first.device)
    changed = x.clone()
    changed[:, -1] = torch.randn(2, embedding_size, generator=generator).to(first.device)
    valid_mask = torch.ones(2, length, dtype=torch.bool, device=first.device)
    if not is_causal(backbone):
        valid_mask[:, -1] = length == 1
    output, output_of_changed = _run(backbone, x, valid_mask), _run(backbone, changed, valid_mask)
    if torch.allclose(output[:, :-1], output_of_changed[:, :-1], rtol=1e-3, atol=1e-4):
        return
    name = type(backbone).__name__
    if is_causal(backbone):
        raise ValueError(
            f"`backbone` must be causal, got {name}, whose output at a track depends on later ones. "
            "Mask what comes later, or set `causal = False` on it: it is then trained by the cloze task."
        )
    raise ValueError(
        f"`backbone` must look at real tracks only, got {name}, whose output depends on what stands at "
        "padding. Mask the keys where `valid_mask` is False."
    )


@torch.no_grad()
def _run(backbone: nn.Module, x: Tensor, valid_mask: Tensor) -> Tensor:
    try:
        with evaluation_mode(backbone):
            output = backbone(x, valid_mask)
    except RuntimeError as error:
        raise ValueError(
            f"`backbone` must take x [B, L, D={x.shape[2]}] and valid_mask [B, L], got from "
            f"{type(backbone).__name__}: {error}. Is its embedding size the module's `embedding_size`?"
        ) from error
    if not isinstance(output, Tensor):
        raise TypeError(f"`backbone` must return a tensor [B, L, D], got {type(output).__name__}.")
    if output.shape != x.shape or not output.isfinite().all():
        found = list(output.shape) if output.shape != x.shape else "values that are not finite"
        raise ValueError(f"`backbone` must return finite values of shape {list(x.shape)}, got {found}.")
    return output


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and restore each sub-module's own mode at the end."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
