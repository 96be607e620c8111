"""The rank of a target among all items: what every metric is computed from."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer, check_shape
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.catalogue import check_catalogue
from skipcl_lightning.functional.exact import (
    compare_exactly,
    error_unit,
    full_precision,
    multiply_pairs,
    scale_queries,
)
from skipcl_lightning.functional.rank_count import RankCount, compare_all, item_blocks

__all__ = ["TieRule", "score_ranks", "target_ranks"]

# Few enough for a processor's cache, and for sums of ones to be exact in float32.
_COUNTED_COLUMNS = 2**20

_Comparison = Callable[..., Tensor]

# More queries at once make a block too narrow for a fast product.
_MOST_ROWS = 4096
# Few enough to add up as float32 exactly.
_MOST_COLUMNS = 2**16
# So many blocks of items share a bound on the error, which takes some small operations.
_STRIPE = 8
# So few scores cost a GPU less in float64 than many small steps and waiting for them.
_MOST_WIDE = 2**24

TieRule = Literal["pessimistic", "mean", "optimistic"]


def score_ranks(scores: Tensor, target: Tensor, *, ties: TieRule = "pessimistic") -> Tensor:
    """Rank of each target's score among its row; 1 is the best.

    rank = C - #{strictly below}, less none of the other scores that tie with it (`pessimistic`), half of
    them (`mean`) or all of them (`optimistic`). Counted from below, NaN fails low: a
    target whose score is NaN ranks C under every rule, and a competitor that is NaN counts against it.

    Args:
        scores: [N, C] floating point; compared in float32 or better.
        target: [N] int64 columns in 0..C-1.
        ties: How a tie counts.

    Returns:
        [N] ranks in 1..C: int64, or float32 for `mean`.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree or the rule is unknown.

    Examples:
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
    below = count_where(torch.lt, scores, own)
    # A NaN equals nothing, not even itself.
    tied = (count_where(torch.eq, scores, own) - 1).clamp(min=0) if ties != "pessimistic" else None
    return _rank(sizes["C"], below, tied, ties)


@torch.no_grad()
def target_ranks(
    queries: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    *,
    exclude: Tensor | None = None,
    ties: TieRule = "pessimistic",
    chunk_size: int | None = None,
) -> Tensor:
    r"""Rank of each query's target among the whole catalogue, by inner product.

    Scores are inner products in float64, rounded to float32, and compared as such: a collapsed table,
    whose rows are all equal, ranks every target last.

    The table is streamed in float32, a block of queries and items at a time. A float32 difference between two
    scores is off by at most

    $$
    (D + 16) \cdot 2^{-24} \cdot
    (\lVert q \rVert \cdot \max_i \lVert e_i \rVert + \lvert q \cdot e_{target} \rvert),
    $$

    so only an item that comes as near to the target as that is scored anew in float64. The bound holds for D
    below 16,000. Memory is that of a block and of the pairs that are open, at most a block of float64 more
    where a table is collapsed. What is excluded is scored apart, at a cost of O(N·S·D). On a GPU up to 2^24
    scores, a batch over a moderate catalogue, are all taken in float64, and the host waits for nothing;
    beyond that it waits up to three times a block, for how many queries and items are so near, and once in
    8 blocks.

    Args:
        queries: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding, and no candidate.
        target: [N] int64 in 1..V.
        exclude: [N, S] int64 items in 0..V that are no candidates; 0 excludes nothing, and the target is
            never excluded, since a track may repeat.
        ties: How a tie counts, as in `score_ranks`.
        chunk_size: The most scores held at once; 2^21 on a CPU, whose cache they should fit, and 2^24
            elsewhere, if None.

    Returns:
        [N] ranks in 1..V: int64, or float32 for `mean`, exact up to V of 2^23. A target whose score is NaN
        ranks V.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree or a setting is out of range.

    Reference:
        The bound on the error: Higham: Accuracy and Stability of Numerical Algorithms, 2nd edition, 2002,
        section 3.1, doi 10.1137/1.9780898718027.

    Examples:
        >>> table = torch.tensor([[9.0], [1.0], [3.0], [2.0]])
        >>> target_ranks(torch.ones(2, 1), table, torch.tensor([1, 3]))
        tensor([3, 2])
        >>> target_ranks(torch.ones(1, 1), table, torch.tensor([3]), exclude=torch.tensor([[2, 0]]))
        tensor([1])
    """
    check_choice("ties", ties, get_args(TieRule))
    sizes = check_catalogue(queries, item_embeddings, exclude)
    check_shape("target", target, "N", sizes, dtype=torch.int64)
    if chunk_size is None:
        chunk_size = 2**21 if queries.device.type == "cpu" else 2**24
    check_integer("chunk_size", chunk_size)
    own, _ = multiply_pairs(queries, item_embeddings, target[:, None])  # [N, 1]
    with full_precision(queries.device):
        if _is_better_wide(queries, item_embeddings):
            below, tied = _count_widely(queries, item_embeddings, own)
        else:
            below, tied = _count_catalogue(queries, item_embeddings, own, chunk_size)
    if exclude is not None:
        excluded_below, excluded_tied, excluded = _count_excluded(
            queries, item_embeddings, own, target, exclude
        )
        # They stand behind all candidates; behind a target that is NaN stands nothing.
        below = below - excluded_below + torch.where(own.isnan().squeeze(1), 0, excluded)
        tied = tied - excluded_tied
    return _rank(len(item_embeddings) - 1, below, (tied - 1).clamp(min=0), ties)


def _rank(num_items: int, below: Tensor, tied: Tensor | None, ties: TieRule) -> Tensor:
    """[N] ranks from the number of items below each target, and of others that tie with it."""
    ranks = num_items - below
    if ties == "mean" and tied is not None:
        return ranks - tied.float() / 2
    return ranks if ties == "pessimistic" or tied is None else ranks - tied


def _count_catalogue(
    queries: Tensor, item_embeddings: Tensor, own: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """[N] and [N] int64: how many items lie below each query's own score, and how many equal it."""
    count = RankCount(queries, item_embeddings, own)
    last = len(item_embeddings)
    height = max(1, min(len(queries), _MOST_ROWS, chunk_size))
    width = max(1, min(last - 1, chunk_size // height, _MOST_COLUMNS))
    norms = queries.to(own.dtype).norm(dim=1, keepdim=True)
    memory = queries.new_empty(height * width, dtype=torch.float32)
    # With a column of ones, one product yields differences from the own score.
    augmented = queries.new_ones(min(last - 1, width * _STRIPE), queries.shape[1] + 1, dtype=torch.float32)
    for start in range(PADDING_INDEX + 1, last, width * _STRIPE):
        stripe = item_embeddings[start : start + width * _STRIPE]
        unit = error_unit(norms, own, stripe)
        augmented[: len(stripe), :-1] = stripe
        for top in range(0, len(queries), height):
            rows = slice(top, top + height)
            query = scale_queries(queries[rows], own[rows], unit[rows])  # [rows, D + 1]
            balance = own.new_zeros(len(query))
            for left, right in item_blocks(len(stripe), width):
                items = augmented[left:right]
                part = memory[: len(query) * len(items)].view(-1, len(items))
                torch.mm(query, items.T, out=part)  # with `out`, autocast stays away
                balance.add_(count.add_block(part, top, start + left))
            count.below[rows] += ((len(stripe) - balance) / 2).long()
    count.settle()
    return count.below.where(~own.isnan().squeeze(1), 0), count.tied


def _is_better_wide(queries: Tensor, item_embeddings: Tensor) -> bool:
    return queries.device.type == "cuda" and len(queries) * len(item_embeddings) <= _MOST_WIDE


def _count_widely(queries: Tensor, item_embeddings: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """What `_count_catalogue` finds, by all scores in float64."""
    is_below, is_tied = compare_all(queries, item_embeddings[PADDING_INDEX + 1 :], own)
    return is_below.sum(dim=1), is_tied.sum(dim=1)


def _count_excluded(
    queries: Tensor, item_embeddings: Tensor, own: Tensor, target: Tensor, exclude: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[N] thrice, of the different items that are excluded: how many lie below, how many tie, how many."""
    exclude = exclude.sort(dim=1).values
    first = torch.ones_like(exclude, dtype=torch.bool)
    first[:, 1:] = exclude[:, 1:] != exclude[:, :-1]
    mask = first & (exclude != PADDING_INDEX) & (exclude != target[:, None])
    scores, lengths = multiply_pairs(queries, item_embeddings, exclude)
    below, tied = compare_exactly(scores, own, lengths, queries.shape[1])
    return (below & mask).sum(dim=1), (tied & mask).sum(dim=1), mask.sum(dim=1)


def count_where(
    comparison: _Comparison, scores: Tensor, bound: Tensor, *, scratch: Tensor | None = None
) -> Tensor:
    """Count the scores of each row for which a comparison holds; NaN compares to nothing.

    On a CPU torch adds up booleans about ten times slower than floats (measured with torch 2.13), so that
    the comparison writes ones and zeros into a small block of floats there.

    Args:
        comparison: `torch.lt`, `torch.le`, `torch.eq` and so on.
        scores: [N, C] floating point; with `scratch` at most `_COUNTED_COLUMNS` columns.
        bound: [N, 1], compared with each row's scores, from the right.
        scratch: Float32 memory to use, where many small blocks are counted on a CPU: fresh memory costs
            more than the counting.

    Returns:
        [N] int64.

    Examples:
        >>> count_where(torch.lt, torch.tensor([[0.1, 0.5, float("nan")]]), torch.tensor([[0.5]]))
        tensor([1])
    """
    if scores.device.type != "cpu":
        return comparison(scores, bound).sum(dim=1)
    rows, columns = scores.shape
    if scratch is not None and scratch.numel() >= scores.numel():
        ones = scratch.flatten()[: scores.numel()].view(rows, columns)
        return comparison(scores, bound, out=ones).sum(dim=1).long()
    width = min(max(columns, 1), _COUNTED_COLUMNS)
    height = max(1, _COUNTED_COLUMNS // width)
    block = torch.empty(min(height, rows) * width)
    counts = torch.zeros(rows, dtype=torch.int64)
    for left in range(0, columns, width):
        for top in range(0, rows, height):
            part = scores[top : top + height, left : left + width]
            counts[top : top + height] += count_where(
                comparison, part, bound[top : top + height], scratch=block
            )
    return counts
