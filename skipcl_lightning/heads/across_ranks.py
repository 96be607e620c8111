"""Negatives and means over all processes of a distributed run, with the gradients of a single one."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from skipcl_lightning.functional.contrast import weighted_mean
from skipcl_lightning.functional.contrast_candidates import Candidates

__all__ = ["gather_candidates", "mean_across_ranks"]


def gather_candidates(candidates: Candidates) -> Candidates:
    """The candidates of all processes; outside a distributed run, the same ones.

    The gradient of each key is the sum of what all processes' losses send to it, which DDP's mean over
    processes then makes that of `mean_across_ranks`.

    Args:
        candidates: [C] of this process; C may differ from process to process.

    Returns:
        All of them, this process's among them.

    Examples:
        >>> one = Candidates(torch.tensor([3]), torch.ones(1, 2), torch.zeros(1))
        >>> gather_candidates(one).items
        tensor([3])
    """
    if not _is_distributed():
        return candidates
    size = torch.tensor(len(candidates.items), device=candidates.items.device)
    dist.all_reduce(size, op=dist.ReduceOp.MAX)
    most = int(size)
    weight = torch.zeros_like(candidates.items, dtype=candidates.keys.dtype)
    weight = weight if candidates.log_weight is None else candidates.log_weight
    return Candidates(
        _gather(_fill(candidates.items, most)),
        _GatherWithGradient.apply(_fill(candidates.keys, most)),  # type: ignore[no-untyped-call]
        _gather(_fill(weight, most)),
    )


def mean_across_ranks(losses: Tensor, weights: Tensor) -> Tensor:
    """The mean over the anchors of all processes, as each process's share of it under DDP.

    DDP averages gradients over W processes; each process's value is W times its own sum divided by the
    weights of all, so that the average is the mean over all anchors, however unevenly they are spread.

    Args:
        losses: Of this process's anchors.
        weights: As many.

    Returns:
        A scalar.

    Examples:
        >>> mean_across_ranks(torch.tensor([1.0, 3.0]), torch.ones(2))
        tensor(2.)
    """
    if not _is_distributed():
        return weighted_mean(losses, weights)
    total = weights.detach().sum()
    dist.all_reduce(total)
    return dist.get_world_size() * (losses * weights).sum() / torch.where(total > 0, total, 1)


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keys: Tensor) -> Tensor:
        ctx.size = len(keys)
        return _gather(keys)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.size
        return gradient[start : start + ctx.size]


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gather(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def _fill(tensor: Tensor, size: int) -> Tensor:
    """As many rows as the largest process has; item 0 is none."""
    missing = tensor.new_zeros(size - len(tensor), *tensor.shape[1:])
    return torch.cat([tensor, missing])
