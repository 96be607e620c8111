"""Dropout of units and of attention, with cheap random numbers on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Dropout", "attend", "drop_units"]

# Random numbers of 16 bits, four in each number of 64 bits that torch draws.
_VALUES = 2**16


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, several times faster on a CPU: see `drop_units`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Return the input; in training, with a share `p` of its units dropped."""
        return drop_units(input, self.p) if self.training else input


def drop_units(x: Tensor, share: float) -> Tensor:
    """Return `x` with units set to 0 at random, and the others divided by the probability that one stays.

    On a CPU, torch's own dropout takes most of its time for random numbers, one draw a unit. Here, one draw
    serves four units, so the share is rounded to a multiple of 2^-16 there (an error below 8e-6), and the
    units are scaled by the rounded share. The numbers come from torch's default generator. Other devices and
    compilers use `torch.nn.functional.dropout`.

    Args:
        x: Floating point, of any shape.
        share: The probability that a unit is dropped, in [0, 1].

    Returns:
        A tensor like `x`; `x` itself if `share` is 0.

    Reference:
        Srivastava et al.: Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 15, 2014.

    Examples:
        >>> drop_units(torch.ones(4), 0.0)
        tensor([1., 1., 1., 1.])
        >>> _ = torch.manual_seed(0)
        >>> drop_units(torch.ones(1000), 0.2).unique()
        tensor([0.0000, 1.2500])
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or share == 1:
        return F.dropout(x, share)
    if share == 0:
        return x
    dropped = min(round(share * _VALUES), _VALUES - 1)
    # From the smallest number on, because the default leaves out the negative ones.
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    numbers = drawn.view(torch.int16)[: x.numel()].view(x.shape)
    # A comparison that writes floats is faster than a mask of booleans, in backward as well.
    scale = torch.ge(numbers, dropped - _VALUES // 2, out=torch.empty_like(x, requires_grad=False))
    return x * scale.mul_(_VALUES / (_VALUES - dropped))


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, is_causal: bool, dropout: float
) -> Tensor:
    """Return `torch.nn.functional.scaled_dot_product_attention`, on a CPU with the dropout of `drop_units`.

    Args:
        query: [B, heads, Q, D].
        key: [B, heads, L, D].
        value: [B, heads, L, D].
        mask: Bool, True at visible positions, of a shape that broadcasts to [B, heads, Q, L]; None for all.
        is_causal: Whether each position sees only itself and earlier ones; only without a `mask`.
        dropout: The share of the weights that is dropped, in [0, 1).

    Returns:
        [B, heads, Q, D].
    """
    if dropout == 0 or query.device.type != "cpu" or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal
        )
    logits = (query * query.shape[3] ** -0.5) @ key.mT  # [B, heads, Q, L]
    if is_causal:
        mask = torch.ones(logits.shape[2:], dtype=torch.bool).tril()
    if mask is not None:
        # A sum is faster than `masked_fill`.
        logits = logits + torch.zeros(mask.shape, dtype=logits.dtype).masked_fill(~mask, -torch.inf)
    return drop_units(logits.softmax(dim=3), dropout) @ value
