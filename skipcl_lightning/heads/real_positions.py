"""The positions that have something to predict, where their number may be asked for and where not."""

import torch
from torch import Tensor

from skipcl_lightning._checks import check_shape
from skipcl_lightning.batch import PADDING_INDEX

__all__ = ["real_positions"]

_ROUND = 128


def real_positions(
    query: Tensor, target: Tensor, weight: Tensor | None = None, most_targets: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Only what has something to predict, since logits are what costs.

    How many places these are a GPU's host would have to wait for, and a compiled step would be compiled for.
    There as many take part as there may be targets, if that is known, or all; those without a target weigh
    nothing.

    Args:
        query: [B, L, D] floating point.
        target: [B, L] int64 in 0..V; 0 where there is nothing to predict.
        weight: [B, L] floating point above 0; None for alike.
        most_targets: No fewer than the places with a target; None if unknown.

    Returns:
        [N, D] queries, [N] targets in 1..V, and [N] weights, or None for alike.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Examples:
        >>> real_positions(torch.ones(1, 2, 1), torch.tensor([[0, 3]]))
        (tensor([[1.]]), tensor([3]), None)
    """
    sizes = check_shape("query", query, "B L D", floating=True)
    check_shape("target", target, "B L", sizes)
    mask = target != PADDING_INDEX
    if weight is not None:
        check_shape("weight", weight, "B L", sizes, floating=True)
    if query.device.type == "cpu" and not torch.compiler.is_compiling():
        return query[mask], target[mask], None if weight is None else weight[mask]
    share = (mask.to(torch.float32) if weight is None else weight * mask).flatten()
    query, target, mask = query.flatten(0, 1), target.flatten(), mask.flatten()
    if query.device.type == "cuda" and most_targets is not None and not torch.compiler.is_compiling():
        places, mask = _few_places(mask, most_targets)
        # An index would add its gradient up after a sort.
        query, target, share = query.index_select(0, places), target[places], share[places] * mask
    # Whatever stands there, NaN included, must not reach the sum through a zero factor.
    query = torch.where(mask[:, None], query, 0)
    # Not clamped: a negative target stays wrong, for the index kernels to refuse.
    return query, torch.where(target == PADDING_INDEX, PADDING_INDEX + 1, target), share


def _few_places(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """[N] int64 places where a [B * L] mask is True, and [N] bool: not one more, to fill the rest."""
    # Rounded up, so that memory of one size serves many batches.
    count = min(len(mask), -(-most // _ROUND) * _ROUND)
    places = torch.nonzero_static(mask, size=count, fill_value=0).squeeze(1)
    return places, torch.arange(count, device=mask.device) < mask.sum()
