"""Losses against one set of sampled items that all queries share, in chunks of queries."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skipcl_lightning._checks import check_integer, check_shape
from skipcl_lightning.functional.next_item.full_softmax import check_softmax_arguments, normalised_weights
from skipcl_lightning.functional.next_item.look_up import look_up
from skipcl_lightning.functional.products import autocast_dtype, without_autocast

__all__ = ["Formula", "Hits", "Slopes", "chunked_mean", "shared_logits"]

# Target logits [N, 1], negative logits [N, K], and where a negative is the target -> losses [N].
Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
# A mask, or the rows and columns in a chunk: both are an index of the chunk's logits.
Hits = Tensor | tuple[Tensor, Tensor]
# The same arguments -> losses [N] and their gradients by both logits; may overwrite the negative logits.
Slopes = Callable[[Tensor, Tensor, Hits], tuple[Tensor, Tensor, Tensor]]

# The default number of logits in a chunk: what fits the caches of a CPU, and what keeps a GPU busy.
_CPU_LOGITS = 1 << 18
_DEVICE_LOGITS = 1 << 26


def shared_logits(
    query: Tensor, item_embeddings: Tensor, target: Tensor, negatives: Tensor, *, sparse_gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits of targets [N, 1] and shared negatives [N, K], and where a negative is the target.

    The arguments are those of the losses, `gbce_loss` for one, which the function checks.
    """
    check_softmax_arguments(query, item_embeddings, target)
    check_shape("negatives", negatives, "K", dtype=torch.int64)
    negative_rows, target_rows = (
        look_up(items, item_embeddings, sparse=sparse_gradients) for items in (negatives, target)
    )
    own = (query * target_rows).sum(dim=1, keepdim=True)  # [N, 1]
    return own, query @ negative_rows.T, negatives == target[:, None]


def chunked_mean(
    query: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    negatives: Tensor,
    weight: Tensor | None,
    *,
    formula: Formula,
    slopes: Slopes | None = None,
    precision: torch.dtype | None = None,
    sparse_gradients: bool,
    chunk_size: int | None,
) -> Tensor:
    """Return the weighted mean of a loss against shared negatives, computed in chunks of queries.

    The gradient of a chunk is computed with its loss, while its logits are in the CPU's cache, and the [N, K]
    logits are never held at once. There is no second derivative and no gradient of the weights. Within
    `torch.compile` the formula is applied to all logits at once.

    `formula` must be finite, with finite gradients, where all negatives are the target. `slopes` takes less
    time than autograd, the default; on a CPU it gets the places of the few negatives that are the target,
    because a mask of all logits takes longer than their exponentials. `precision` is the dtype of the
    products; None for autocast's, or the query's own. The other arguments are those of `chunked_gbce_loss`,
    as are the result and the errors.
    """
    check_softmax_arguments(query, item_embeddings, target, weight)
    check_shape("negatives", negatives, "K", dtype=torch.int64)
    if chunk_size is None:
        logits = _CPU_LOGITS if query.device.type == "cpu" else _DEVICE_LOGITS
        chunk_size = max(1, logits // max(1, len(negatives)))
    check_integer("chunk_size", chunk_size)
    share = normalised_weights(query, weight)
    if torch.compiler.is_compiling():
        logits_and_hits = shared_logits(
            query, item_embeddings, target, negatives, sparse_gradients=sparse_gradients
        )
        return (formula(*logits_and_hits) * share).sum()
    negative_rows, target_rows = (
        look_up(items, item_embeddings, sparse=sparse_gradients) for items in (negatives, target)
    )
    places = None
    if not torch.is_grad_enabled():
        slopes = None
    elif slopes is None:
        slopes = _slopes_by_autograd(formula)
    elif query.device.type == "cpu":
        places = _find_targets(negatives, target, chunk_size)
    precision = autocast_dtype(query) if precision is None else precision
    loss: Tensor = _ChunkedMean.apply(  # type: ignore[no-untyped-call]
        query,
        target_rows,
        negative_rows,
        target,
        negatives,
        share,
        formula,
        slopes,
        places,
        precision,
        chunk_size,
    )
    return loss


class _ChunkedMean(torch.autograd.Function):
    """The mean loss; its gradients are computed in the forward pass, if gradients are enabled."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        target_rows: Tensor,
        negative_rows: Tensor,
        target: Tensor,
        negatives: Tensor,
        share: Tensor,
        formula: Formula,
        slopes: Slopes | None,
        places: list[tuple[Tensor, Tensor]] | None,
        low: torch.dtype,
        chunk_size: int,
    ) -> Tensor:
        exact = torch.promote_types(low, torch.float32)
        queries, candidates = query.to(low), negative_rows.to(low)
        own = (queries * target_rows.to(low)).sum(dim=1, keepdim=True).to(exact)  # [N, 1]
        own_slope = torch.empty_like(own)
        query_gradient = torch.empty_like(query, dtype=exact)
        candidate_gradient = torch.zeros_like(candidates, dtype=exact)
        loss = torch.zeros((), dtype=exact, device=query.device)
        # In float16, a small probability times a small weight would become 0, and so would the gradient. Both
        # are multiplied by these factors, and their product is divided by both.
        of_slope, of_query = (256.0, 16.0) if low == torch.float16 else (1.0, 1.0)
        with without_autocast(query.device):
            for number, start in enumerate(range(0, len(query), chunk_size)):
                rows = slice(start, start + chunk_size)
                shares = share[rows, None].to(exact)
                logits = (queries[rows] @ candidates.T).to(exact)  # [chunk, K]
                if places is not None:
                    hits: Any = places[number]
                else:
                    hits = negatives == target[rows, None]
                if slopes is None:
                    loss += (formula(own[rows], logits, hits) * shares[:, 0]).sum()
                    continue
                losses, by_own, slope = slopes(own[rows], logits, hits)
                loss += (losses * shares[:, 0]).sum()
                own_slope[rows] = by_own * shares
                # The row's weight is applied to the query, not to the gradient by the logits.
                slope = (slope if of_slope == 1 else slope * of_slope).to(low)
                query_gradient[rows] = (slope @ candidates) * (shares / of_slope)
                weighted = (queries[rows] * (shares * of_query)).to(low)
                candidate_gradient.add_(slope.T @ weighted, alpha=1 / (of_slope * of_query))
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
        return (*found, *[None] * 8)


def _find_targets(negatives: Tensor, target: Tensor, chunk_size: int) -> list[tuple[Tensor, Tensor]]:
    """Return, for each chunk of queries, the rows and columns of its logits whose negative is the target."""
    order = negatives.argsort()
    ordered = negatives[order]
    first = torch.searchsorted(ordered, target)
    counts = torch.searchsorted(ordered, target, right=True) - first
    rows = torch.arange(len(target)).repeat_interleave(counts)
    in_run = torch.arange(len(rows)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    columns = order[first.repeat_interleave(counts) + in_run]
    ends = counts.cumsum(0)[chunk_size - 1 : -1 : chunk_size]
    return list(zip((rows % chunk_size).tensor_split(ends), columns.tensor_split(ends), strict=True))


def _slopes_by_autograd(formula: Formula) -> Slopes:
    def slopes(own: Tensor, logits: Tensor, is_target: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            own, logits = own.detach().requires_grad_(), logits.detach().requires_grad_()
            losses = formula(own, logits, is_target)
            by_own, by_logits = torch.autograd.grad(losses.sum(), (own, logits))
        return losses, by_own, by_logits

    return slopes
