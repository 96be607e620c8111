"""BPR-max, a pairwise loss against a sample of the catalogue that all queries share."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_number
from skipcl_lightning.functional.next_item.shared_negatives import chunked_mean, shared_logits
from skipcl_lightning.functional.products import at_least_float32, autocast_dtype

__all__ = ["bpr_max_loss", "chunked_bpr_max_loss"]


def bpr_max_loss(
    query: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    negatives: Tensor,
    *,
    regularisation: float = 1.0,
    sparse_gradients: bool = False,
) -> Tensor:
    r"""Return the BPR-max loss of each target against one shared set of sampled items.

    $$
    \ell = -\log \sum_k s_k \sigma(r - r_k) + \lambda \sum_k s_k r_k^2, \quad
    s_k = \frac{\exp(r_k)}{\sum_j \exp(r_j)}, \quad r = q \cdot e_{target}, \quad r_k = q \cdot e_{n_k}
    $$

    The softmax $s$ is taken over the negatives alone, so the highest ones get most of the gradient. A sampled
    item that is the query's target is no negative. Without another negative the loss is 0.

    Args:
        query: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        target: [N] int64 in 1..V.
        negatives: [K] int64 in 1..V, drawn with replacement, shared by all queries.
        regularisation: The weight of the squared scores of the negatives, at least 0.
        sparse_gradients: Whether the gradient of `item_embeddings`, which must then be a leaf, is a sparse
            tensor of the used rows.

    Returns:
        [N] losses, at least float32.

    Raises:
        TypeError: A tensor has the wrong dtype, or `regularisation` is no number.
        ValueError: Shapes disagree, a target is not in 1..V, or `regularisation` is negative.

    Reference:
        Hidasi and Karatzoglou: Recurrent Neural Networks with Top-k Gains for Session-based Recommendations,
        CIKM 2018, arXiv 1706.03847.

    Examples:
        >>> table = torch.tensor([[9.0], [1.0], [1.0], [1.0]])
        >>> target, negatives = torch.tensor([2]), torch.tensor([1, 2, 3])
        >>> bpr_max_loss(torch.ones(1, 1), table, target, negatives).round(decimals=4)
        tensor([1.6931])
    """
    check_number("regularisation", regularisation, minimum=0)
    logits = shared_logits(query, item_embeddings, target, negatives, sparse_gradients=sparse_gradients)
    return _bpr_max_losses(*logits, regularisation)


def chunked_bpr_max_loss(
    query: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    negatives: Tensor,
    weight: Tensor | None = None,
    *,
    regularisation: float = 1.0,
    sparse_gradients: bool = False,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Return the weighted mean of `bpr_max_loss`, computed in chunks of queries.

    $$
    L = \frac{\sum_n w_n \ell_n}{\sum_n w_n}
    $$

    The gradient of a chunk is computed with its loss, and the [N, K] logits are never held at once. Under
    bfloat16 autocast the products are taken in bfloat16; under float16 in float32, because float16 cannot
    hold the gradients of large squared scores. There is no second derivative and no gradient of the weights.
    Within `torch.compile` the plain formula is used.

    Args:
        query: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        target: [N] int64 in 1..V.
        negatives: [K] int64 in 1..V, drawn with replacement, shared by all queries.
        weight: [N] floating point, 0 or more; None for equal weights.
        regularisation: The weight of the squared scores of the negatives, at least 0.
        sparse_gradients: Whether the gradient of `item_embeddings`, which must then be a leaf, is a sparse
            tensor of the used rows.
        chunk_size: Queries in a chunk; None for about 2^18 logits on a CPU and 2^26 elsewhere.

    Returns:
        A scalar; exactly 0, with a zero gradient, without queries.

    Raises:
        TypeError: A tensor has the wrong dtype, `regularisation` is no number, or `chunk_size` is no integer.
        ValueError: Shapes disagree, a target is not in 1..V, `regularisation` is negative, or `chunk_size` is
            below 1.

    Examples:
        >>> table = torch.tensor([[9.0], [1.0], [1.0], [1.0]])
        >>> target, negatives = torch.tensor([2, 1]), torch.tensor([1, 2, 3])
        >>> chunked_bpr_max_loss(torch.ones(2, 1), table, target, negatives).round(decimals=4)
        tensor(1.6931)
    """
    check_number("regularisation", regularisation, minimum=0)
    precision = autocast_dtype(query)
    return chunked_mean(
        query,
        item_embeddings,
        target,
        negatives,
        weight,
        formula=partial(_bpr_max_losses, regularisation=regularisation),
        precision=torch.float32 if precision == torch.float16 else precision,
        sparse_gradients=sparse_gradients,
        chunk_size=chunk_size,
    )


def _bpr_max_losses(own: Tensor, logits: Tensor, is_target: Tensor, regularisation: float) -> Tensor:
    own, logits = at_least_float32(own), at_least_float32(logits)
    # The least finite number, not minus infinity, whose softmax over nothing else would be NaN.
    masked = logits.masked_fill(is_target, torch.finfo(logits.dtype).min)
    log_softmax = masked.log_softmax(dim=1)
    # The sum of products as a sum of exponentials: no product rounds to 0 before its logarithm is taken.
    pairwise = -(log_softmax + F.logsigmoid(own - logits)).logsumexp(dim=1)
    penalty = (log_softmax.exp() * logits.square()).sum(dim=1)
    return (pairwise + regularisation * penalty).masked_fill(is_target.all(dim=1), 0)
