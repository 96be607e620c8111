"""Pairs of a target and the skipped items before it."""

import torch
from torch import Tensor

from skipcl_lightning._checks import check_shape
from skipcl_lightning.batch import PADDING_INDEX

__all__ = ["skip_pair_mask", "skip_pair_scores"]


def skip_pair_mask(target: Tensor, items: Tensor, skip_mask: Tensor) -> Tensor:
    """Return which skipped items are paired with the target after them.

    A skipped item that is the target, or that the session also listens to, has no pair.

    Args:
        target: [N] int64 in 1..V.
        items: [N, L] int64, the items before the target; 0 is padding.
        skip_mask: [N, L] bool, True at skipped items.

    Returns:
        [N, L] bool.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Examples:
        >>> items, skipped = torch.tensor([[1, 3, 3]]), torch.tensor([[True, True, False]])
        >>> skip_pair_mask(torch.tensor([2]), items, skipped)
        tensor([[ True, False, False]])
    """
    sizes = check_shape("target", target, "N", dtype=torch.int64)
    sizes = check_shape("items", items, "N L", sizes, dtype=torch.int64)
    check_shape("skip_mask", skip_mask, "N L", sizes, dtype=torch.bool)
    listened = torch.where(skip_mask, PADDING_INDEX, items)
    also_listened = (items[:, :, None] == listened[:, None, :]).any(dim=2)
    return skip_mask & ~also_listened & (items != target[:, None])


@torch.no_grad()
def skip_pair_scores(
    query: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    items: Tensor,
    skip_mask: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scores of each target and of its session's items, for `PairwiseSkipAccuracy`.

    Scores are float32, also under autocast.

    Args:
        query: [N, D] floating point, the sessions before the target.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        target: [N] int64 in 1..V.
        items: [N, L] int64, the items before the target; 0 is padding.
        skip_mask: [N, L] bool, True at skipped items.

    Returns:
        The scores of the targets [N] and of the items [N, L], and [N, L] bool: the pairs.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Examples:
        >>> table = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> items, skipped = torch.tensor([[1, 3, 3]]), torch.tensor([[True, True, False]])
        >>> scores = skip_pair_scores(torch.ones(1, 1), table, torch.tensor([2]), items, skipped)
        >>> scores[0], scores[1], scores[2]
        (tensor([2.]), tensor([[1., 3., 3.]]), tensor([[ True, False, False]]))
    """
    sizes = check_shape("query", query, "N D", floating=True)
    check_shape("item_embeddings", item_embeddings, "V+1 D", sizes, floating=True)
    check_shape("target", target, "N", sizes, dtype=torch.int64)
    pairs = skip_pair_mask(target, items, skip_mask)
    candidates = item_embeddings[torch.cat([target[:, None], items], dim=1)]  # [N, 1 + L, D]
    # Not a matrix product, which may round equal rows differently and so change ties.
    scores = (candidates.float() * query[:, None].float()).sum(dim=2)
    return scores[:, 0], scores[:, 1:], pairs
