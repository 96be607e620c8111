"""Lookups in the item table, with one gradient for all lookups of a step."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["add_content", "gather_gradients", "look_up", "require_table"]


def look_up(
    items: Tensor, item_embeddings: Tensor, *, sparse: bool = False, padding_index: int | None = None
) -> Tensor:
    """Return the embeddings [..., D] of items, [...] int64 in 0..V.

    Args:
        items: The items.
        item_embeddings: [V + 1, D] floating point.
        sparse: Whether the gradient of `item_embeddings` is a sparse tensor of the used rows.
        padding_index: The item whose row gets no gradient.
    """
    sparse = sparse or (not torch.compiler.is_compiling() and _is_gathered(item_embeddings))
    return F.embedding(items, item_embeddings, padding_index, sparse=sparse)


def gather_gradients(item_embeddings: Tensor, num_rows: int | None = None, *, sparse: bool = False) -> Tensor:
    """Return a view of the table whose lookups (`look_up`) share one dense gradient.

    Otherwise each lookup makes a [V + 1, D] gradient that is nearly all zero, and their sum is most of a step
    at a million items. Other uses of the table may leave dense gradients.

    Args:
        item_embeddings: [V + 1, D] floating point.
        num_rows: The first rows alone; None for all.
        sparse: Whether the gradient of lookups stays sparse.
    """
    num_rows = len(item_embeddings) if num_rows is None else num_rows
    gathered: Tensor = _Gathered.apply(item_embeddings, num_rows, sparse)  # type: ignore[no-untyped-call]
    return gathered


def add_content(item_embeddings: Tensor, content: Tensor, keep: Tensor) -> Tensor:
    """Return the kept rows of the table plus others; a sparse gradient of the sum stays sparse for the table.

    Args:
        item_embeddings: [V + 1, D] floating point.
        content: [V + 1, D] floating point; its gradient is dense.
        keep: [V + 1] bool, the rows of `item_embeddings` that count; others get no gradient.
    """
    if torch.compiler.is_compiling():
        return torch.where(keep[:, None], item_embeddings, 0) + content
    total: Tensor = _Sum.apply(item_embeddings, content, keep)  # type: ignore[no-untyped-call]
    return total


def require_table(item_embeddings: Tensor | None, reason: str) -> Tensor:
    """Return the item table, or raise an error that says what needs it."""
    if item_embeddings is None:
        raise ValueError(f"`item_embeddings` must be given for {reason}, got None. Pass the item table.")
    return item_embeddings


class _Gathered(torch.autograd.Function):
    """Passes the first rows of a table on, and makes their gradient dense."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, num_rows: int, sparse: bool) -> Tensor:
        ctx.shape, ctx.sparse = table.shape, sparse
        return table[:num_rows]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        if not gradient.is_sparse:
            return F.pad(gradient, (0, 0, 0, ctx.shape[0] - len(gradient))), None, None
        rows, values = gradient._indices(), gradient._values()
        if ctx.sparse:
            return torch.sparse_coo_tensor(rows, values, ctx.shape, check_invariants=False), None, None
        # Without `coalesce`, which would sort; repeated rows are added up here anyway.
        dense: Tensor = torch.ops.aten.embedding_dense_backward(values, rows[0], ctx.shape[0], -1, False)
        return dense, None, None


class _Sum(torch.autograd.Function):
    """Adds content to the kept rows of a table."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, content: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.dtypes = table.dtype, content.dtype
        return torch.where(keep[:, None], table, 0) + content

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        (keep,) = ctx.saved_tensors
        of_table, of_content = ctx.dtypes
        if not gradient.is_sparse:
            kept = torch.where(keep[:, None], gradient, 0)
            return kept.to(of_table), gradient.to(of_content), None
        rows, values = gradient._indices()[0], gradient._values()
        kept = torch.sparse_coo_tensor(
            rows[None], (values * keep[rows, None]).to(of_table), gradient.shape, check_invariants=False
        )
        dense = torch.ops.aten.embedding_dense_backward(values, rows, len(keep), -1, False)
        return kept, dense.to(of_content), None


def _is_gathered(table: Tensor) -> bool:
    return getattr(table.grad_fn, "_forward_cls", None) is _Gathered
