"""Scores of the whole catalogue, some queries at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

from skipcl_lightning._checks import check_integer, check_shape
from skipcl_lightning.batch import PADDING_INDEX

__all__ = ["catalogue_scores", "check_catalogue", "exclude_items"]


@torch.no_grad()
def catalogue_scores(
    queries: Tensor,
    item_embeddings: Tensor,
    *,
    exclude: Tensor | None = None,
    chunk_size: int = 2**24,
) -> Iterator[tuple[slice, Tensor]]:
    """Inner products of the queries with every item, some queries at a time.

    Products are taken in float64 and returned in float32. A float32 product rounds equal rows of the
    table differently at the edges of its blocks, which would let a collapsed table rank first instead of
    last. (On MPS, which has no float64, they are taken in float32.)

    Args:
        queries: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        exclude: [N, S] int64 items in 0..V that score -inf; 0 excludes nothing.
        chunk_size: The most scores held at once, at least one query's.

    Yields:
        The slice of queries, and their [rows, V + 1] float32 scores, one column an item index, that of
        padding -inf. The next chunk overwrites them.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree, the catalogue is empty or ``chunk_size`` is below 1.

    Example:
        >>> table = torch.tensor([[9.0], [1.0], [3.0]])
        >>> chunks = catalogue_scores(torch.tensor([[1.0], [2.0]]), table, chunk_size=3)
        >>> [scores.tolist() for _, scores in chunks]
        [[[-inf, 1.0, 3.0]], [[-inf, 2.0, 6.0]]]
    """
    check_catalogue(queries, item_embeddings, exclude)
    check_integer("chunk_size", chunk_size)
    wide = torch.float32 if queries.device.type == "mps" else torch.float64
    table = item_embeddings.to(wide).T  # [D, V + 1]
    step = max(1, chunk_size // len(item_embeddings))
    # Fresh memory for every product would take longer than the product.
    products = table.new_empty(min(step, len(queries)), len(item_embeddings))
    narrow = torch.empty_like(products, dtype=torch.float32)
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        length = rows.stop - rows.start
        torch.mm(queries[rows].to(wide), table, out=products[:length])  # with `out`, autocast stays away
        scores = narrow[:length].copy_(products[:length])  # [rows, V + 1]
        scores[:, PADDING_INDEX] = -torch.inf
        if exclude is not None:
            scores.scatter_(1, exclude[rows], -torch.inf)
        yield rows, scores


def check_catalogue(queries: Tensor, item_embeddings: Tensor, exclude: Tensor | None) -> dict[str, int]:
    """Raise unless queries, items and exclusions fit together.

    Args:
        queries: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        exclude: [N, S] int64, or None.

    Returns:
        The sizes by letter.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree or the catalogue is empty.
    """
    sizes = check_shape("queries", queries, "N D", floating=True)
    check_shape("item_embeddings", item_embeddings, "V+1 D", sizes, floating=True)
    if exclude is not None:
        check_shape("exclude", exclude, "N S", sizes, dtype=torch.int64)
    if len(item_embeddings) < 2:
        raise ValueError(
            f"`item_embeddings` must have at least 2 rows, got {len(item_embeddings)}. "
            "Row 0 is padding; the items' rows follow it."
        )
    return sizes


def exclude_items(scores: Tensor, exclude: Tensor, *, keep: Tensor | None = None) -> Tensor:
    """Scores with some items of each row put last.

    Args:
        scores: [N, C] floating point, one column an item.
        exclude: [N, S] int64 columns that are no candidates.
        keep: [N] int64, a column of each row that stays as it is.

    Returns:
        [N, C], -inf at what is excluded.

    Example:
        >>> exclude_items(torch.ones(1, 3), torch.tensor([[0, 2]]), keep=torch.tensor([2]))
        tensor([[-inf, 1., 1.]])
    """
    excluded = scores.scatter(1, exclude, -torch.inf)
    return excluded if keep is None else excluded.scatter(1, keep[:, None], scores.gather(1, keep[:, None]))
