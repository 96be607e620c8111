"""The rank of a target among all items, on which every metric is based.

Ranks are exact: float32 products settle most items, and products in float64 the few whose score is too close
to the target's for float32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_indices, check_integer, check_shape
from skipcl_lightning.batch import PADDING_INDEX, is_among
from skipcl_lightning.functional.ranking.sparse_scores import (
    SparseScores,
    check_sparse_scores,
    look_up_scores,
)

__all__ = [
    "TieRule",
    "check_catalogue",
    "multiply_pairs",
    "score_ranks",
    "target_ranks",
    "wide_dtype",
]

TieRule = Literal["pessimistic", "mean", "optimistic"]

# Scores counted at once: they fit a CPU's cache, and sums of ones are exact in float32.
_COUNTED = 2**20
# More queries at once would make a block too narrow for a fast product.
_MOST_ROWS = 4096
# Up to this number, a sum of ones is exact in float32.
_MOST_COLUMNS = 2**16
# Blocks of items that share a bound on the error.
_STRIPE = 8
# Up to this number of scores, a GPU is faster with float64 than with many small steps.
_MOST_WIDE = 2**24
# Items that are checked together if one of them is near the target.
_GROUP = 256
# Open pairs that are collected before they are settled.
_MOST_OPEN = 2**16
# If more than one in this number of a query's scores is near the target, all its scores are compared exactly.
_DENSE_SHARE = 32
_MOST_FACTORS = 2**18
# Below the largest float32, with room for partial sums.
_MOST_PRODUCT = 1e37
# Longer items would amplify the rounding of a scaled query to 0.
_MOST_LENGTH = 1e30
# Between these lengths, squares are far from both ends of float32.
_PLAIN_LENGTHS = (1e-10, 1e15)


def score_ranks(scores: Tensor, target: Tensor, *, ties: TieRule = "pessimistic") -> Tensor:
    """Return the rank of each target's score in its row; 1 is the best.

    rank = C - #{strictly below}, minus the number of other scores that tie with it times 0 (`pessimistic`),
    1/2 (`mean`) or 1 (`optimistic`). A target whose score is NaN ranks C under every rule, and a competitor
    that is NaN counts against the target.

    Args:
        scores: [N, C] floating point; half precision is compared in float32.
        target: [N] int64 columns in 0..C-1.
        ties: The rule for equal scores.

    Returns:
        [N] ranks in 1..C: int64, or float32 for `mean`.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree, the rule is unknown, or (on a CPU) a target is no column.

    Examples:
        >>> scores = torch.tensor([[0.1, 0.7, 0.7, 0.2]])
        >>> score_ranks(scores, torch.tensor([1])), score_ranks(scores, torch.tensor([1]), ties="mean")
        (tensor([2]), tensor([1.5000]))
    """
    check_choice("ties", ties, get_args(TieRule))
    sizes = check_shape("scores", scores, "N C", floating=True)
    check_shape("target", target, "N", sizes, dtype=torch.int64)
    check_indices("target", target, sizes["C"] - 1, minimum=0, cure="A target is a column of the scores.")
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    own = scores.gather(1, target[:, None])  # [N, 1]
    ranks = sizes["C"] - count_where(torch.lt, scores, own)
    if ties == "pessimistic":
        return ranks
    return _with_ties(ranks, count_where(torch.eq, scores, own), ties)


@torch.no_grad()
def target_ranks(
    queries: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    *,
    exclude: Tensor | None = None,
    added: SparseScores | None = None,
    retired: Tensor | None = None,
    ties: TieRule = "pessimistic",
    chunk_size: int | None = None,
) -> Tensor:
    r"""Return the rank of each query's target in the whole catalogue, by inner product.

    Scores are inner products in float64, rounded to float32 and compared. A collapsed table, whose rows are
    all equal, ranks every target last.

    The table is streamed in float32, a block of queries and items at a time. A float32 difference of two
    scores is off by at most

    $$
    (D + 16) \cdot 2^{-24} \cdot
    (\lVert q \rVert \cdot \max_i \lVert e_i \rVert + \lvert q \cdot e_{target} \rvert),
    $$

    so only items whose score is closer to the target's are scored again in float64. The bound holds for D
    below 16,000. Memory is one block and the open pairs. Excluded items are scored separately, which costs
    O(N·S·D). On a GPU, up to 2^24 scores are all computed in float64, and the host waits for nothing; for
    more scores it waits up to three times for each block.

    Args:
        queries: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding and no candidate.
        target: [N] int64 in 1..V.
        exclude: [N, S] int64 items in 0..V that are no candidates; 0 excludes nothing. The target is never
            excluded, because an item may repeat.
        added: Scores of some items, added to their inner products before the rounding to float32.
        retired: [V + 1] bool, False for padding, items that are no candidates of any query; None for none.
            Each call then copies the rows of the others. A retired target ranks V.
        ties: The rule for equal scores; see `score_ranks`.
        chunk_size: The largest number of scores held at once; None for 2^20 on a CPU, where they fit the
            cache, or 2^21 for more than 1,024 queries, and 2^24 elsewhere.

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
    sizes = check_catalogue(queries, item_embeddings, exclude, retired)
    check_shape("target", target, "N", sizes, dtype=torch.int64)
    candidates = item_embeddings if retired is None else item_embeddings[~retired]
    if exclude is not None and retired is not None:
        exclude = exclude.masked_fill(retired[exclude], PADDING_INDEX)
    if chunk_size is None:
        on_cpu = 2**20 if len(queries) <= 2**10 else 2**21
        chunk_size = on_cpu if queries.device.type == "cpu" else 2**24
    check_integer("chunk_size", chunk_size)
    own, _ = multiply_pairs(queries, item_embeddings, target[:, None])  # [N, 1]
    if added is not None:
        check_sparse_scores(added, {"N": len(queries)})
        own = own + look_up_scores(added, target[:, None])
    with full_precision(queries.device):
        if _is_better_wide(queries, candidates):
            are_below, are_tied = compare_all(queries, candidates[PADDING_INDEX + 1 :], own)
            below, tied = are_below.sum(dim=1), are_tied.sum(dim=1)
        else:
            below, tied = _count_catalogue(queries, candidates, own, chunk_size)
    if added is not None:
        more_below, more_tied = _count_added(queries, item_embeddings, own, target, exclude, added, retired)
        below, tied = below + more_below, tied + more_tied
    if exclude is not None:
        excluded_below, excluded_tied, excluded = _count_excluded(
            queries, item_embeddings, own, target, exclude
        )
        # Excluded items rank below all candidates, but not below a target that is NaN.
        below = below - excluded_below + torch.where(own.isnan().squeeze(1), 0, excluded)
        tied = tied - excluded_tied
    ranks = _with_ties(len(candidates) - 1 - below, tied, ties)
    return ranks if retired is None else ranks.masked_fill(retired[target], len(item_embeddings) - 1)


def check_catalogue(
    queries: Tensor, item_embeddings: Tensor, exclude: Tensor | None, retired: Tensor | None
) -> dict[str, int]:
    """Check that queries, items and exclusions fit together; return the sizes by letter."""
    sizes = check_shape("queries", queries, "N D", floating=True)
    sizes = check_shape("item_embeddings", item_embeddings, "V+1 D", sizes, floating=True)
    if retired is not None:
        check_shape("retired", retired, "V+1", sizes, dtype=torch.bool)
    if exclude is not None:
        check_shape("exclude", exclude, "N S", sizes, dtype=torch.int64)
    if len(item_embeddings) < 2:
        raise ValueError(
            f"`item_embeddings` must have at least 2 rows, got {len(item_embeddings)}. "
            "Row 0 is padding; the items' rows follow it."
        )
    return sizes


def _with_ties(ranks: Tensor, tied: Tensor, ties: TieRule) -> Tensor:
    """[N] ranks by a tie rule, from pessimistic ones and the number of items that tie with each target."""
    others = (tied - 1).clamp(min=0)  # a NaN equals nothing, not even itself
    if ties == "mean":
        return ranks - others.float() / 2
    return ranks if ties == "pessimistic" else ranks - others


def _count_catalogue(
    queries: Tensor, item_embeddings: Tensor, own: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """[N] and [N] int64: how many items are below each query's own score, and how many equal it."""
    count = RankCount(queries, item_embeddings, own)
    last = len(item_embeddings)
    height = max(1, min(len(queries), _MOST_ROWS, chunk_size))
    width = max(1, min(last - 1, chunk_size // height, _MOST_COLUMNS))
    norms = queries.to(own.dtype).norm(dim=1, keepdim=True)
    memory = queries.new_empty(height * width, dtype=torch.float32)
    for start in range(PADDING_INDEX + 1, last, width * _STRIPE):
        stripe = item_embeddings[start : start + width * _STRIPE]
        unit = error_unit(norms, own, stripe)
        for top in range(0, len(queries), height):
            rows = slice(top, top + height)
            query, offset = scale_queries(queries[rows], own[rows], unit[rows])
            balance = own.new_zeros(len(query))
            for left, right in item_blocks(len(stripe), width):
                items = stripe[left:right].float()
                part = memory[: len(query) * len(items)].view(-1, len(items))
                torch.addmm(offset, query, items.T, out=part)  # `out` disables autocast
                balance.add_(count.add_block(part, top, start + left))
            count.below[rows] += ((len(stripe) - balance) / 2).long()
    count.settle()
    return count.below.where(~own.isnan().squeeze(1), 0), count.tied


def _is_better_wide(queries: Tensor, item_embeddings: Tensor) -> bool:
    return queries.device.type == "cuda" and len(queries) * len(item_embeddings) <= _MOST_WIDE


def _count_excluded(
    queries: Tensor, item_embeddings: Tensor, own: Tensor, target: Tensor, exclude: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[N] three times, of the different excluded items: how many are below, how many tie, how many."""
    exclude = exclude.sort(dim=1).values
    first = torch.ones_like(exclude, dtype=torch.bool)
    first[:, 1:] = exclude[:, 1:] != exclude[:, :-1]
    mask = first & (exclude != PADDING_INDEX) & (exclude != target[:, None])
    scores, lengths = multiply_pairs(queries, item_embeddings, exclude)
    below, tied = compare_exactly(scores, own, lengths, queries.shape[1])
    return (below & mask).sum(dim=1), (tied & mask).sum(dim=1), mask.sum(dim=1)


def _count_added(
    queries: Tensor,
    item_embeddings: Tensor,
    own: Tensor,
    target: Tensor,
    exclude: Tensor | None,
    added: SparseScores,
    retired: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """[N] twice: how many more candidates are below, and tie, with the additional scores than without."""
    # Excluded items are counted, and taken out, by their inner products alone; the target never is.
    excluded = is_among(added.items, exclude) & (added.items != target[:, None])
    mask = (added.items != PADDING_INDEX) & ~excluded
    if retired is not None:
        mask = mask & ~retired[added.items]
    scores, lengths = multiply_pairs(queries, item_embeddings, added.items)
    below, tied = compare_exactly(scores, own, lengths, queries.shape[1])
    below_now, tied_now = compare_exactly(scores + added.scores, own, lengths, queries.shape[1])
    return (
        ((below_now.long() - below.long()) * mask).sum(dim=1),
        ((tied_now.long() - tied.long()) * mask).sum(dim=1),
    )


def count_where(comparison: Callable[..., Tensor], scores: Tensor, bound: Tensor) -> Tensor:
    """[N] int64: the number of scores of each row for which a comparison with `bound` holds; NaN never does.

    On a CPU, torch adds up booleans about ten times slower than floats (torch 2.13), so the comparison writes
    ones and zeros into a block of floats.
    """
    if scores.device.type != "cpu":
        return comparison(scores, bound).sum(dim=1)
    height = max(1, _COUNTED // max(1, scores.shape[1]))
    block = torch.empty(min(height, len(scores)), min(scores.shape[1], _COUNTED))
    counts = torch.zeros(len(scores), dtype=torch.int64)
    for top in range(0, len(scores), height):
        rows = slice(top, top + height)
        for part in torch.split(scores[rows], _COUNTED, dim=1):
            ones = comparison(part, bound[rows], out=block[: len(part), : part.shape[1]])
            counts[rows] += ones.sum(dim=1).long()
    return counts


def item_blocks(num_items: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the begin and end of each block of at most `width` items; whole groups first."""
    width = width // _GROUP * _GROUP or width
    whole = num_items // _GROUP * _GROUP
    for left in range(0, whole, width):
        yield left, min(left + width, whole)
    for left in range(whole, num_items, width):
        yield left, min(left + width, num_items)


class RankCount:
    """Counts the items below each query's own score, and those that tie with it.

    Attributes:
        below: [N] int64, of the settled pairs; the caller adds the result of `add_block`.
        tied: [N] int64.
    """

    def __init__(self, queries: Tensor, item_embeddings: Tensor, own: Tensor) -> None:
        self.queries, self.item_embeddings, self.own = queries, item_embeddings, own
        self.below, self.tied = (
            torch.zeros(len(queries), dtype=torch.int64, device=queries.device) for _ in range(2)
        )
        self.open: list[tuple[Tensor, Tensor]] = []
        self.num_open = 0

    def add_block(self, part: Tensor, top: int, left: int) -> Tensor:
        """Return [N] float32, the items certainly above less those certainly below, and note the open ones.

        `part` [N, C] holds the float32 differences from the own scores, in units of `error_unit`, of the
        queries from `top` on and the items from `left` on. It is overwritten.
        """
        size = _GROUP if part.shape[1] % _GROUP == 0 else part.shape[1]
        groups = part.clamp_(-1, 1).view(len(part), -1, size)
        # -1 for each item that is certainly below, 1 for each certainly above. An open item is within 0.8 and
        # lowers the sum of squares by at least 0.36.
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
        """Note the items near the own score; `open_mask` [N, groups] is True at the [unsure] groups."""
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
        """Decide the open pairs by exact products."""
        if not self.open:
            return
        rows, items = (torch.cat(parts) for parts in zip(*self.open, strict=True))
        products, lengths = multiply_pairs(self.queries[rows], self.item_embeddings, items)
        is_below, is_tied = compare_exactly(products, self.own[rows], lengths, self.queries.shape[1])
        self.below.index_add_(0, rows, is_below.squeeze(1).long())
        self.tied.index_add_(0, rows, is_tied.squeeze(1).long())
        self.open, self.num_open = [], 0

    def _settle_all(self, rows: Tensor, left: int, near_mask: Tensor) -> None:
        """Compare all items of some queries exactly, if that is faster than pair by pair."""
        items = self.item_embeddings[left : left + near_mask.shape[1]]
        is_below, is_tied = compare_all(self.queries[rows], items, self.own[rows])
        self.below[rows] += (is_below & near_mask).sum(dim=1)
        self.tied[rows] += (is_tied & near_mask).sum(dim=1)


def compare_all(queries: Tensor, items: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """[N, C] bool twice: items whose exact score is below each query's own, and equal to it."""
    queries, items = queries.to(own.dtype), items.to(own.dtype)
    lengths = queries.norm(dim=1, keepdim=True) * items.norm(dim=1)  # [N, C]
    return compare_exactly(queries @ items.T, own, lengths, queries.shape[1])


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of exact scores: float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Take float32 matrix products in float32, even if TF32 or bfloat16 is allowed for them."""
    backends: Any = torch.backends
    backend = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        backend.fp32_precision = before


def error_unit(norms: Tensor, own: Tensor, items: Tensor) -> Tensor:
    """[N, 1]: a unit in which float32 differences from the own scores are off by less than 0.8.

    `norms` [N, 1] are the queries' lengths, `own` [N, 1] the own scores, both of `wide_dtype`; `items` [C,
    D]. The unit is infinite where float32 might overflow or something is not finite.

    Reference:
        Higham: Accuracy and Stability of Numerical Algorithms, 2nd edition, 2002, section 3.1,
        doi 10.1137/1.9780898718027.
    """
    size, tiny = items.shape[1], torch.finfo(torch.float32).tiny
    longest = _longest(items, norms.dtype)
    product = norms * longest + own.abs()
    # The error of D + 1 products and sums and of their rounded factors, and the loss of float32 near 0.
    unit = 1.25 * (size + 16) * 2.0**-24 * product + 4 * size * tiny * (1 + norms + longest)
    safe = (product < _MOST_PRODUCT) & (norms < _MOST_PRODUCT) & (longest < _MOST_LENGTH)
    return torch.where(safe, unit, torch.inf)


def _longest(items: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an upper bound of the length of every finite item, a scalar."""
    in_float32: Tensor = torch.linalg.vector_norm(items.float(), dim=1).max()
    low, high = _PLAIN_LENGTHS
    if low < float(in_float32) < high:
        return in_float32.to(dtype) * 1.001  # below 16,000 dimensions it is off by 0.0005 at most
    lengths: Tensor = torch.linalg.vector_norm(items, dim=1, dtype=dtype)
    # Infinite or NaN items have such products in any precision.
    return lengths.nan_to_num(nan=0.0, posinf=0.0).max()


def scale_queries(queries: Tensor, own: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Return scaled queries [N, D] and offsets [N, 1] that give the differences from the own score, in units.

    Both are float32, and the difference of an item is the product of query and item, plus the offset. Where
    the own score is NaN, every finite item comes out below it. Where the unit is infinite, the difference is
    0 or NaN, that is, unknown.
    """
    inverse = unit.reciprocal()
    unknown = own.isnan()
    scaled = (queries.float() * inverse.float()).masked_fill(unknown, 0)
    return scaled, (-own * inverse).float().masked_fill(unknown, -1)


def compare_exactly(scores: Tensor, own: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """[N, C] bool twice: scores below each query's own in float32, and equal to it.

    `lengths` holds the products of the vectors' lengths, `size` is D. Scores that differ only by the order of
    a sum count as equal; otherwise equal rows of the table might round apart.
    """
    # In place, because a GPU compares all scores of a batch at once.
    rounding = (lengths * (size * torch.finfo(scores.dtype).eps)).nan_to_num_(nan=0.0, posinf=0.0)
    is_own = (scores - own).abs_() <= rounding
    own = own.float()
    scores = torch.where(is_own, own, scores.float())
    return scores < own, scores == own


def multiply_pairs(queries: Tensor, item_embeddings: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Return the products of each query with its own items, and of their lengths: [N, S] `wide_dtype` twice.

    Equal rows of the table give equal products to the last bit, which a matrix product does not promise.
    """
    # Some queries at a time, to spare memory.
    step = max(1, _MOST_FACTORS // max(1, items.shape[1] * queries.shape[1]))
    products, lengths = [], []
    for start in range(0, max(1, len(queries)), step):
        query = queries[start : start + step, None].to(wide_dtype(queries.device))
        chosen = item_embeddings[items[start : start + step]].to(query.dtype)  # [step, S, D]
        products.append((chosen * query).sum(dim=2))
        lengths.append(chosen.norm(dim=2) * query.norm(dim=2))
    return torch.cat(products), torch.cat(lengths)
