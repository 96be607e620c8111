"""Generalised binary cross-entropy against a sample of the catalogue that all queries share."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_number
from skipcl_lightning.functional.next_item.shared_negatives import chunked_mean, shared_logits
from skipcl_lightning.functional.products import at_least_float32

__all__ = ["chunked_gbce_loss", "gbce_loss"]


def gbce_loss(
    query: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    negatives: Tensor,
    *,
    calibration: float = 0.75,
    sparse_gradients: bool = False,
) -> Tensor:
    r"""Return the generalised binary cross-entropy of each target against one shared set of sampled items.

    $$
    \ell = -\frac{1}{K + 1} \Bigl( \beta \log \sigma(q \cdot e_{target})
    + \sum_{k : n_k \ne target} \log (1 - \sigma(q \cdot e_{n_k})) \Bigr), \quad
    \beta = 1 - t (1 - \alpha), \quad \alpha = \frac{K}{V - 1}
    $$

    Binary cross-entropy against K of V - 1 negatives overestimates probabilities, because most negatives are
    missing. The factor $\beta$, a power of the target's probability, corrects this. The calibration t = 0
    gives $\beta = 1$, ordinary binary cross-entropy. t = 1 gives $\beta = \alpha$: if the negatives are
    drawn uniformly, the sigmoid of an item's score estimates the probability that the item is next. A sampled
    item that is the query's target is no negative.

    Args:
        query: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        target: [N] int64 in 1..V.
        negatives: [K] int64 in 1..V, drawn with replacement, shared by all queries. $\alpha$ is at most 1.
        calibration: t in [0, 1].
        sparse_gradients: Whether the gradient of `item_embeddings`, which must then be a leaf, is a sparse
            tensor of the used rows.

    Returns:
        [N] losses, at least float32.

    Raises:
        TypeError: A tensor has the wrong dtype, or `calibration` is no number.
        ValueError: Shapes disagree, a target is not in 1..V, or `calibration` is not in [0, 1].

    Reference:
        Petrov and Macdonald: gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with
        Negative Sampling, RecSys 2023, arXiv 2308.07192.

    Examples:
        >>> import torch
        >>> table = torch.tensor([[9.0], [0.0], [0.0], [0.0]])
        >>> target, negatives = torch.tensor([2]), torch.tensor([1])
        >>> gbce_loss(torch.ones(1, 1), table, target, negatives, calibration=0.0).round(decimals=4)
        tensor([0.6931])
        >>> gbce_loss(torch.ones(1, 1), table, target, negatives, calibration=1.0).round(decimals=4)
        tensor([0.5199])
    """
    logits = shared_logits(query, item_embeddings, target, negatives, sparse_gradients=sparse_gradients)
    return _gbce_losses(*logits, _power(item_embeddings, negatives, calibration))


def chunked_gbce_loss(
    query: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    negatives: Tensor,
    weight: Tensor | None = None,
    *,
    calibration: float = 0.75,
    sparse_gradients: bool = False,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Return the weighted mean of `gbce_loss`, computed in chunks of queries.

    $$
    L = \frac{\sum_n w_n \ell_n}{\sum_n w_n}
    $$

    The gradient of a chunk is computed with its loss, and the [N, K] logits are never held at once. Under
    autocast the products have its dtype, all else is float32. There is no second derivative and no gradient
    of the weights. Within `torch.compile` the plain formula is used.

    Args:
        query: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        target: [N] int64 in 1..V.
        negatives: [K] int64 in 1..V, drawn with replacement, shared by all queries.
        weight: [N] floating point, 0 or more; None for equal weights.
        calibration: t in [0, 1].
        sparse_gradients: Whether the gradient of `item_embeddings`, which must then be a leaf, is a sparse
            tensor of the used rows.
        chunk_size: Queries in a chunk; None for about 2^18 logits on a CPU and 2^26 elsewhere.

    Returns:
        A scalar; exactly 0, with a zero gradient, without queries.

    Raises:
        TypeError: A tensor has the wrong dtype, `calibration` is no number, or `chunk_size` is no integer.
        ValueError: Shapes disagree, a target is not in 1..V, `calibration` is not in [0, 1], or `chunk_size`
            is below 1.

    Examples:
        >>> import torch
        >>> table = torch.tensor([[9.0], [0.0], [0.0], [0.0]])
        >>> target, negatives = torch.tensor([2, 3]), torch.tensor([1])
        >>> chunked_gbce_loss(torch.ones(2, 1), table, target, negatives, calibration=1.0).round(decimals=4)
        tensor(0.5199)
    """
    return chunked_mean(
        query,
        item_embeddings,
        target,
        negatives,
        weight,
        formula=partial(_gbce_losses, power=_power(item_embeddings, negatives, calibration)),
        sparse_gradients=sparse_gradients,
        chunk_size=chunk_size,
    )


def _power(item_embeddings: Tensor, negatives: Tensor, calibration: float) -> float:
    """Return beta; the paper's alpha * (t * (1 - 1 / alpha) + 1 / alpha) is the same number."""
    check_number("calibration", calibration, minimum=0, maximum=1)
    num_others = max(1, len(item_embeddings) - 2)
    alpha = min(1.0, len(negatives) / num_others)
    return 1 - calibration * (1 - alpha)


def _gbce_losses(own: Tensor, logits: Tensor, is_target: Tensor, power: float) -> Tensor:
    # softplus(-x) = -log(sigmoid(x)), and softplus(x) = -log(1 - sigmoid(x)): no sigmoid rounds to 0 or 1.
    positive = power * F.softplus(-at_least_float32(own)).squeeze(1)
    negative = F.softplus(at_least_float32(logits)).masked_fill(is_target, 0).sum(dim=1)
    return (positive + negative) / (1 + logits.shape[1])
