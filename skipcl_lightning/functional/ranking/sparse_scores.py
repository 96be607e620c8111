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


def add_scores(first: SparseScores, second: SparseScores, *, weights: tuple[float, float]) -> SparseScores:
    """Return the weighted sum of two sets of additional scores of the same queries.

    Examples:
        >>> one = SparseScores(torch.tensor([[2, 5]]), torch.tensor([[1.0, 2.0]]))
        >>> other = SparseScores(torch.tensor([[5]]), torch.tensor([[1.0]]))
        >>> add_scores(one, other, weights=(1.0, 10.0))
        SparseScores(items=tensor([[0, 2, 5]]), scores=tensor([[ 0.,  1., 12.]]))
    """
    items, order = torch.cat([first.items, second.items], dim=1).sort(dim=1, stable=True)
    scores = torch.cat([weights[0] * first.scores, weights[1] * second.scores], dim=1).gather(1, order)
    # An item stands at most twice, side by side; the second place gets the sum.
    twice = items[:, 1:] == items[:, :-1]
    sums = scores[:, 1:] + torch.where(twice, scores[:, :-1], 0)
    scores = torch.cat([scores[:, :1], sums], dim=1)
    emptied = torch.cat([twice, twice.new_zeros(len(twice), 1)], dim=1) | (items == PADDING_INDEX)
    items, order = items.masked_fill(emptied, PADDING_INDEX).sort(dim=1, stable=True)
    return SparseScores(items, scores.masked_fill(emptied, 0).gather(1, order))


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


def check_sparse_scores(added: SparseScores, sizes: dict[str, int] | None = None) -> dict[str, int]:
    """Check the shapes of additional scores; return the sizes by letter, N and perhaps more."""
    found = check_shape("added.items", added.items, "N S", sizes, dtype=torch.int64)
    check_shape("added.scores", added.scores, "N S", found, dtype=torch.float32)
    return {letter: size for letter, size in found.items() if letter != "S"}
