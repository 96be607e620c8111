"""The rank of a target among all items: what every metric is computed from."""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer, check_shape
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.catalogue import check_catalogue
from skipcl_lightning.functional.counting import count_where
from skipcl_lightning.functional.exact import (
    compare_exactly,
    error_unit,
    full_precision,
    multiply_pairs,
    scale_queries,
)

__all__ = ["TieRule", "score_ranks", "target_ranks"]

# More queries at once make a block too narrow for a fast product.
_MOST_ROWS = 4096
# Few enough to add up as float32 exactly.
_MOST_COLUMNS = 2**16
# So many blocks of items share a bound on the error, which takes some small operations.
_STRIPE = 32
# Items that are looked at together where one of them is near the target; fewer take longer to add up.
_GROUP = 256
_MOST_OPEN = 2**16
# One in so many scores of a query near the target, and a product of all of them is taken.
_DENSE_SHARE = 32
# So few scores cost a GPU less in float64 than many small steps and waiting for them.
_MOST_WIDE = 2**24

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

    .. math:: (D + 16) \cdot 2^{-24} \cdot
        (\lVert q \rVert \cdot \max_i \lVert e_i \rVert + \lvert q \cdot e_{target} \rvert),

    so only an item that comes as near to the target as that is scored anew in float64. The bound holds for D
    below 16,000. Memory is that of a block and of the pairs that are open, at most a block of float64 more
    where a table is collapsed. What is excluded is scored apart, at a cost of O(N·S·D). On a GPU up to 2^24
    scores, a batch over a moderate catalogue, are all taken in float64, and the host waits for nothing;
    beyond that it waits up to three times a block, for how many queries and items are so near, and once in
    32 blocks.

    Args:
        queries: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding, and no candidate.
        target: [N] int64 in 1..V.
        exclude: [N, S] int64 items in 0..V that are no candidates; 0 excludes nothing, and the target is
            never excluded, since a track may repeat.
        ties: How a tie counts, as in ``score_ranks``.
        chunk_size: The most scores held at once; 2^21 on a CPU, whose cache they should fit, and 2^24
            elsewhere, if None.

    Returns:
        [N] ranks in 1..V: int64, or float32 for ``mean``, exact up to V of 2^23. A target whose score is NaN
        ranks V.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree or a setting is out of range.

    Reference:
        The bound on the error: Higham: Accuracy and Stability of Numerical Algorithms, 2nd edition, 2002,
        section 3.1, doi 10.1137/1.9780898718027.

    Example:
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


def _blocks(num_items: int, width: int) -> Iterator[tuple[int, int]]:
    """Where blocks of items begin and end: of whole groups, as far as there are so many."""
    width = width // _GROUP * _GROUP or width
    whole = num_items // _GROUP * _GROUP
    for left in range(0, whole, width):
        yield left, min(left + width, whole)
    for left in range(whole, num_items, width):
        yield left, min(left + width, num_items)


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
    count = _Count(queries, item_embeddings, own)
    last = len(item_embeddings)
    height = max(1, min(len(queries), _MOST_ROWS, chunk_size))
    width = max(1, min(last - 1, chunk_size // height, _MOST_COLUMNS))
    norms = queries.to(own.dtype).norm(dim=1, keepdim=True)
    memory = queries.new_empty(height * width, dtype=torch.float32)
    for start in range(PADDING_INDEX + 1, last, width * _STRIPE):
        stripe = item_embeddings[start : start + width * _STRIPE]
        unit = error_unit(norms, own, stripe)
        # With a column of ones, one product yields differences from the own score.
        augmented = torch.nn.functional.pad(stripe.float(), (0, 1), value=1.0)
        for top in range(0, len(queries), height):
            rows = slice(top, top + height)
            query = scale_queries(queries[rows], own[rows], unit[rows])  # [rows, D + 1]
            balance = own.new_zeros(len(query))
            for left, right in _blocks(len(stripe), width):
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
    is_below, is_tied = _compare_all(queries, item_embeddings[PADDING_INDEX + 1 :], own)
    return is_below.sum(dim=1), is_tied.sum(dim=1)


def _compare_all(queries: Tensor, items: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """[N, C] bool twice: which of C items lie below each query's own score, and which equal it."""
    queries, items = queries.to(own.dtype), items.to(own.dtype)
    lengths = queries.norm(dim=1, keepdim=True) * items.norm(dim=1)  # [N, C]
    return compare_exactly(queries @ items.T, own, lengths, queries.shape[1])


class _Count:
    """How many items lie below each query's own score, and how many tie with it.

    What float32 leaves open is collected, and settled by products in float64, many at a time.
    """

    def __init__(self, queries: Tensor, item_embeddings: Tensor, own: Tensor) -> None:
        self.queries, self.item_embeddings, self.own = queries, item_embeddings, own
        self.below, self.tied = (
            torch.zeros(len(queries), dtype=torch.int64, device=queries.device) for _ in range(2)
        )
        self.open: list[tuple[Tensor, Tensor]] = []
        self.num_open = 0

    def add_block(self, part: Tensor, top: int, left: int) -> Tensor:
        """Add up what is certain of a block, and note what is open.

        Args:
            part: [N, C] float32 differences from the own scores of the queries from ``top`` on, of the items
                from ``left`` on, in units of ``error_unit``; overwritten.
            top: The first query.
            left: The first item.

        Returns:
            [N] float32, the items certainly above less those certainly below.
        """
        size = _GROUP if part.shape[1] % _GROUP == 0 else part.shape[1]
        groups = part.clamp_(-1, 1).view(len(part), -1, size)
        # -1 for each item that is surely below, 1 for each that is surely above; 0.8 at most is open, and
        # would take 0.36 from the sum of squares.
        signs = groups.sum(dim=2).round_()
        open_mask = ~(torch.linalg.vector_norm(groups, dim=2) > (size - 0.25) ** 0.5)
        unsure = open_mask.nonzero(as_tuple=True)  # few groups, in most blocks
        if len(unsure[0]):
            near = groups[unsure]  # [unsure, size]
            below_mask = near == -1
            signs[unsure] = size - 2 * below_mask.sum(dim=1, dtype=torch.float32)
            self._add_near(open_mask, unsure, ~below_mask & (near != 1), top, left)
        return signs.sum(dim=1)

    def _add_near(
        self, open_mask: Tensor, unsure: tuple[Tensor, ...], near_mask: Tensor, top: int, left: int
    ) -> None:
        """[N, groups] bool, where it is True [unsure] twice, and which items there are near the own score."""
        pairs, items = near_mask.nonzero(as_tuple=True)
        size = near_mask.shape[1]
        width = open_mask.shape[1] * size
        if len(pairs) * _DENSE_SHARE > width:
            rows = open_mask.any(dim=1).nonzero().squeeze(1)
            if len(pairs) * _DENSE_SHARE > len(rows) * width:
                mask = near_mask.new_zeros(*open_mask.shape, size)
                mask[unsure] = near_mask
                self._settle_all(rows + top, left, mask[rows].flatten(1))
                return
        row, group = (index[pairs] for index in unsure)
        self.open.append((row + top, (left + group * size + items)[:, None]))  # [pairs], [pairs, 1]
        self.num_open += len(pairs)
        if self.num_open > _MOST_OPEN:
            self.settle()

    def settle(self) -> None:
        """Decide on the pairs that are open."""
        if not self.open:
            return
        rows, items = (torch.cat(parts) for parts in zip(*self.open, strict=True))
        products, lengths = multiply_pairs(self.queries[rows], self.item_embeddings, items)
        is_below, is_tied = compare_exactly(products, self.own[rows], lengths, self.queries.shape[1])
        self.below.index_add_(0, rows, is_below.squeeze(1).long())
        self.tied.index_add_(0, rows, is_tied.squeeze(1).long())
        self.open, self.num_open = [], 0

    def _settle_all(self, rows: Tensor, left: int, near_mask: Tensor) -> None:
        """As in a collapsed table: pair by pair would take far longer than a product of all."""
        items = self.item_embeddings[left : left + near_mask.shape[1]]
        is_below, is_tied = _compare_all(self.queries[rows], items, self.own[rows])
        self.below[rows] += (is_below & near_mask).sum(dim=1)
        self.tied[rows] += (is_tied & near_mask).sum(dim=1)


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
