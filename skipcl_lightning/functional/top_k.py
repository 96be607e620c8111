"""The best items of the whole catalogue for each query."""

import torch
from torch import Tensor

from skipcl_lightning._checks import check_integer
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.catalogue import catalogue_scores

__all__ = ["top_k_items"]


def top_k_items(
    queries: Tensor,
    item_embeddings: Tensor,
    top_k: int,
    *,
    exclude: Tensor | None = None,
    chunk_size: int = 2**24,
) -> tuple[Tensor, Tensor]:
    """The ``top_k`` items with the largest inner products: exact nearest neighbours, not approximate ones.

    Ordered by score, the best first, and equal scores by item index. Of several items that tie for the
    last places, ``torch.topk`` chooses which are returned. An item whose score is NaN or -inf is no
    candidate.

    Args:
        queries: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding, and no candidate.
        top_k: Items for each query, in 1..V.
        exclude: [N, S] int64 items in 0..V that are no candidates; 0 excludes nothing.
        chunk_size: The most scores held at once, at least one query's.

    Returns:
        Items [N, top_k] int64 and their scores [N, top_k] float32. Where fewer candidates are left, item 0
        with score -inf fills the row's end.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree, ``top_k`` is more than there are items, or a setting is out of range.

    Example:
        >>> table = torch.tensor([[9.0], [1.0], [3.0], [2.0]])
        >>> top_k_items(torch.ones(1, 1), table, 2)
        (tensor([[2, 3]]), tensor([[3., 2.]]))
        >>> top_k_items(torch.ones(1, 1), table, 2, exclude=torch.tensor([[2, 3]]))
        (tensor([[1, 0]]), tensor([[1., -inf]]))
    """
    check_integer(
        "top_k", top_k, maximum=len(item_embeddings) - 1, cure="The catalogue has no more items than that."
    )
    items = [queries.new_empty(0, top_k, dtype=torch.int64)]
    scores = [queries.new_empty(0, top_k, dtype=torch.float32)]
    for _, chunk in catalogue_scores(queries, item_embeddings, exclude=exclude, chunk_size=chunk_size):
        chunk_items, chunk_scores = _best(chunk, top_k)
        items.append(chunk_items)
        scores.append(chunk_scores)
    return torch.cat(items), torch.cat(scores)


def _best(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Columns and values of the largest ``scores``, which it overwrites.

    NaN counts as -inf, since ``torch.topk`` would put it first.
    """
    scores.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    columns = scores.topk(top_k, dim=1).indices.sort(dim=1).values  # [rows, top_k]
    # Stable, over columns in ascending order: equal scores stay in it.
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return columns.gather(1, order).masked_fill(values == -torch.inf, PADDING_INDEX), values
