"""What any backbone must do, checked on a small input before the first epoch is wasted."""

import torch
from torch import Tensor, nn

__all__ = ["check_backbone"]

_LENGTH = 4


def check_backbone(backbone: nn.Module, embedding_size: int) -> None:
    """Raise unless a backbone has the right signature and sees no track that comes later.

    It is run without gradients, in evaluation mode, on two short random sessions; afterwards it is as it
    was. A backbone with parameters on the meta device is taken on trust.

    Args:
        backbone: Any module with ``forward(x [B, L, D], valid_mask [B, L]) -> [B, L, D]``.
        embedding_size: D.

    Raises:
        TypeError: It is no module, or does not return a tensor.
        ValueError: The output has another shape or is not finite, or an output depends on later tracks.

    Example:
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
    name = type(backbone).__name__
    if not getattr(backbone, "causal", True):
        raise ValueError(
            f"`backbone` must be causal, got {name} with `causal = False`. "
            "A bidirectional one has seen the track that it should predict."
        )
    first = next(backbone.parameters(), torch.empty(0))
    if first.is_meta:
        return
    length = min(_LENGTH, getattr(backbone, "max_length", _LENGTH))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, length, embedding_size, generator=generator).to(first.device)
    changed = x.clone()
    changed[:, -1] = torch.randn(2, embedding_size, generator=generator).to(first.device)
    valid_mask = torch.ones(2, length, dtype=torch.bool, device=first.device)
    output, output_of_changed = _run(backbone, x, valid_mask), _run(backbone, changed, valid_mask)
    if not torch.allclose(output[:, :-1], output_of_changed[:, :-1], rtol=1e-3, atol=1e-4):
        raise ValueError(
            f"`backbone` must be causal, got {name}, whose output at a track depends on later ones. "
            "Mask what comes later: otherwise it sees the track that it should predict."
        )


@torch.no_grad()
def _run(backbone: nn.Module, x: Tensor, valid_mask: Tensor) -> Tensor:
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        output = backbone(x, valid_mask)
    except RuntimeError as error:
        raise ValueError(
            f"`backbone` must take x [B, L, D={x.shape[2]}] and valid_mask [B, L], got from "
            f"{type(backbone).__name__}: {error}. Is its embedding size the module's `embedding_size`?"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not isinstance(output, Tensor):
        raise TypeError(f"`backbone` must return a tensor [B, L, D], got {type(output).__name__}.")
    if output.shape != x.shape or not output.isfinite().all():
        found = list(output.shape) if output.shape != x.shape else "values that are not finite"
        raise ValueError(f"`backbone` must return finite values of shape {list(x.shape)}, got {found}.")
    return output
