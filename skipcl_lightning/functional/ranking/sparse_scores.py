"""Scores that a few items of each query get in addition to the inner product."""

from typing import NamedTuple

import torch
from torch import Tensor

from skipcl_lightning._checks import check_shape
from skipcl_lightning.batch import PADDING_INDEX

__all__ = ["SparseScores", "look_up_scores"]


class SparseScores(NamedTuple):
    """Additional scores of some items for each query; all other items get 0.

    Attributes:
        items: [N, S] int64 in 0..V, ascending in each row and different, but for 0, which is no item.
        scores: [N, S] float32, finite.
    """

    items: Tensor
    scores: Tensor


def look_up_scores(added: SparseScores, items: Tensor) -> Tensor:
    """Return the additional scores of given items.

    Args:
        added: The additional scores.
        items: [N, K] int64 in 0..V.

    Returns:
        [N, K] float32, 0 for an item without one.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Examples:
        >>> added = SparseScores(torch.tensor([[0, 2, 5]]), torch.tensor([[0.0, 1.5, 2.5]]))
        >>> look_up_scores(added, torch.tensor([[5, 1, 0, 2]]))
        tensor([[2.5000, 0.0000, 0.0000, 1.5000]])
    """
    sizes = check_sparse_scores(added)
    check_shape("items", items, "N K", sizes, dtype=torch.int64)
    if not added.items.shape[1]:
        return added.scores.new_zeros(items.shape)
    place = torch.searchsorted(added.items, items.contiguous()).clamp(max=added.items.shape[1] - 1)
    found = (added.items.gather(1, place) == items) & (items != PADDING_INDEX)
    return torch.where(found, added.scores.gather(1, place), 0)


def is_among(items: Tensor, others: Tensor | None) -> Tensor:
    """[N, K] bool: which `items` [N, K] are in the same row of `others` [N, S]; None for no others."""
    if others is None or not others.shape[1]:
        return torch.zeros_like(items, dtype=torch.bool)
    others = others.sort(dim=1).values
    place = torch.searchsorted(others, items).clamp(max=others.shape[1] - 1)
    return others.gather(1, place) == items


def check_sparse_scores(added: SparseScores, sizes: dict[str, int] | None = None) -> dict[str, int]:
    """Check the shapes of additional scores; return the sizes by letter, N and perhaps more."""
    found = check_shape("added.items", added.items, "N S", sizes, dtype=torch.int64)
    check_shape("added.scores", added.scores, "N S", found, dtype=torch.float32)
    return {letter: size for letter, size in found.items() if letter != "S"}
