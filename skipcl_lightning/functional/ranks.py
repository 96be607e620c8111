"""The rank of a target among all items: what every metric is computed from."""

from typing import Literal, get_args

import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer, check_shape

__all__ = ["TieRule", "score_ranks", "target_ranks"]

TieRule = Literal["pessimistic", "mean", "optimistic"]


def score_ranks(scores: Tensor, target: Tensor, *, ties: TieRule = "pessimistic") -> Tensor:
    """Rank of each target's score among its row; 1 is the best.

    rank = C - #{strictly below}, less none of the other scores that tie with it (``pessimistic``), half of
    them (``mean``) or all of them (``optimistic``). Counted from below, NaN fails low: a
    target whose score is NaN ranks C under every rule, and a competitor that is NaN counts against it.

    Args:
        scores: [N, C] floating point; compared in float32 or better.
        target: [N] int64 columns in 0..C-1.
        ties: How a tie counts.

    Returns:
        [N] ranks in 1..C: int64, or float32 for ``mean``.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree or the rule is unknown.

    Example:
        >>> scores = torch.tensor([[0.1, 0.7, 0.7, 0.2]])
        >>> score_ranks(scores, torch.tensor([1])), score_ranks(scores, torch.tensor([1]), ties="mean")
        (tensor([2]), tensor([1.5000]))
    """
    check_choice("ties", ties, get_args(TieRule))
    sizes = check_shape("scores", scores, "N C", floating=True)
    check_shape("target", target, "N", sizes, dtype=torch.int64)
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    own = scores.gather(1, target[:, None])  # [N, 1]
    ranks = sizes["C"] - (scores < own).sum(dim=1)
    if ties == "pessimistic":
        return ranks
    # A NaN equals nothing, not even itself.
    others = ((scores == own).sum(dim=1) - 1).clamp(min=0)
    return ranks - others if ties == "optimistic" else ranks - others.float() / 2


@torch.no_grad()
def target_ranks(
    queries: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    *,
    exclude: Tensor | None = None,
    ties: TieRule = "pessimistic",
    chunk_size: int = 2**24,
) -> Tensor:
    """Rank of each query's target among the whole catalogue, by inner product.

    Products are taken in float64 and compared in float32. A float32 product rounds equal rows of the
    table differently at the edges of its blocks, which would let a collapsed table rank first instead of
    last.

    Args:
        queries: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding, and no candidate.
        target: [N] int64 in 1..V.
        exclude: [N, S] int64 items in 0..V that are no candidates; 0 excludes nothing, and the target is
            never excluded, since a track may repeat.
        ties: How a tie counts, as in ``score_ranks``.
        chunk_size: The most scores held at once, at least one query's.

    Returns:
        [N] ranks in 1..V: int64, or float32 for ``mean``.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree or a setting is out of range.

    Example:
        >>> table = torch.tensor([[9.0], [1.0], [3.0], [2.0]])
        >>> target_ranks(torch.ones(2, 1), table, torch.tensor([1, 3]))
        tensor([3, 2])
        >>> target_ranks(torch.ones(1, 1), table, torch.tensor([3]), exclude=torch.tensor([[2, 0]]))
        tensor([1])
    """
    check_choice("ties", ties, get_args(TieRule))
    sizes = check_shape("queries", queries, "N D", floating=True)
    check_shape("item_embeddings", item_embeddings, "V+1 D", sizes, floating=True)
    check_shape("target", target, "N", sizes, dtype=torch.int64)
    check_integer("chunk_size", chunk_size)
    if exclude is not None:
        check_shape("exclude", exclude, "N S", sizes, dtype=torch.int64)
    candidates = item_embeddings[1:].double().T  # [D, V]
    rows = max(1, chunk_size // max(1, candidates.shape[1]))
    ranks = [queries.new_empty(0, dtype=torch.float32 if ties == "mean" else torch.int64)]
    for start in range(0, len(queries), rows):
        chunk = slice(start, start + rows)
        column = target[chunk] - 1
        with torch.autocast(queries.device.type, enabled=False):
            scores = (queries[chunk].double() @ candidates).float()  # [rows, V]
        if exclude is not None:
            _exclude(scores, column, exclude[chunk])
        ranks.append(score_ranks(scores, column, ties=ties))
    return torch.cat(ranks)


def _exclude(scores: Tensor, column: Tensor, exclude: Tensor) -> None:
    """Put the excluded items of fresh ``scores`` last, in place: the cost is that of the excluded alone."""
    own = scores.gather(1, column[:, None])
    # Padding stands for the target's own column, which is restored afterwards.
    columns = torch.where(exclude == 0, column[:, None], exclude - 1)
    scores.scatter_(1, columns, -torch.inf)
    scores.scatter_(1, column[:, None], own)
