"""Cross-entropy against a sample of the catalogue that all queries share."""

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from skipcl_lightning._checks import check_choice, check_integer, check_shape
from skipcl_lightning.functional.next_item.full_softmax import check_softmax_arguments, normalised_weights
from skipcl_lightning.functional.next_item.look_up import look_up
from skipcl_lightning.functional.precision import autocast_dtype, softmax_scales, without_autocast

__all__ = [
    "Sampler",
    "chunked_sampled_softmax_loss",
    "sample_items",
    "sampled_softmax_loss",
    "sampling_log_probability",
]

Sampler = Literal["uniform", "log_uniform"]

# The default number of logits in a chunk: what fits the caches of a CPU, and what keeps a GPU busy.
_CPU_LOGITS = 1 << 18
_DEVICE_LOGITS = 1 << 26


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
    check_softmax_arguments(query, item_embeddings, target)
    sizes = check_shape("negatives", negatives, "K", dtype=torch.int64)
    negative_rows, target_rows = (
        look_up(items, item_embeddings, sparse=sparse_gradients) for items in (negatives, target)
    )
    negative_logits = query @ negative_rows.T  # [N, K]
    target_logits = (query * target_rows).sum(dim=1, keepdim=True)  # [N, 1]
    if negative_log_probability is not None:
        check_shape("negative_log_probability", negative_log_probability, "K", sizes, floating=True)
        negative_logits = negative_logits - (negative_log_probability + math.log(len(negatives)))
    # The dtype's own floor, because bf16 and fp16 cannot hold a fixed large number.
    floor = torch.finfo(negative_logits.dtype).min
    negative_logits = negative_logits.masked_fill(negatives == target[:, None], floor)
    logits = torch.cat([target_logits.to(negative_logits.dtype), negative_logits], dim=1)  # [N, 1 + K]
    return F.cross_entropy(logits, torch.zeros_like(target), reduction="none")


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
    sizes = check_softmax_arguments(query, item_embeddings, target)
    sizes = check_shape("negatives", negatives, "K", sizes, dtype=torch.int64)
    correction = None
    if negative_log_probability is not None:
        check_shape("negative_log_probability", negative_log_probability, "K", sizes, floating=True)
        correction = negative_log_probability + math.log(len(negatives))
    if weight is not None:
        check_shape("weight", weight, "N", sizes, floating=True)
    if chunk_size is None:
        logits = _CPU_LOGITS if query.device.type == "cpu" else _DEVICE_LOGITS
        chunk_size = max(1, logits // max(1, len(negatives)))
    check_integer("chunk_size", chunk_size)
    share = normalised_weights(query, weight)
    if torch.compiler.is_compiling():
        losses = sampled_softmax_loss(
            query,
            item_embeddings,
            target,
            negatives,
            negative_log_probability=negative_log_probability,
            sparse_gradients=sparse_gradients,
        )
        return (losses * share).sum()
    negative_rows, target_rows = (
        look_up(items, item_embeddings, sparse=sparse_gradients) for items in (negatives, target)
    )
    loss: Tensor = _SampledSoftmax.apply(  # type: ignore[no-untyped-call]
        query, target_rows, negative_rows, target, negatives, correction, share, chunk_size
    )
    return loss


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


class _SampledSoftmax(torch.autograd.Function):
    """The loss; its gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        target_rows: Tensor,
        negative_rows: Tensor,
        target: Tensor,
        negatives: Tensor,
        correction: Tensor | None,
        share: Tensor,
        chunk_size: int,
    ) -> Tensor:
        low = autocast_dtype(query)
        exact = torch.promote_types(low, torch.float32)
        queries, candidates = query.to(low), negative_rows.to(low)
        own = (queries * target_rows.to(low)).sum(dim=1, keepdim=True).to(exact)  # [N, 1]
        own_slope = torch.empty_like(own)
        query_gradient = torch.empty_like(query, dtype=exact)
        candidate_gradient = torch.zeros_like(candidates, dtype=exact)
        loss = torch.zeros((), dtype=exact, device=query.device)
        of_slope, of_query = softmax_scales(low)
        with without_autocast(query.device):
            for start in range(0, len(query), chunk_size):
                rows = slice(start, start + chunk_size)
                shares = share[rows, None].to(exact)
                logits = (queries[rows] @ candidates.T).to(exact)  # [chunk, K]
                if correction is not None:
                    logits -= correction.to(exact)
                logits.masked_fill_(negatives == target[rows, None], -torch.inf)
                highest = torch.maximum(logits.amax(dim=1, keepdim=True), own[rows])
                weights = logits.sub_(highest).exp_()
                own_weight = (own[rows] - highest).exp()
                total = weights.sum(dim=1, keepdim=True) + own_weight
                loss += ((highest + total.log() - own[rows]) * shares).sum()
                # The gradient by the logits is each candidate's probability; the row's weight is applied to
                # the query.
                slope = weights.mul_(of_slope / total).to(low)
                own_slope[rows] = (own_weight / total - 1) * shares
                query_gradient[rows] = (slope @ candidates) * (shares / of_slope)
                weighted = (queries[rows] * (shares * of_query)).to(low)
                _add_product(candidate_gradient, slope.T, weighted, 1 / (of_slope * of_query))
        query_gradient.addcmul_(own_slope, target_rows.to(exact))
        ctx.dtypes = query.dtype, target_rows.dtype, negative_rows.dtype
        ctx.save_for_backward(query_gradient, own_slope * queries, candidate_gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        # A GradScaler may have scaled the loss up, so that low precision can hold the gradient.
        found = ((one * gradient).to(dtype) for one, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return (*found, None, None, None, None, None)


def _add_product(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Add `scale * left @ right` to `total`, in place where the dtypes allow it."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=scale)
    else:
        total.add_(left @ right, alpha=scale)
