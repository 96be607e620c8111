"""Next-item cross-entropy over the whole catalogue without the logits of all queries at once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from skipcl_lightning._checks import check_indices, check_integer, check_shape
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.precision import autocast_dtype, softmax_scales, without_autocast
from skipcl_lightning.functional.softmax import full_softmax_loss
from skipcl_lightning.functional.softmax_by_attention import can_attend, softmax_by_attention

__all__ = ["add_product", "chunked_softmax_loss", "normalised_weights", "queries_in_chunk"]

# Logits held at once: what the caches of a CPU take, and what keeps a GPU busy. Fewer queries than the second
# number in a chunk would read the table too often.
_CPU_CHUNK = (1 << 22, 64)
_DEVICE_CHUNK = (1 << 26, 256)
# e^-60: what is e^-27 of the largest exponential is then still a normal number of float32.
_LEAST_TOTAL = 1e-26


def chunked_softmax_loss(
    query: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    chunk_size: int | None = None,
) -> Tensor:
    r"""The weighted mean of `full_softmax_loss`, a chunk of queries at a time.

    $$
    L = \frac{\sum_n w_n \ell_n}{\sum_n w_n}, \quad
    \ell_n = \log \sum_{i=1}^{V} \exp(q_n \cdot e_i) - q_n \cdot e_{target_n}
    $$

    The gradient of a chunk is found with its loss and added up, so that the [N, V] logits never exist: memory
    is that of a chunk's, of [N, D] and of [V + 1, D]. Under autocast products are in its precision, all else
    in float32. There is no second derivative, and none for the weights. Within `torch.compile` the plain
    formula is used; on a GPU, in half precision and where there is more than one chunk, torch's kernel for
    attention (`softmax_by_attention`).

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
        TypeError: A tensor has the wrong dtype, or `chunk_size` is no integer.
        ValueError: Shapes disagree, a target is not in 1..V, or `chunk_size` is below 1.

    Reference:
        Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", ICLR 2025, arXiv 2411.09009,
        which goes further and keeps the logits in a GPU's registers.

    Examples:
        >>> table = torch.tensor([[9.0], [1.0], [1.0]])
        >>> chunked_softmax_loss(torch.ones(3, 1), table, torch.tensor([2, 1, 2])).round(decimals=4)
        tensor(0.6931)
    """
    sizes = check_shape("query", query, "N D", floating=True)
    check_shape("item_embeddings", item_embeddings, "V+1 D", sizes, floating=True)
    check_shape("target", target, "N", sizes, dtype=torch.int64)
    check_indices("target", target, len(item_embeddings) - 1)
    if weight is not None:
        check_shape("weight", weight, "N", sizes, floating=True)
    if chunk_size is None:
        chunk_size = queries_in_chunk(query, item_embeddings)
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
        wants_query, wants_table = ctx.needs_input_grad[:2]
        ctx.dtypes = query.dtype, table.dtype
        with without_autocast(query.device):
            if len(query) > chunk_size and can_attend(query, low):
                queries, items = query.to(low), table.to(low)
                found = softmax_by_attention(queries, items, target, share, wants_table=wants_table)
                ctx.save_for_backward(*found[1:])
                return found[0]
            sums = _Sums(query, table, target, share, low, wants_query, wants_table)
            # Whether a bound will do is known by values, for which an accelerator's host would have to wait.
            by_bound = _ByBound(sums, chunk_size) if query.device.type == "cpu" and sums.is_exact else None
            for start in range(0, len(query), chunk_size):
                rows = slice(start, start + chunk_size)
                if by_bound is None or not by_bound.add(rows):
                    _add_by_maximum(sums, rows)
        ctx.save_for_backward(sums.query_gradient, sums.table_gradient)
        return sums.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (gradient,) = gradients
        # What follows the loss may have scaled it up, so that low precision can hold the gradient.
        query_gradient, table_gradient = (
            None if found is None else (found * gradient).to(dtype)
            for found, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return query_gradient, table_gradient, None, None, None


class _Sums:
    """What the chunks add up to, and what they are made from in the precision of products."""

    def __init__(
        self,
        query: Tensor,
        table: Tensor,
        target: Tensor,
        share: Tensor,
        low: torch.dtype,
        wants_query: bool,
        wants_table: bool,
    ) -> None:
        self.exact = torch.promote_types(low, torch.float32)
        self.is_exact = low == self.exact
        # Once, and not in each chunk.
        self.queries, self.items = query.to(low), table.to(low)
        self.target, self.share = target, share.to(self.exact)
        self.query_gradient = torch.empty_like(query, dtype=self.exact) if wants_query else None
        self.table_gradient = torch.zeros_like(table, dtype=self.exact) if wants_table else None
        self.loss = torch.zeros((), dtype=self.exact, device=query.device)


def _add_by_maximum(sums: _Sums, rows: slice) -> None:
    """Add a chunk whose logits are taken less their largest: the formula as it is written."""
    queries, place, shares = sums.queries[rows], sums.target[rows, None], sums.share[rows, None]
    logits = (queries @ sums.items.T).to(sums.exact)
    # Padding is no candidate.
    logits[:, 0] = -torch.inf
    log_probability = torch.log_softmax(logits, dim=1)
    sums.loss -= (log_probability.gather(1, place) * shares).sum()
    if sums.query_gradient is None and sums.table_gradient is None:
        return
    # By the logits: each row's probabilities, less 1 at its target; its query gets what the row weighs.
    slope = log_probability.exp_().scatter_add_(1, place, torch.full_like(shares, -1))
    of_slope, of_query = softmax_scales(queries.dtype)
    slope = (slope if of_slope == 1 else slope.mul_(of_slope)).to(queries.dtype)
    if sums.query_gradient is not None:
        sums.query_gradient[rows] = (slope @ sums.items) * (shares / of_slope)
    if sums.table_gradient is not None:
        weighted = (queries * (shares * of_query)).to(queries.dtype)
        add_product(sums.table_gradient, slope.T, weighted, 1 / (of_slope * of_query))


class _ByBound:
    """Adds chunks whose logits are taken less a bound that is known before them, |q| · max |e|.

    The exponential is then all that is done to each logit: a column of ones behind the items has the bound
    subtracted by one product, and the exponentials summed by another; what scales a row is applied to its
    query.
    """

    def __init__(self, sums: _Sums, chunk_size: int) -> None:
        self.sums = sums
        self.items = F.pad(sums.items, (0, 1), value=1.0)  # [V + 1, D + 1]
        longest = sums.items[PADDING_INDEX + 1 :].norm(dim=1).max()
        self.bound = sums.queries.norm(dim=1, keepdim=True) * longest  # [N, 1]
        self.memory = sums.queries.new_empty(min(chunk_size, len(sums.queries)) * len(self.items))

    def add(self, rows: slice) -> bool:
        """False, and nothing is added, where the bound is so far above the logits that digits are lost."""
        sums = self.sums
        queries, bound, shares = sums.queries[rows], self.bound[rows], sums.share[rows, None]
        weights = self.memory[: len(queries) * len(self.items)].view(len(queries), -1)
        torch.mm(torch.cat([queries, -bound], dim=1), self.items.T, out=weights)
        weights.exp_()
        # Padding is no candidate.
        weights[:, PADDING_INDEX] = 0
        products = weights @ self.items
        total = products[:, -1:]
        if not bool((total > _LEAST_TOTAL).all()):
            return False
        target = sums.target[rows]
        own = F.embedding(target, sums.items)
        logits = (queries * own).sum(dim=1, keepdim=True)
        sums.loss += ((bound + total.log() - logits) * shares).sum()
        factor = shares / total
        if sums.query_gradient is not None:
            sums.query_gradient[rows] = products[:, :-1] * factor - own * shares
        if sums.table_gradient is not None:
            sums.table_gradient.addmm_(weights.T, queries * factor)
            sums.table_gradient.index_add_(0, target, queries * -shares)
        return True


def queries_in_chunk(query: Tensor, item_embeddings: Tensor) -> int:
    """How many queries' logits are worth holding at once.

    Args:
        query: [N, D], for its device.
        item_embeddings: [V + 1, D].

    Returns:
        1 or more.

    Examples:
        >>> queries_in_chunk(torch.ones(9, 2), torch.ones(2**14, 2))
        256
    """
    logits, least = _CPU_CHUNK if query.device.type == "cpu" else _DEVICE_CHUNK
    return max(least, logits // len(item_embeddings))


def add_product(total: Tensor, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
    """`total += scale * left @ right`, in place where the types allow it.

    Args:
        total: [N, M], changed in place.
        left: [N, K].
        right: [K, M], of the dtype of `left`.
        scale: Any number.

    Examples:
        >>> total = torch.ones(1, 1)
        >>> add_product(total, torch.full((1, 2), 3.0), torch.ones(2, 1))
        >>> total
        tensor([[7.]])
    """
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=scale)
    else:
        total.add_(left @ right, alpha=scale)


def normalised_weights(query: Tensor, weight: Tensor | None) -> Tensor:
    """What each query's loss counts in a weighted mean.

    Args:
        query: [N, D] floating point.
        weight: [N] floating point, 0 or more; None for alike.

    Returns:
        [N] float32 or wider, that add up to 1; all 0 if all weights are.

    Examples:
        >>> normalised_weights(torch.ones(2, 4), torch.tensor([1.0, 3.0]))
        tensor([0.2500, 0.7500])
    """
    exact = torch.promote_types(query.dtype, torch.float32)
    share = query.new_ones(len(query), dtype=exact) if weight is None else weight.detach().to(exact)
    return share / share.sum().clamp(min=torch.finfo(exact).tiny)
