"""Next-item cross-entropy by the kernel that attention has on GPUs, whose logits never leave the chip."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.precision import softmax_scales

__all__ = ["can_attend", "softmax_by_attention"]

# What the kernel takes.
_LEAST_CAPABILITY = (8, 0)
_MOST_DIMENSIONS = 256
_ALIGNMENT = 8
# Queries are too few to keep a GPU busy: so many rows of work are made of them, by parts of the catalogue.
_ROWS = 2**15
_MOST_PARTS = 16
_LEAST_ITEMS = 1024


def can_attend(query: Tensor, dtype: torch.dtype) -> bool:
    """Whether there is such a kernel: in half precision, on an NVIDIA GPU of the Ampere generation or later.

    `torch.backends.cuda.enable_flash_sdp(False)` forbids it here as elsewhere.

    Args:
        query: [N, D], on its device.
        dtype: In which products are to be taken.

    Returns:
        The answer.

    Examples:
        >>> can_attend(torch.ones(2, 8), torch.bfloat16)
        False
    """
    return (
        query.device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and query.shape[1] <= _MOST_DIMENSIONS
        and torch.version.cuda is not None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
        and torch.cuda.get_device_capability(query.device) >= _LEAST_CAPABILITY
    )


def softmax_by_attention(
    queries: Tensor, items: Tensor, target: Tensor, share: Tensor, *, wants_table: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""The weighted sum of the queries' losses, with both gradients.

    Attention from the queries to the items, as keys and as values, gives each query the mean of the items by
    its softmax, and its normaliser. The values' gradient, where that of the attention is the weighted
    queries, is that of the table but for the targets:

    $$
    \ell_n = \log \sum_{i=1}^{V} \exp(q_n \cdot e_i) - q_n \cdot e_{target_n}, \quad
    \frac{\partial \ell_n}{\partial q_n} = \sum_{i=1}^{V} p_{ni} e_i - e_{target_n}, \quad
    \frac{\partial \ell_n}{\partial e_i} = (p_{ni} - [i = target_n]) \, q_n
    $$

    Args:
        queries: [N, D] in half precision, D up to 256.
        items: [V + 1, D] in that precision; row 0 is padding.
        target: [N] int64 in 1..V.
        share: [N] float32, what each query's loss counts.
        wants_table: Whether the gradient of the items is found.

    Returns:
        A scalar, [N, D], and [V + 1, D] or None; float32.

    Reference:
        Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", ICLR 2024,
        arXiv 2307.08691.
    """
    (num_queries, size), num_items = queries.shape, len(items) - 1
    # Without padding, which is no candidate.
    values = _align(items[PADDING_INDEX + 1 :])[:, None].detach().requires_grad_(wants_table)  # [V, 1, D]
    parts = max(1, min(_MOST_PARTS, -(-_ROWS // num_queries), num_items // _LEAST_ITEMS))
    width = -(-num_items // parts)
    steps = torch.arange(parts + 1, dtype=torch.int32, device=queries.device)
    with torch.enable_grad():
        attended, log_totals = varlen_attn(
            _align(queries).repeat(parts, 1)[:, None],
            values.detach(),
            values,
            steps * num_queries,
            (steps * width).clamp(max=num_items),
            num_queries,
            width,
            return_aux=AuxRequest(lse=True),
            scale=1.0,
        )
    log_totals = log_totals.view(parts, num_queries)
    log_total = log_totals.logsumexp(dim=0)
    of_part = (log_totals - log_total).exp()[..., None]  # [parts, N, 1]
    mean = (attended.detach().view(parts, num_queries, -1)[..., :size] * of_part).sum(dim=0)
    own, shares = F.embedding(target, items).to(share.dtype), share[:, None]
    loss = ((log_total - (queries * own).sum(dim=1)) * share).sum()
    query_gradient = (mean - own) * shares
    if not wants_table:
        return loss, query_gradient, None
    scale = math.prod(softmax_scales(queries.dtype))
    upstream = _align((of_part * (queries * (shares * scale))).to(queries.dtype).flatten(0, 1))
    (found,) = torch.autograd.grad(attended, values, upstream[:, None])
    table_gradient = torch.zeros_like(items, dtype=share.dtype)
    torch.mul(found[:, 0, :size], 1 / scale, out=table_gradient[PADDING_INDEX + 1 :])
    table_gradient.index_add_(0, target, queries * -shares)
    return loss, query_gradient, table_gradient


def _align(rows: Tensor) -> Tensor:
    """[N, D] with as many columns as the kernel takes; zeros change no product."""
    missing = -rows.shape[1] % _ALIGNMENT
    return F.pad(rows, (0, missing)) if missing else rows
