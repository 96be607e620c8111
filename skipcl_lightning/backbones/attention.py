"""Parts that the Transformer backbones share: attention, residual blocks and learned positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipcl_lightning._checks import check_integer, check_number

__all__ = [
    "LearnedPositions",
    "ResidualBlock",
    "SelfAttention",
    "at_position",
    "check_transformer",
    "feed_forward",
    "key_mask",
    "run_blocks",
]


class LearnedPositions(nn.Module):
    """Adds a learned vector to each position, counted from the session's first item.

    Args:
        max_length: Positions.
        size: D.
    """

    def __init__(self, max_length: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(max_length, size) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        return x + self.weight[: x.shape[1]]


class SelfAttention(nn.Module):
    """Multi-head attention of a session to itself.

    Args:
        size: D, divisible by `num_heads`.
        num_heads: Heads.
        dropout: Share of attention weights dropped, in [0, 1).
        causal: Whether each position sees only itself and what came before.
    """

    def __init__(self, size: int, *, num_heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.causal = causal
        self.query_key_value = nn.Linear(size, 3 * size)
        self.output = nn.Linear(size, size)

    def forward(self, x: Tensor, mask: Tensor | None, position: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: [B, L, D].
            mask: [B, 1, 1, L] bool, True at visible positions; None if causal, because padding on the right
                is then invisible anyway.
            position: [B] int64, the only position of each session that attends; None for all.

        Returns:
            [B, L, D], or [B, 1, D].
        """
        if position is None:
            parts = self.query_key_value(x).chunk(3, dim=2)
        else:
            weight, bias, size = self.query_key_value.weight, self.query_key_value.bias, x.shape[2]
            asking = F.linear(at_position(x, position), weight[:size], bias[:size])
            parts = (asking, *F.linear(x, weight[size:], bias[size:]).chunk(2, dim=2))
        query, key, value = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, L, D / heads]
            for part in parts
        )
        dropout = self.dropout if self.training else 0.0
        is_causal = self.causal and position is None
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal
        )
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))  # [B, L, D]
        return output


class ResidualBlock(nn.Module):
    """Attention and a feed-forward network, each with a residual connection, dropout and a norm.

    Args:
        attention: Attention of size D.
        feed_forward: [B, L, D] to [B, L, D].
        size: D.
        dropout: Share of units dropped after each of the two, in [0, 1).
        norm_first: Whether the norms come before the two (pre-norm), or after each sum (post-norm).
    """

    def __init__(
        self,
        attention: SelfAttention,
        feed_forward: nn.Module,
        size: int,
        *,
        dropout: float,
        norm_first: bool,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = attention
        self.feed_forward = feed_forward
        self.attention_norm = nn.LayerNorm(size)
        self.feed_forward_norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, position: Tensor | None = None) -> Tensor:
        """[B, L, D] to [B, L, D] or [B, 1, D]; `mask` and `position` as for `SelfAttention`."""
        output: Tensor
        own = at_position(x, position)
        if self.norm_first:
            x = own + self.dropout(self.attention(self.attention_norm(x), mask, position))
            output = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        else:
            x = self.attention_norm(own + self.dropout(self.attention(x, mask, position)))
            output = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return output


def feed_forward(size: int, hidden_size: int, activation: nn.Module, dropout: float = 0.0) -> nn.Sequential:
    """Return the point-wise network of a block: two linear maps with an activation between them.

    Args:
        size: D.
        hidden_size: The width between the two.
        activation: The activation.
        dropout: Share of hidden units dropped, in [0, 1).

    Returns:
        [B, L, D] to [B, L, D].

    Examples:
        >>> feed_forward(8, 16, nn.GELU())(torch.zeros(1, 2, 8)).shape
        torch.Size([1, 2, 8])
    """
    return nn.Sequential(
        nn.Linear(size, hidden_size), activation, nn.Dropout(dropout), nn.Linear(hidden_size, size)
    )


def at_position(x: Tensor, position: Tensor | None) -> Tensor:
    """Return one position of each session, or all.

    Args:
        x: [B, L, ...].
        position: [B] int64 in 0..L-1; None for all.

    Returns:
        [B, 1, ...], or `x`.

    Examples:
        >>> at_position(torch.tensor([[1, 2], [3, 4]]), torch.tensor([1, 0]))
        tensor([[2],
                [3]])
    """
    if position is None:
        return x
    rows = torch.arange(len(x), device=x.device)
    return x[rows[:, None], position[:, None]]


def run_blocks(
    blocks: nn.ModuleList, x: Tensor, valid_mask: Tensor, *, causal: bool, last_only: bool
) -> tuple[Tensor, Tensor]:
    """Run the blocks of a Transformer, the last one only at each session's last item if `last_only`.

    Args:
        blocks: At least one `forward(x, mask, position)`.
        x: [B, L, D].
        valid_mask: [B, L] bool, True at items; padding is on the right.
        causal: Whether the blocks see only earlier positions.
        last_only: Whether only the last valid position of each session is needed.

    Returns:
        [B, L, D], or [B, 1, D]; and its [B, L] or [B, 1] bool, True at items.
    """
    mask = None if causal else key_mask(valid_mask)
    *earlier, final = blocks
    for block in earlier:
        x = block(x, mask)
    if not last_only:
        return final(x, mask), valid_mask
    position = (valid_mask.sum(dim=1) - 1).clamp(min=0)
    return final(x, key_mask(valid_mask), position), at_position(valid_mask, position)


def key_mask(valid_mask: Tensor) -> Tensor:
    """Return the positions that bidirectional attention may see.

    Args:
        valid_mask: [B, L] bool, True at items; padding is on the right.

    Returns:
        [B, 1, 1, L] bool: the items, and always the first position, because attention to nothing is undefined
        (NaN by the formula).

    Examples:
        >>> key_mask(torch.tensor([[True, True, False], [False, False, False]]))[:, 0, 0]
        tensor([[ True,  True, False],
                [ True, False, False]])
    """
    first = torch.arange(valid_mask.shape[1], device=valid_mask.device) == 0
    return (valid_mask | first)[:, None, None, :]


def check_transformer(
    *, embedding_size: int, max_length: int, num_layers: int, num_heads: int, dropout: float
) -> None:
    """Raise unless the settings that all Transformers share are valid.

    Args:
        embedding_size: D, divisible by `num_heads`.
        max_length: The largest number of positions.
        num_layers: The number of blocks.
        num_heads: Attention heads in each block.
        dropout: Share of units dropped, in [0, 1).

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Examples:
        >>> check_transformer(embedding_size=8, max_length=50, num_layers=1, num_heads=3, dropout=0.1)
        Traceback (most recent call last):
            ...
        ValueError: `embedding_size` must be divisible by `num_heads`, got 8 and 3. ...
    """
    check_integer("embedding_size", embedding_size)
    check_integer("max_length", max_length)
    check_integer("num_layers", num_layers)
    check_integer("num_heads", num_heads)
    check_number("dropout", dropout, minimum=0, maximum=1, open_maximum=True)
    if embedding_size % num_heads:
        raise ValueError(
            f"`embedding_size` must be divisible by `num_heads`, got {embedding_size} and {num_heads}. "
            "Each head takes an equal share."
        )
