"""The best items of the whole catalogue for each query."""

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_integer
from skipcl_lightning.batch import PADDING_INDEX, is_among
from skipcl_lightning.functional.ranking.ranks import check_catalogue, multiply_pairs, wide_dtype
from skipcl_lightning.functional.ranking.sparse_scores import SparseScores, check_sparse_scores

__all__ = ["top_k_items"]

_MOST_ROWS = 1024
# Candidates beyond `top_k` that float32 must tell from the rest.
_SPARE = 64


@torch.no_grad()
def top_k_items(
    queries: Tensor,
    item_embeddings: Tensor,
    top_k: int,
    *,
    exclude: Tensor | None = None,
    added: SparseScores | None = None,
    retired: Tensor | None = None,
    chunk_size: int = 2**24,
) -> tuple[Tensor, Tensor]:
    """Return the `top_k` items with the largest inner products, exactly.

    The table is streamed. Results are ordered by score, the best first, and equal scores by item index. If
    several items tie for the last places, `torch.topk` chooses. An item whose score is NaN or -inf is no
    candidate.

    Args:
        queries: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding and no candidate.
        top_k: Items for each query, in 1..V.
        exclude: [N, S] int64 items in 0..V that are no candidates; 0 excludes nothing.
        added: Scores of some items, added to their inner products.
        retired: [V + 1] bool, items that are no candidates of any query; None for none.
        chunk_size: The largest number of scores held at once, at least one query's.

    Returns:
        Items [N, top_k] int64 and their scores [N, top_k] float32. If fewer candidates are left, item 0 with
        score -inf fills the row.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree, `top_k` is more than there are items, or a setting is out of range.

    Examples:
        >>> table = torch.tensor([[9.0], [1.0], [3.0], [2.0]])
        >>> top_k_items(torch.ones(1, 1), table, 2)
        (tensor([[2, 3]]), tensor([[3., 2.]]))
        >>> top_k_items(torch.ones(1, 1), table, 2, exclude=torch.tensor([[2, 3]]))
        (tensor([[1, 0]]), tensor([[1., -inf]]))
    """
    check_catalogue(queries, item_embeddings, exclude, retired)
    check_integer(
        "top_k", top_k, maximum=len(item_embeddings) - 1, cure="The catalogue has no more items than that."
    )
    check_integer("chunk_size", chunk_size)
    if added is not None:
        check_sparse_scores(added, {"N": len(queries)})
        # The other items first, then those with an additional score.
        others = added.items if exclude is None else torch.cat([exclude, added.items], dim=1)
        rest = top_k_items(
            queries, item_embeddings, top_k, exclude=others, retired=retired, chunk_size=chunk_size
        )
        return _join(rest, _score_added(queries, item_embeddings, exclude, added, retired), top_k)
    found = _search_in_float32(queries, item_embeddings, top_k, exclude, retired, chunk_size)
    if found is None:
        return _search_in_float64(queries, item_embeddings, top_k, exclude, retired, chunk_size)
    items, scores, exact = found
    if not exact.all():
        left = ~exact
        own = None if exclude is None else exclude[left]
        items[left], scores[left] = _search_in_float64(
            queries[left], item_embeddings, top_k, own, retired, chunk_size
        )
    return items, scores


def _search_in_float32(
    queries: Tensor,
    item_embeddings: Tensor,
    top_k: int,
    exclude: Tensor | None,
    retired: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the same as `_search_in_float64` in less time, and whether that is certain of each query [N].

    None on other devices than a CPU, for other types, and if a row of scores is larger than a chunk.
    """
    height = min(_MOST_ROWS, chunk_size // len(item_embeddings))
    are_float32 = {queries.dtype, item_embeddings.dtype} == {torch.float32}
    if not (are_float32 and queries.device.type == "cpu" and height and len(queries)):
        return None
    largest = torch.stack(item_embeddings.aminmax()).abs().max()
    # One for all, because new memory costs as much time as half the product.
    space = queries.new_empty(min(height, len(queries)), len(item_embeddings))
    found = [
        _search_once(queries[rows], item_embeddings, top_k, _of(exclude, rows), retired, largest, space)
        for rows in _blocks(len(queries), height)
    ]
    items, scores, exact = (torch.cat(parts) for parts in zip(*found, strict=True))
    return items, scores, exact


def _search_once(
    queries: Tensor,
    item_embeddings: Tensor,
    top_k: int,
    exclude: Tensor | None,
    retired: Tensor | None,
    largest: Tensor,
    space: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best items, their scores, and whether they are exact, from one product in float32.

    More than `top_k` candidates are found in float32 and scored again in float64. A row is exact if rounding
    cannot have left a better item out. `largest` is that of all numbers of the table, and `space` takes the
    products.
    """
    kept = min(top_k + _SPARE, len(item_embeddings) - 1)
    # `out` disables autocast.
    products = torch.mm(queries, item_embeddings.T, out=space[: len(queries)])
    if exclude is not None:
        products.scatter_(1, exclude, -torch.inf)
    if retired is not None:
        products.masked_fill_(retired, -torch.inf)
    products[:, PADDING_INDEX] = -torch.inf
    values, items = products.topk(kept, dim=1)
    scores = (
        multiply_pairs(queries, item_embeddings, items)[0]
        .float()
        .masked_fill(values == -torch.inf, -torch.inf)
    )
    # No product is larger, nor a sum on the way to it. NaN or infinite: float32 decides nothing.
    bound = 2 * queries.abs().sum(dim=1) * largest
    exact = bound.isfinite()
    if kept < len(item_embeddings) - 1:
        # Of a sum of D products in float32, at any order: Higham, Accuracy and Stability, section 3.1.
        error = (queries.shape[1] + 2) * torch.finfo(torch.float32).eps * bound
        last = scores.topk(top_k, dim=1).values[:, -1]
        exact &= (values[:, -1] + error < last - error) | (values[:, -1] == -torch.inf)
    items, scores = in_order(items, scores)
    return items[:, :top_k], scores[:, :top_k], exact


def _search_in_float64(
    queries: Tensor,
    item_embeddings: Tensor,
    top_k: int,
    exclude: Tensor | None,
    retired: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Return the best items of all queries and their scores."""
    height = max(1, min(len(queries), _MOST_ROWS, chunk_size))
    width = max(1, chunk_size // height)
    found = [
        _search(queries[rows], item_embeddings, top_k, _of(exclude, rows), retired, width=width)
        for rows in _blocks(len(queries), height)
    ]
    items, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
    return items, scores


def _blocks(num_queries: int, height: int) -> list[slice]:
    """Return slices of at most `height` queries; of none, an empty one."""
    return [slice(top, top + height) for top in range(0, max(1, num_queries), height)]


def _of(exclude: Tensor | None, rows: slice) -> Tensor | None:
    return None if exclude is None else exclude[rows]


def _search(
    queries: Tensor,
    item_embeddings: Tensor,
    top_k: int,
    exclude: Tensor | None,
    retired: Tensor | None,
    *,
    width: int,
) -> tuple[Tensor, Tensor]:
    """Return the best items of some queries, from `width` items at a time."""
    # In float64, rounded to float32, like ranks.
    wide = wide_dtype(queries.device)
    query = queries.to(wide)
    items = torch.full((len(queries), top_k), PADDING_INDEX, device=queries.device)
    scores = torch.full(items.shape, -torch.inf, device=queries.device)
    for left in range(PADDING_INDEX + 1, len(item_embeddings), width):
        part = item_embeddings[left : left + width].to(wide)
        # `out` disables autocast.
        products = torch.mm(query, part.T, out=query.new_empty(len(query), len(part))).float()
        # NaN counts as -inf, since `torch.topk` would put it first.
        products.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        if exclude is not None:
            products = _exclude_from(products, exclude - left)
        if retired is not None:
            products.masked_fill_(retired[left : left + width], -torch.inf)
        values, columns = products.topk(min(top_k, len(part)), dim=1)
        together = torch.cat([scores, values], dim=1)
        scores, places = together.topk(top_k, dim=1)
        items = torch.cat([items, columns + left], dim=1).gather(1, places)
    return in_order(items, scores)


def in_order(items: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return items and scores, the best first; item 0 where the score is -inf."""
    # A stable sort keeps equal scores in the order of their items.
    items, order = items.sort(dim=1)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return items.gather(1, order).masked_fill(scores == -torch.inf, PADDING_INDEX), scores


def _score_added(
    queries: Tensor,
    item_embeddings: Tensor,
    exclude: Tensor | None,
    added: SparseScores,
    retired: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the items with an additional score and their sums [N, S]; -inf if excluded or NaN."""
    products, _ = multiply_pairs(queries, item_embeddings, added.items)
    scores = (products + added.scores).float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    out = (added.items == PADDING_INDEX) | is_among(added.items, exclude)
    if retired is not None:
        out = out | retired[added.items]
    return added.items, scores.masked_fill(out, -torch.inf)


def _join(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], top_k: int) -> tuple[Tensor, Tensor]:
    """Return the best `top_k` of two lists of different items."""
    items, scores = (torch.cat(parts, dim=1) for parts in zip(first, second, strict=True))
    items, scores = in_order(items, scores)
    return items[:, :top_k], scores[:, :top_k]


def _exclude_from(scores: Tensor, columns: Tensor) -> Tensor:
    """[N, C] scores, -inf at the given columns; columns outside 0..C-1 exclude nothing."""
    inside = (columns >= 0) & (columns < scores.shape[1])
    aside = torch.where(inside, columns, scores.shape[1])
    return F.pad(scores, (0, 1)).scatter_(1, aside, -torch.inf)[:, :-1]
