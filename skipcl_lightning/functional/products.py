"""Products of vectors: their precision under autocast, and cosine similarity."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["at_least_float32", "autocast_dtype", "cosine", "without_autocast"]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a half-precision tensor in float32, and any other tensor unchanged.

    Examples:
        >>> at_least_float32(torch.ones(1, dtype=torch.float16)).dtype
        torch.float32
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which products keep the precision of their factors, whatever autocast says.

    Examples:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), without_autocast(torch.device("cpu")):
        ...     print((torch.ones(1, 1) @ torch.ones(1, 1)).dtype)
        torch.float32
    """
    return torch.autocast(device.type, enabled=False) if _knows_autocast(device.type) else nullcontext()


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype that autocast gives to products of a tensor, or the tensor's own.

    Examples:
        >>> autocast_dtype(torch.ones(1))
        torch.float32
    """
    kind = tensor.device.type
    if _knows_autocast(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return tensor.dtype


def _knows_autocast(kind: str) -> bool:
    # Compilers before torch 2.13 cannot trace this call; the devices that they compile for have autocast.
    return torch.compiler.is_compiling() or torch.amp.is_autocast_available(kind)


# A gradient is at most one over this norm, so that an optimizer can square it.
_LEAST_NORM = 1e-12
_CACHED = 1 << 18


def cosine(
    query: Tensor,
    keys: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    query_mask: Tensor | None = None,
    keys_mask: Tensor | None = None,
) -> Tensor:
    r"""Return cos(q, k) / τ of queries with the keys of their session, with shared keys, or with their own.

    $$
    \cos(q, k) = \frac{q \cdot k}{\|q\| \|k\|}
    $$

    A vector with a norm below 1e-12 (6e-5 in float16) counts as 0: its cosines are 0, and so is its gradient.
    Norms up to the largest number of the dtype are exact. Some sessions are normalised at a time, within the
    caches of a CPU. There is no second derivative. Within `torch.compile` the plain formula is used.

    Args:
        query: [B, L, D] floating point; half precision is computed in float32.
        keys: [B, S, D] of each session, [C, D] shared by all, or [B, L, C, D] of each position.
        temperature: τ > 0.
        query_mask: [B, L] bool; a query where it is False counts as 0, even if it is NaN.
        keys_mask: [B, S] bool, likewise for the session's keys.

    Returns:
        [B, L, S] or [B, L, C], float32 or float64.
    """
    shape = query.shape[:2]
    if keys.dim() == 2:
        query, keys = query.reshape(1, -1, query.shape[2]), keys[None]
        query_mask = None if query_mask is None else query_mask.reshape(1, -1)
    elif keys.dim() == 4:
        query, keys = query.reshape(-1, 1, query.shape[2]), keys.flatten(0, 1)
        query_mask = None if query_mask is None else query_mask.reshape(-1, 1)
    if torch.compiler.is_compiling():
        # A compiler fuses the plain formula itself, and cannot trace the function below.
        found = _plain_cosine(query, keys, query_mask, keys_mask)
    else:
        found = _Cosine.apply(query, keys, query_mask, keys_mask)  # type: ignore[no-untyped-call]
    return found.reshape(*shape, -1) / temperature


def _plain_cosine(query: Tensor, keys: Tensor, query_mask: Tensor | None, keys_mask: Tensor | None) -> Tensor:
    """[G, M, S], by the formula."""
    everything = slice(None)
    with without_autocast(query.device):
        rows, columns = _units(query, query_mask, everything)[0], _units(keys, keys_mask, everything)[0]
        return rows @ columns.mT


class _Cosine(torch.autograd.Function):
    """[G, M, S] cosines of [G, M, D] and [G, S, D], some groups at a time."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, query_mask: Tensor | None, keys_mask: Tensor | None
    ) -> Tensor:
        exact = torch.promote_types(query.dtype, torch.float32)
        found = query.new_empty(*query.shape[:2], keys.shape[1], dtype=exact)
        with without_autocast(query.device):
            for some in _pieces(query, keys):
                rows, columns = _units(query, query_mask, some)[0], _units(keys, keys_mask, some)[0]
                torch.bmm(rows, columns.mT, out=found[some])
        ctx.save_for_backward(query, keys, query_mask, keys_mask, found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        query, keys, query_mask, keys_mask, found = ctx.saved_tensors
        query_gradient, keys_gradient = torch.empty_like(query), torch.empty_like(keys)
        # The component along each vector, which is subtracted because a longer vector has the same cosine.
        along = gradient * found
        row_share, column_share = along.sum(dim=2)[..., None], along.sum(dim=1)[..., None]
        with without_autocast(query.device):
            for some in _pieces(query, keys):
                rows, row_scale = _units(query, query_mask, some)
                columns, column_scale = _units(keys, keys_mask, some)
                slope = gradient[some]
                query_gradient[some] = (
                    (slope @ columns).addcmul_(rows, row_share[some], value=-1).mul_(row_scale)
                )
                keys_gradient[some] = (
                    (slope.mT @ rows).addcmul_(columns, column_share[some], value=-1).mul_(column_scale)
                )
        return query_gradient, keys_gradient, None, None


def _pieces(query: Tensor, keys: Tensor) -> list[slice]:
    """Return groups whose masked copies fit the caches of a CPU; on other devices a single group."""
    groups = len(query)
    if query.device.type != "cpu":
        return [slice(0, groups)]
    size = max(1, _CACHED // ((query.shape[1] + keys.shape[1]) * query.shape[2]))
    return [slice(start, start + size) for start in range(0, groups, size)]


def _units(vectors: Tensor, mask: Tensor | None, some: slice) -> tuple[Tensor, Tensor]:
    """Return the vectors with norm 1, and one over their norms; both are 0 for masked and zero vectors."""
    least = max(_LEAST_NORM, torch.finfo(vectors.dtype).tiny)
    vectors = at_least_float32(vectors[some])
    if mask is not None:
        vectors = torch.where(mask[some, :, None], vectors, 0)
    # Squares of large numbers would overflow.
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True).clamp_(min=least)
    vectors = vectors / largest
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    counts = norm.detach() * largest >= least
    scale = counts / torch.where(counts, norm, 1)
    return vectors * scale, scale / largest
