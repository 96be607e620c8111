"""The sum that a softmax over the whole catalogue divides by."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from skipcl_lightning._checks import check_integer, check_shape
from skipcl_lightning.functional.chunked_softmax import queries_in_chunk

__all__ = ["log_partition"]


def log_partition(query: Tensor, item_embeddings: Tensor, *, chunk_size: int | None = None) -> Tensor:
    r"""The logarithm of each query's sum over the whole catalogue, a chunk of queries at a time.

    $$
    \log \sum_{i=1}^{V} \exp(q \cdot e_i)
    $$

    The padding row is no candidate. Logits are found anew for the gradients, a chunk at a time, so that the
    [N, V] logits never exist; within `torch.compile` the plain formula is used.

    Args:
        query: [N, D] floating point; products are taken in its precision.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        chunk_size: Queries in a chunk; if None as many as `chunked_softmax_loss` takes.

    Returns:
        [N], of the dtype of `query`.

    Raises:
        TypeError: A tensor has the wrong dtype, or `chunk_size` is no integer.
        ValueError: Shapes disagree or `chunk_size` is below 1.

    Reference:
        Chen et al.: Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174.

    Examples:
        >>> log_partition(torch.ones(2, 1), torch.tensor([[9.0], [1.0], [1.0]])).round(decimals=4)
        tensor([1.6931, 1.6931])
    """
    sizes = check_shape("query", query, "N D", floating=True)
    check_shape("item_embeddings", item_embeddings, "V+1 D", sizes, floating=True)
    if chunk_size is None:
        chunk_size = queries_in_chunk(query, item_embeddings)
    check_integer("chunk_size", chunk_size)
    items = item_embeddings[1:].to(query.dtype)
    if torch.compiler.is_compiling() or len(query) <= chunk_size:
        return _plain(query, items)
    parts = [
        checkpoint(_plain, part, items, use_reentrant=False, preserve_rng_state=False)
        for part in torch.split(query, chunk_size)
    ]
    return torch.cat(parts)


def _plain(query: Tensor, items: Tensor) -> Tensor:
    return (query @ items.T).logsumexp(dim=1)
