"""Queries and the catalogue: whether they fit together, and which items are no candidates."""

import torch
from torch import Tensor

from skipcl_lightning._checks import check_shape

__all__ = ["check_catalogue", "exclude_items"]


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

    Examples:
        >>> exclude_items(torch.ones(1, 3), torch.tensor([[0, 2]]), keep=torch.tensor([2]))
        tensor([[-inf, 1., 1.]])
    """
    excluded = scores.scatter(1, exclude, -torch.inf)
    return excluded if keep is None else excluded.scatter(1, keep[:, None], scores.gather(1, keep[:, None]))
