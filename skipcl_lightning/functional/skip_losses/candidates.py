"""Negatives that come from outside an anchor's own session."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from skipcl_lightning._checks import check_shape
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.skip_losses.contrast import Contrast, is_distributed
from skipcl_lightning.functional.skip_losses.similarity import cosine

__all__ = ["Candidates", "candidate_similarity", "gather_candidates", "rejected_candidates", "unkept_mask"]


class Candidates(NamedTuple):
    """Items that the anchors of a batch may be compared with.

    Attributes:
        items: [C] int64 shared by all positions, or [B, L, C] for each position; in 0..V, 0 is no item.
        keys: [C, D] or [B, L, C, D] floating point, their embeddings.
        log_weight: [C] or [B, L, C] floating point, the logarithm of their weights; None for weights of 1.
    """

    items: Tensor
    keys: Tensor
    log_weight: Tensor | None = None


def rejected_candidates(keys: Tensor, items: Tensor, contrast: Contrast) -> Candidates:
    """Return the rejected items of a batch as negatives for all of its sessions.

    On a CPU only they are returned. On other devices all positions are, with item 0 where nothing is
    rejected, because the host would have to wait for their number.

    Args:
        keys: [B, L, D] floating point.
        items: [B, L] int64.
        contrast: The contrast of the same batch.

    Returns:
        [C] candidates.

    Examples:
        >>> from skipcl_lightning.functional import session_contrast
        >>> items = torch.tensor([[1, 2]])
        >>> contrast = session_contrast((items, torch.tensor([[1.0, -1.0]])))
        >>> rejected_candidates(torch.ones(1, 2, 3), items, contrast).items
        tensor([2])
    """
    if items.device.type == "cpu":
        mask = contrast.rejected_mask
        return Candidates(items[mask], keys[mask], contrast.log_weight[mask])
    rejected = torch.where(contrast.rejected_mask, items, PADDING_INDEX)
    return Candidates(rejected.flatten(), keys.flatten(0, 1), contrast.log_weight.flatten())


def candidate_similarity(
    name: str, query: Tensor, part: Candidates, temperature: float | Tensor, query_mask: Tensor
) -> Tensor:
    """Return cos(q, k) / τ of each position with shared candidates, or with its own: [B, L, C].

    `name` is the argument's name in errors; queries where `query_mask` [B, L] is False count as 0.
    """
    sizes = check_shape("query", query, "B L D")
    shape = "C" if part.items.dim() == 1 else "B L C"
    sizes = check_shape(f"{name}.items", part.items, shape, sizes, dtype=torch.int64)
    check_shape(f"{name}.keys", part.keys, f"{shape} D", sizes, floating=True)
    return cosine(query, part.keys, temperature, query_mask=query_mask)


def unkept_mask(part: Candidates, kept_items: Tensor) -> Tensor:
    """Return which candidates a session may be pushed from: those that it does not keep itself.

    `kept_items` [B, L] int64 are the items that each session does not reject; 0 elsewhere. The result is
    [B, 1, C] bool for shared candidates, else [B, L, C], and False at item 0.
    """
    shared = part.items.dim() == 1
    wanted = part.items.expand(len(kept_items), -1) if shared else part.items.flatten(1)
    kept = kept_items.sort(dim=1).values
    place = torch.searchsorted(kept, wanted.contiguous()).clamp(max=kept.shape[1] - 1)
    mask = (kept.gather(1, place) != wanted) & (wanted != PADDING_INDEX)
    return mask[:, None, :] if shared else mask.view(part.items.shape)


def gather_candidates(candidates: Candidates) -> Candidates:
    """Return the [C] candidates of all processes, filled up with item 0 to equal numbers.

    The gradient of each key is the sum over the losses of all processes. Together with the mean that DDP
    takes over processes, this is the gradient of `reduce_anchors` with `gather_ranks`.
    """
    if not is_distributed():
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


def _gather(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def _fill(tensor: Tensor, size: int) -> Tensor:
    """Append zeros up to `size` rows."""
    missing = tensor.new_zeros(size - len(tensor), *tensor.shape[1:])
    return torch.cat([tensor, missing])
