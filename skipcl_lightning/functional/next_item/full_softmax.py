"""Cross-entropy over the whole catalogue, in chunks of queries."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from skipcl_lightning._checks import check_indices, check_integer, check_shape
from skipcl_lightning.functional.products import autocast_dtype, without_autocast

__all__ = [
    "check_softmax_arguments",
    "chunked_softmax_loss",
    "full_softmax_loss",
    "log_partition",
    "normalised_weights",
]

# The default number of logits in a chunk, and the least number of queries: what fits the caches of a CPU, and
# what keeps a GPU busy.
_CPU_CHUNK = (1 << 22, 64)
_DEVICE_CHUNK = (1 << 26, 256)


def full_softmax_loss(query: Tensor, item_embeddings: Tensor, target: Tensor) -> Tensor:
    r"""Return the cross-entropy of each target over the whole catalogue.

    $$
    \ell = -\log \frac{\exp(q \cdot e_{target})}{\sum_{i=1}^{V} \exp(q \cdot e_i)}
    $$

    The padding row is no candidate.

    Args:
        query: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        target: [N] int64 in 1..V.

    Returns:
        [N] losses.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree, or a target is not in 1..V.

    Examples:
        >>> table = torch.tensor([[9.0], [1.0], [1.0]])
        >>> full_softmax_loss(torch.ones(1, 1), table, torch.tensor([2])).round(decimals=4)
        tensor([0.6931])
    """
    check_softmax_arguments(query, item_embeddings, target)
    logits = query @ item_embeddings[1:].T  # [N, V]
    return F.cross_entropy(logits, target - 1, reduction="none")


def chunked_softmax_loss(
    query: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Return the weighted mean of `full_softmax_loss`, computed in chunks of queries.

    $$
    L = \frac{\sum_n w_n \ell_n}{\sum_n w_n}, \quad
    \ell_n = \log \sum_{i=1}^{V} \exp(q_n \cdot e_i) - q_n \cdot e_{target_n}
    $$

    The [N, V] logits are never held at once. The chunks are those of
    `torch.nn.functional.linear_cross_entropy`; before torch 2.13, of `torch.utils.checkpoint`. Under bfloat16
    autocast the products are taken in bfloat16; under float16 in float32, because float16 cannot hold the
    gradients of improbable items. There is no second derivative and no gradient of the weights. Within
    `torch.compile` all logits are held at once.

    Args:
        query: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding and no candidate.
        target: [N] int64 in 1..V.
        weight: [N] floating point, 0 or more; None for equal weights.
        chunk_size: Queries in a chunk; None for about 2^22 logits on a CPU and 2^26 elsewhere, with at least
            64 and 256 queries.

    Returns:
        A float32 (or float64) scalar; exactly 0, with a zero gradient, without queries.

    Raises:
        TypeError: A tensor has the wrong dtype, or `chunk_size` is no integer.
        ValueError: Shapes disagree, a target is not in 1..V, or `chunk_size` is below 1.

    Examples:
        >>> table = torch.tensor([[9.0], [1.0], [1.0]])
        >>> chunked_softmax_loss(torch.ones(3, 1), table, torch.tensor([2, 1, 2])).round(decimals=4)
        tensor(0.6931)
    """
    check_softmax_arguments(query, item_embeddings, target, weight)
    if chunk_size is None:
        chunk_size = _queries_in_chunk(query, item_embeddings)
    check_integer("chunk_size", chunk_size)
    share = normalised_weights(query, weight)
    if torch.compiler.is_compiling():
        return (full_softmax_loss(query, item_embeddings, target) * share).sum()
    precision = autocast_dtype(query)
    precision = torch.float32 if precision == torch.float16 else precision
    with without_autocast(query.device):
        queries, items = query.to(precision), item_embeddings[1:].to(precision)
        if not len(query):
            return queries.sum().to(share.dtype) + 0 * items.sum()
        if weight is None and precision == share.dtype:
            return _chunked_losses(queries, items, target - 1, "mean", chunk_size)
        return (_chunked_losses(queries, items, target - 1, "none", chunk_size) * share).sum()


def log_partition(query: Tensor, item_embeddings: Tensor, *, chunk_size: int | None = None) -> Tensor:
    r"""Return the logarithm of each query's softmax denominator, [N], computed in chunks of queries.

    $$
    \log \sum_{i=1}^{V} \exp(q \cdot e_i)
    $$

    The logits of a chunk are computed again in the backward pass (Chen et al.: Training Deep Nets with
    Sublinear Memory Cost, arXiv 1604.06174), so the [N, V] logits are never held at once. Within
    `torch.compile` they are. The dtype of `query` is that of the products and of the result.
    """
    sizes = check_shape("query", query, "N D", floating=True)
    check_shape("item_embeddings", item_embeddings, "V+1 D", sizes, floating=True)
    if chunk_size is None:
        chunk_size = _queries_in_chunk(query, item_embeddings)
    check_integer("chunk_size", chunk_size)
    items = item_embeddings[1:].to(query.dtype)
    if torch.compiler.is_compiling() or len(query) <= chunk_size:
        return _log_sums(query, items)
    parts = [
        checkpoint(_log_sums, part, items, use_reentrant=False, preserve_rng_state=False)
        for part in torch.split(query, chunk_size)
    ]
    return torch.cat(parts)


def normalised_weights(query: Tensor, weight: Tensor | None) -> Tensor:
    """Return the [N] shares of the queries in a weighted mean; all 0 if all weights are 0."""
    exact = torch.promote_types(query.dtype, torch.float32)
    share = query.new_ones(len(query), dtype=exact) if weight is None else weight.detach().to(exact)
    return share / share.sum().clamp(min=torch.finfo(exact).tiny)


def check_softmax_arguments(
    query: Tensor, item_embeddings: Tensor, target: Tensor, weight: Tensor | None = None
) -> None:
    """Check the shapes, the dtypes and, on a CPU, the range of the targets."""
    sizes = check_shape("query", query, "N D", floating=True)
    check_shape("item_embeddings", item_embeddings, "V+1 D", sizes, floating=True)
    check_shape("target", target, "N", sizes, dtype=torch.int64)
    check_indices("target", target, len(item_embeddings) - 1)
    if weight is not None:
        check_shape("weight", weight, "N", sizes, floating=True)


def _chunked_losses(
    queries: Tensor, items: Tensor, columns: Tensor, reduction: str, chunk_size: int
) -> Tensor:
    """Return the cross-entropy of each column among all items, or the mean."""
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk_size)
        return F.linear_cross_entropy(queries, items, columns, reduction=reduction, options=options)
    chunks = zip(torch.split(queries, chunk_size), torch.split(columns, chunk_size), strict=True)
    losses = torch.cat(
        [
            checkpoint(_losses, *chunk, items, use_reentrant=False, preserve_rng_state=False)
            for chunk in chunks
        ]
    )
    return losses.mean() if reduction == "mean" else losses


def _losses(queries: Tensor, columns: Tensor, items: Tensor) -> Tensor:
    return F.cross_entropy(queries @ items.T, columns, reduction="none")


def _log_sums(queries: Tensor, items: Tensor) -> Tensor:
    return (queries @ items.T).logsumexp(dim=1)


def _queries_in_chunk(query: Tensor, item_embeddings: Tensor) -> int:
    logits, least = _CPU_CHUNK if query.device.type == "cpu" else _DEVICE_CHUNK
    return max(least, logits // len(item_embeddings))
