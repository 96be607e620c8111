"""Next-item cross-entropy over the whole catalogue without the logits of all queries at once."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skipcl_lightning._checks import check_integer, check_shape
from skipcl_lightning.functional.precision import autocast_dtype, without_autocast
from skipcl_lightning.functional.softmax import full_softmax_loss

__all__ = ["add_product", "chunked_softmax_loss", "normalised_weights"]

# Logits held at once: what the caches of a CPU take, and what keeps a GPU busy. Fewer queries than the second
# number in a chunk would read the table too often.
_CPU_CHUNK = (1 << 22, 64)
_DEVICE_CHUNK = (1 << 26, 256)


def chunked_softmax_loss(
    query: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    chunk_size: int | None = None,
) -> Tensor:
    r"""The weighted mean of ``full_softmax_loss``, a chunk of queries at a time.

    .. math::
        L = \frac{\sum_n w_n \ell_n}{\sum_n w_n}, \quad
        \ell_n = \log \sum_{i=1}^{V} \exp(q_n \cdot e_i) - q_n \cdot e_{target_n}

    The gradient of a chunk is found with its loss and added up, so that the [N, V] logits never exist: memory
    is that of a chunk's, of [N, D] and of [V + 1, D]. Under autocast products are in its precision, all else
    in float32. There is no second derivative, and none for the weights. Within ``torch.compile`` the plain
    formula is used.

    Args:
        query: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        target: [N] int64 in 1..V.
        weight: [N] floating point, 0 or more; None for alike.
        chunk_size: Queries in a chunk; if None as many as make about 2^22 logits on a CPU and 2^26 elsewhere,
            but at least 64 and 256.

    Returns:
        A scalar; exactly 0, with a zero gradient, without queries.

    Raises:
        TypeError: A tensor has the wrong dtype, or ``chunk_size`` is no integer.
        ValueError: Shapes disagree or ``chunk_size`` is below 1.

    Reference:
        Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", ICLR 2025, arXiv 2411.09009,
        which goes further and keeps the logits in a GPU's registers.

    Example:
        >>> table = torch.tensor([[9.0], [1.0], [1.0]])
        >>> chunked_softmax_loss(torch.ones(3, 1), table, torch.tensor([2, 1, 2])).round(decimals=4)
        tensor(0.6931)
    """
    sizes = check_shape("query", query, "N D", floating=True)
    check_shape("item_embeddings", item_embeddings, "V+1 D", sizes, floating=True)
    check_shape("target", target, "N", sizes, dtype=torch.int64)
    if weight is not None:
        check_shape("weight", weight, "N", sizes, floating=True)
    if chunk_size is None:
        logits, least = _CPU_CHUNK if query.device.type == "cpu" else _DEVICE_CHUNK
        chunk_size = max(least, logits // len(item_embeddings))
    check_integer("chunk_size", chunk_size)
    share = normalised_weights(query, weight)
    if torch.compiler.is_compiling():
        return (full_softmax_loss(query, item_embeddings, target) * share).sum()
    loss: Tensor = _ChunkedSoftmax.apply(query, item_embeddings, target, share, chunk_size)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedSoftmax(torch.autograd.Function):
    """The loss, whose gradients are known as soon as it is."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, table: Tensor, target: Tensor, share: Tensor, chunk_size: int
    ) -> Tensor:
        low = autocast_dtype(query)
        exact = torch.promote_types(low, torch.float32)
        # Once, and not in each chunk.
        queries, items = query.to(low), table.to(low)
        wants_query, wants_table = ctx.needs_input_grad[:2]
        query_gradient = torch.empty_like(query) if wants_query else None
        table_gradient = torch.zeros_like(table, dtype=exact) if wants_table else None
        loss = torch.zeros((), dtype=exact, device=query.device)
        with without_autocast(query.device):
            for start in range(0, len(query), chunk_size):
                rows = slice(start, start + chunk_size)
                shares = share[rows, None].to(exact)
                logits = (queries[rows] @ items.T).to(exact)
                # Padding is no candidate.
                logits[:, 0] = -torch.inf
                log_probability = torch.log_softmax(logits, dim=1)
                place = target[rows, None]
                loss -= (log_probability.gather(1, place) * shares).sum()
                if not (wants_query or wants_table):
                    continue
                # By the logits: each row's probabilities, less 1 at its target, times its share.
                slope = (
                    log_probability.exp_().scatter_add_(1, place, torch.full_like(shares, -1)).mul_(shares)
                )
                slope = slope.to(low)
                if query_gradient is not None:
                    query_gradient[rows] = slope @ items
                if table_gradient is not None:
                    add_product(table_gradient, slope.T, queries[rows])
        ctx.save_for_backward(
            query_gradient, None if table_gradient is None else table_gradient.to(table.dtype)
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (gradient,) = gradients
        query_gradient, table_gradient = (
            None if found is None else found * gradient.to(found.dtype) for found in ctx.saved_tensors
        )
        return query_gradient, table_gradient, None, None, None


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, in place where the types allow it.

    Args:
        total: [N, M], changed in place.
        left: [N, K].
        right: [K, M], of the dtype of ``left``.

    Example:
        >>> total = torch.ones(1, 1)
        >>> add_product(total, torch.full((1, 2), 3.0), torch.ones(2, 1))
        >>> total
        tensor([[7.]])
    """
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def normalised_weights(query: Tensor, weight: Tensor | None) -> Tensor:
    """What each query's loss counts in a weighted mean.

    Args:
        query: [N, D] floating point.
        weight: [N] floating point, 0 or more; None for alike.

    Returns:
        [N] float32 or wider, that add up to 1; all 0 if all weights are.

    Example:
        >>> normalised_weights(torch.ones(2, 4), torch.tensor([1.0, 3.0]))
        tensor([0.2500, 0.7500])
    """
    exact = torch.promote_types(query.dtype, torch.float32)
    share = query.new_ones(len(query), dtype=exact) if weight is None else weight.detach().to(exact)
    return share / share.sum().clamp(min=torch.finfo(exact).tiny)
