"""The rank of a target among all items: what every metric is computed from."""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer, check_shape
from skipcl_lightning.batch import PADDING_INDEX

__all__ = ["TieRule", "catalogue_scores", "exclude_items", "score_ranks", "target_ranks"]

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

    The target's score is read from the same product as its competitors' (see ``catalogue_scores``), so that
    a collapsed table, whose rows are all equal, ranks every target last.

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
    check_shape("target", target, "N", sizes, dtype=torch.int64)
    ranks = [queries.new_empty(0, dtype=torch.float32 if ties == "mean" else torch.int64)]
    for rows, scores in catalogue_scores(
        queries, item_embeddings, exclude=exclude, keep=target, chunk_size=chunk_size
    ):
        ranks.append(score_ranks(scores[:, 1:], target[rows] - 1, ties=ties))
    return torch.cat(ranks)


@torch.no_grad()
def catalogue_scores(
    queries: Tensor,
    item_embeddings: Tensor,
    *,
    exclude: Tensor | None = None,
    keep: Tensor | None = None,
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
        keep: [N] int64, an item of each query that is never excluded.
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
    _check_catalogue(queries, item_embeddings, exclude)
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
            _exclude(scores, exclude[rows], None if keep is None else keep[rows, None])
        yield rows, scores


def _check_catalogue(queries: Tensor, item_embeddings: Tensor, exclude: Tensor | None) -> None:
    sizes = check_shape("queries", queries, "N D", floating=True)
    check_shape("item_embeddings", item_embeddings, "V+1 D", sizes, floating=True)
    if exclude is not None:
        check_shape("exclude", exclude, "N S", sizes, dtype=torch.int64)
    if len(item_embeddings) < 2:
        raise ValueError(
            f"`item_embeddings` must have at least 2 rows, got {len(item_embeddings)}. "
            "Row 0 is padding; the items' rows follow it."
        )


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
    return _exclude(scores.clone(), exclude, None if keep is None else keep[:, None])


def _exclude(scores: Tensor, exclude: Tensor, keep: Tensor | None) -> Tensor:
    """Put the excluded items of ``scores`` last, in place: the cost is that of the excluded alone."""
    kept = None if keep is None else scores.gather(1, keep)
    scores.scatter_(1, exclude, -torch.inf)
    if keep is not None and kept is not None:
        scores.scatter_(1, keep, kept)
    return scores
