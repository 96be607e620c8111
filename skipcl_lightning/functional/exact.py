"""Inner products whose order is certain: what float32 may be off by, and what decides where it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "compare_exactly",
    "error_unit",
    "full_precision",
    "multiply_pairs",
    "scale_queries",
    "wide_dtype",
]

_MOST_FACTORS = 2**18
# Below the largest float32, with room for partial sums.
_MOST_PRODUCT = 1e37
# Longer ones would blow up what is lost where a scaled query is rounded to 0.
_MOST_LENGTH = 1e30
# Between these the squares of lengths are far from both ends of float32.
_PLAIN_LENGTHS = (1e-10, 1e15)


def wide_dtype(device: torch.device) -> torch.dtype:
    """What exact scores are computed in: float64, or float32 on MPS, which has nothing wider.

    Args:
        device: Where.

    Returns:
        The dtype.

    Examples:
        >>> wide_dtype(torch.device("cpu"))
        torch.float64
    """
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products of float32 in float32, where TF32 or bfloat16 is allowed to stand in for it.

    Args:
        device: Where the products are taken.

    Examples:
        >>> with full_precision(torch.device("cpu")):
        ...     torch.backends.mkldnn.matmul.fp32_precision
        'ieee'
    """
    backends: Any = torch.backends
    backend = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        backend.fp32_precision = before


def error_unit(norms: Tensor, own: Tensor, items: Tensor) -> Tensor:
    """A unit in which float32 differences between scores and each query's own are off by less than 0.8.

    Args:
        norms: [N, 1] of `wide_dtype`, the queries' lengths: in float32 their squares overflow.
        own: [N, 1] of `wide_dtype`, the scores that others are compared with.
        items: [C, D] floating point, as they are before they are rounded to float32.

    Returns:
        [N, 1] of `wide_dtype`; infinite where float32 might overflow, or something is not finite.

    Reference:
        Higham: Accuracy and Stability of Numerical Algorithms, 2nd edition, 2002, section 3.1,
        doi 10.1137/1.9780898718027.

    Examples:
        >>> one = torch.ones(1, 1).double()
        >>> error_unit(one, one, torch.ones(3, 4)) < 1e-5
        tensor([[True]])
    """
    size, tiny = items.shape[1], torch.finfo(torch.float32).tiny
    longest = _longest(items, norms.dtype)
    product = norms * longest + own.abs()
    # D + 1 products and sums, and what is rounded before; then what float32 loses near 0.
    unit = 1.25 * (size + 16) * 2.0**-24 * product + 4 * size * tiny * (1 + norms + longest)
    safe = (product < _MOST_PRODUCT) & (norms < _MOST_PRODUCT) & (longest < _MOST_LENGTH)
    return torch.where(safe, unit, torch.inf)


def _longest(items: Tensor, dtype: torch.dtype) -> Tensor:
    """A scalar, no less than the length of any item of finite numbers."""
    in_float32: Tensor = torch.linalg.vector_norm(items.float(), dim=1).max()
    low, high = _PLAIN_LENGTHS
    if low < float(in_float32) < high:
        return in_float32.to(dtype) * 1.001  # below 16,000 dimensions it is off by 0.0005 at most
    lengths: Tensor = torch.linalg.vector_norm(items, dim=1, dtype=dtype)
    # Products of what is infinite or NaN are so in any precision.
    return lengths.nan_to_num(nan=0.0, posinf=0.0).max()


def scale_queries(queries: Tensor, own: Tensor, unit: Tensor) -> Tensor:
    """Queries whose product with [item, 1] is the difference between that item's score and the own one.

    Args:
        queries: [N, D] floating point.
        own: [N, 1] of `wide_dtype`. Where it is NaN, all items of finite numbers come out below it.
        unit: [N, 1] of `wide_dtype`, what the difference is counted in; if infinite, the difference is 0
            or NaN, that is, not known.

    Returns:
        [N, D + 1] float32.

    Examples:
        >>> one = torch.ones(1, 1).double()
        >>> scale_queries(torch.ones(1, 2), one, one / 4)
        tensor([[ 4.,  4., -4.]])
    """
    inverse = unit.reciprocal()
    scaled = torch.cat([queries.float() * inverse.float(), (-own * inverse).float()], dim=1)
    last = torch.zeros_like(scaled[:1])
    last[:, -1] = -1
    return torch.where(own.isnan(), last, scaled)


def compare_exactly(scores: Tensor, own: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Which scores lie below each query's own in float32, and which tie with it.

    Sums of one product in another order are one score: without that, equal rows of the table might round
    apart.

    Args:
        scores: [N, C] of `wide_dtype`.
        own: [N, 1] of `wide_dtype`.
        lengths: [N, C], the products of the vectors' lengths.
        size: D.

    Returns:
        [N, C] bool, twice.

    Examples:
        >>> scores, own = torch.tensor([[1.0, 1.0 + 1e-16, 2.0]]).double(), torch.ones(1, 1).double()
        >>> compare_exactly(scores, own, torch.ones(1, 3).double(), 4)[1]
        tensor([[ True,  True, False]])
    """
    # In place where there is nobody else's: all scores of a batch are compared at once on a GPU.
    rounding = (lengths * (size * torch.finfo(scores.dtype).eps)).nan_to_num_(nan=0.0, posinf=0.0)
    is_own = (scores - own).abs_() <= rounding
    own = own.float()
    scores = torch.where(is_own, own, scores.float())
    return scores < own, scores == own


def multiply_pairs(queries: Tensor, item_embeddings: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Products of each query with some items of its own, and of their lengths.

    Equal rows of the table give equal products, to the last bit, as no matrix product would.

    Args:
        queries: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point.
        items: [N, S] int64 in 0..V.

    Returns:
        [N, S] of `wide_dtype`, twice.

    Examples:
        >>> multiply_pairs(torch.ones(1, 2), torch.eye(2), torch.tensor([[0, 1]]))[0]
        tensor([[1., 1.]], dtype=torch.float64)
    """
    # Some queries at a time, to spare memory.
    step = max(1, _MOST_FACTORS // max(1, items.shape[1] * queries.shape[1]))
    products, lengths = [], []
    for start in range(0, max(1, len(queries)), step):
        query = queries[start : start + step, None].to(wide_dtype(queries.device))
        chosen = item_embeddings[items[start : start + step]].to(query.dtype)  # [step, S, D]
        products.append((chosen * query).sum(dim=2))
        lengths.append(chosen.norm(dim=2) * query.norm(dim=2))
    return torch.cat(products), torch.cat(lengths)
