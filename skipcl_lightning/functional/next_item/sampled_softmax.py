"""Cross-entropy against a sample of the catalogue that all queries share."""

import math
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer, check_shape
from skipcl_lightning.functional.next_item.shared_negatives import Hits, chunked_mean, shared_logits

__all__ = [
    "Sampler",
    "chunked_sampled_softmax_loss",
    "sample_items",
    "sampled_softmax_loss",
    "sampling_log_probability",
]

Sampler = Literal["uniform", "log_uniform"]


def sampled_softmax_loss(
    query: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    negatives: Tensor,
    *,
    negative_log_probability: Tensor | None = None,
    sparse_gradients: bool = False,
) -> Tensor:
    r"""Return the cross-entropy of each target against one shared set of sampled items.

    $$
    \ell = -\log \frac{\exp(q \cdot e_{target})}
    {\exp(q \cdot e_{target}) + \sum_{k : n_k \ne target} \exp(q \cdot e_{n_k} - c_k)}
    $$

    A sampled item that is the query's target is no negative. Without `negative_log_probability` c_k = 0. With
    it c_k = log(K · P(n_k)), which makes the sum an unbiased estimate of the full softmax's sum over all
    other items. The target is not corrected, because it is always a candidate.

    Args:
        query: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        target: [N] int64 in 1..V.
        negatives: [K] int64 in 1..V, drawn with replacement, shared by all queries.
        negative_log_probability: [K] log P(n_k) of each draw under the sampler (logQ correction), or None.
        sparse_gradients: Whether the gradient of `item_embeddings`, which must then be a leaf, is a sparse
            tensor of the used rows.

    Returns:
        [N] losses.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree, or a target is not in 1..V.

    Reference:
        Bengio and Senécal: Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic
        Language Model, IEEE Transactions on Neural Networks 19(4), 2008, doi 10.1109/TNN.2007.912312.

    Examples:
        >>> table = torch.tensor([[9.0], [1.0], [1.0]])
        >>> target, negatives = torch.tensor([2]), torch.tensor([1, 2])
        >>> sampled_softmax_loss(torch.ones(1, 1), table, target, negatives).round(decimals=4)
        tensor([0.6931])
    """
    logits = shared_logits(query, item_embeddings, target, negatives, sparse_gradients=sparse_gradients)
    return _softmax_losses(*logits, _correction(negatives, negative_log_probability))


def chunked_sampled_softmax_loss(
    query: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    negatives: Tensor,
    weight: Tensor | None = None,
    *,
    negative_log_probability: Tensor | None = None,
    sparse_gradients: bool = False,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Return the weighted mean of `sampled_softmax_loss`, computed in chunks of queries.

    $$
    L = \frac{\sum_n w_n \ell_n}{\sum_n w_n}
    $$

    The gradient of a chunk is computed with its loss, while its logits are in the CPU's cache, and the [N, K]
    logits are never held at once. Under autocast the products have its dtype, all else is float32. There is
    no second derivative and no gradient of the weights. Within `torch.compile` the plain formula is used.

    Args:
        query: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        target: [N] int64 in 1..V.
        negatives: [K] int64 in 1..V, drawn with replacement, shared by all queries.
        weight: [N] floating point, 0 or more; None for equal weights.
        negative_log_probability: [K] log P(n_k) of each draw under the sampler (logQ correction), or None.
        sparse_gradients: Whether the gradient of `item_embeddings`, which must then be a leaf, is a sparse
            tensor of the used rows.
        chunk_size: Queries in a chunk; None for about 2^18 logits on a CPU and 2^26 elsewhere.

    Returns:
        A scalar; exactly 0, with a zero gradient, without queries.

    Raises:
        TypeError: A tensor has the wrong dtype, or `chunk_size` is no integer.
        ValueError: Shapes disagree, a target is not in 1..V, or `chunk_size` is below 1.

    Examples:
        >>> table = torch.tensor([[9.0], [1.0], [1.0]])
        >>> target, negatives = torch.tensor([2, 2, 1]), torch.tensor([1, 2])
        >>> chunked_sampled_softmax_loss(torch.ones(3, 1), table, target, negatives).round(decimals=4)
        tensor(0.6931)
    """
    correction = _correction(negatives, negative_log_probability)
    return chunked_mean(
        query,
        item_embeddings,
        target,
        negatives,
        weight,
        formula=partial(_softmax_losses, correction=correction),
        slopes=partial(_softmax_slopes, correction=correction),
        sparse_gradients=sparse_gradients,
        chunk_size=chunk_size,
    )


def sample_items(
    num_samples: int,
    num_items: int,
    *,
    sampler: Sampler = "uniform",
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw items with replacement, uniformly or by popularity rank.

    `log_uniform`: P(i) = log((i + 1) / i) / log(V + 1), an approximation of Zipf's law for vocabularies that
    are ordered by falling popularity, as `ItemVocabulary` is.

    Args:
        num_samples: K, at least 1 and below the catalogue's size.
        num_items: V, at least 2.
        sampler: `uniform` or `log_uniform`.
        device: The device of the samples.
        generator: The source of randomness; None for torch's global generator.

    Returns:
        [K] int64 in 1..V.

    Raises:
        ValueError: `num_samples` is not below the number of items.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> sample_items(4, 10, generator=generator).shape
        torch.Size([4])
    """
    check_choice("sampler", sampler, get_args(Sampler))
    check_integer("num_items", num_items, minimum=2)
    cure = f"A catalogue of {num_items} items has room for {num_items - 1} negatives: use the full softmax."
    check_integer("num_samples", num_samples, maximum=num_items - 1, cure=cure)
    if sampler == "uniform":
        return torch.randint(1, num_items + 1, (num_samples,), device=device, generator=generator)
    # float32 cannot tell items beyond 2^24 apart.
    uniform = torch.rand(num_samples, device=device, generator=generator, dtype=torch.float64)
    return (uniform * math.log(num_items + 1)).exp().long().clamp(min=1, max=num_items)


def sampling_log_probability(items: Tensor, num_items: int, *, sampler: Sampler = "uniform") -> Tensor:
    """Return the log probability that one draw of `sample_items` is the given item.

    Args:
        items: [K] int64 in 1..V.
        num_items: V.
        sampler: The sampler.

    Returns:
        [K] float32.

    Raises:
        ValueError: The sampler is unknown.

    Examples:
        >>> sampling_log_probability(torch.tensor([1, 2]), 2, sampler="log_uniform").exp().sum()
        tensor(1.)
    """
    check_choice("sampler", sampler, get_args(Sampler))
    check_integer("num_items", num_items)
    if sampler == "uniform":
        return torch.full(items.shape, -math.log(num_items), device=items.device)
    return (torch.log1p(1 / items.float()) / math.log(num_items + 1)).log()


def _correction(negatives: Tensor, negative_log_probability: Tensor | None) -> Tensor | None:
    if negative_log_probability is None:
        return None
    sizes = check_shape("negatives", negatives, "K", dtype=torch.int64)
    check_shape("negative_log_probability", negative_log_probability, "K", sizes, floating=True)
    return negative_log_probability + math.log(len(negatives))


def _softmax_losses(own: Tensor, logits: Tensor, is_target: Tensor, correction: Tensor | None) -> Tensor:
    if correction is not None:
        logits = logits - correction
    # The dtype's own floor, because bf16 and fp16 cannot hold a fixed large number.
    logits = logits.masked_fill(is_target, torch.finfo(logits.dtype).min)
    logits = torch.cat([own.to(logits.dtype), logits], dim=1)  # [N, 1 + K]
    return F.cross_entropy(logits, is_target.new_zeros(len(logits), dtype=torch.int64), reduction="none")


def _softmax_slopes(
    own: Tensor, logits: Tensor, hits: Hits, correction: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses and their gradients by the logits; overwrite the logits, to save memory traffic."""
    if correction is not None:
        logits -= correction.to(logits.dtype)
    logits[hits] = -torch.inf
    highest = torch.maximum(logits.amax(dim=1, keepdim=True), own)
    weights = logits.sub_(highest).exp_()
    own_weight = (own - highest).exp()
    total = weights.sum(dim=1, keepdim=True) + own_weight
    losses = (highest + total.log() - own).squeeze(1)
    return losses, own_weight / total - 1, weights.mul_(1 / total)
