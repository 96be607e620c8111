"""Lookups in the item table, with one gradient for all lookups of a step."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["gather_gradients", "look_up", "require_table"]


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


def gather_gradients(item_embeddings: Tensor) -> Tensor:
    """Return a view of the table whose lookups (`look_up`) share one dense gradient.

    Otherwise each lookup makes a [V + 1, D] gradient that is nearly all zero, and their sum is most of a step
    at a million items. Other uses of the table may leave dense gradients.
    """
    gathered: Tensor = _Gathered.apply(item_embeddings)  # type: ignore[no-untyped-call]
    return gathered


def require_table(item_embeddings: Tensor | None, reason: str) -> Tensor:
    """Return the item table, or raise an error that says what needs it."""
    if item_embeddings is None:
        raise ValueError(f"`item_embeddings` must be given for {reason}, got None. Pass the item table.")
    return item_embeddings


class _Gathered(torch.autograd.Function):
    """Passes a table on, and makes its gradient dense."""

    @staticmethod
    def forward(ctx: Any, table: Tensor) -> Tensor:
        ctx.num_rows = len(table)
        return table.view_as(table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        if not gradient.is_sparse:
            return gradient
        # Without `coalesce`, which would sort; repeated rows are added up here anyway.
        rows, values = gradient._indices()[0], gradient._values()
        dense: Tensor = torch.ops.aten.embedding_dense_backward(values, rows, ctx.num_rows, -1, False)
        return dense


def _is_gathered(table: Tensor) -> bool:
    return getattr(table.grad_fn, "_forward_cls", None) is _Gathered
