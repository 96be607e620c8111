"""What the Transformer backbones share: attention, residual blocks, learned positions and the whole."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipcl_lightning._checks import check_integer, check_number
from skipcl_lightning.backbones.contract import clean_input, requires_mask

__all__ = ["ResidualBlock", "SelfAttention", "Transformer", "at_position", "feed_forward", "key_mask"]


class Transformer(nn.Module):
    """Learned positions, blocks of attention and an output: the base of SASRec, ESASRec and BERT4Rec.

    `make_block` returns a block `forward(x, mask, position)`. `norm_input` replaces the factor of the items,
    the square root of D, by a layer norm. A subclass sets `norm`, which follows the last block.
    """

    causal = True
    # With smaller item embeddings, models learn faster at first and end higher (docs/results.md).
    item_scale = 0.4
    norm: nn.Module

    def __init__(
        self,
        embedding_size: int,
        *,
        max_length: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        make_block: Callable[[], nn.Module],
        norm_input: bool = False,
    ) -> None:
        super().__init__()
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
        self.embedding_size = embedding_size
        self.max_length = max_length
        self.scale = 1.0 if norm_input else embedding_size**0.5
        self.positions = LearnedPositions(max_length, embedding_size)
        self.input_norm = nn.LayerNorm(embedding_size) if norm_input else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(make_block() for _ in range(num_layers))

    @requires_mask
    def forward(self, x: Tensor, valid_mask: Tensor, *, last_only: bool = False) -> Tensor:
        """Return the query after each item; of a bidirectional backbone, the prediction of the item there.

        Args:
            x: [B, L, D] floating point, the embedded items, with the mask token's vector at hidden positions.
            valid_mask: [B, L] bool, True at items and mask tokens; padding is on the right.
            last_only: Whether to return only the output at each session's last item; the last block then
                computes no other.

        Returns:
            [B, L, D], zero at padding; or [B, 1, D], zero for an empty session.

        Raises:
            TypeError: The mask is missing, or a tensor has the wrong dtype.
            ValueError: The shapes disagree, or the sessions are longer than `max_length`.
        """
        x = clean_input(x, valid_mask, max_length=self.max_length)
        x = self.dropout(self.input_norm(self.positions(x * self.scale)))
        mask = None if self.causal else key_mask(valid_mask)
        *earlier, final = self.blocks
        for block in earlier:
            x = block(x, mask)
        if last_only:
            position = (valid_mask.sum(dim=1) - 1).clamp(min=0)
            x = final(x, key_mask(valid_mask), position)
            valid_mask = at_position(valid_mask, position)
        else:
            x = final(x, mask)
        return torch.where(valid_mask[..., None], self.finish(x), 0)

    def finish(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D], after the last block."""
        finished: Tensor = self.norm(x)
        return finished


class LearnedPositions(nn.Module):
    """Adds a learned vector to each position, counted from the session's first item."""

    def __init__(self, max_length: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(max_length, size) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        return x + self.weight[: x.shape[1]]


class SelfAttention(nn.Module):
    """Multi-head attention of a session to itself; `causal` positions see only themselves and the past."""

    def __init__(self, size: int, *, num_heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.causal = causal
        self.query_key_value = nn.Linear(size, 3 * size)
        self.output = nn.Linear(size, size)

    def forward(self, x: Tensor, mask: Tensor | None, position: Tensor | None = None) -> Tensor:
        """Attend from all positions, or from the one `position` [B] int64 of each session.

        Args:
            x: [B, L, D].
            mask: [B, 1, 1, L] bool, True at visible positions; None if causal, because padding on the right
                is then invisible anyway.
            position: None for all.

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

    The norms come before the two if `norm_first` (pre-norm), else after each sum (post-norm).
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
    """Return the point-wise network of a block: two linear maps with an activation between them."""
    return nn.Sequential(
        nn.Linear(size, hidden_size), activation, nn.Dropout(dropout), nn.Linear(hidden_size, size)
    )


def at_position(x: Tensor, position: Tensor | None) -> Tensor:
    """Return one position of each session, [B, 1, ...] of [B, L, ...], or all if `position` is None."""
    if position is None:
        return x
    rows = torch.arange(len(x), device=x.device)
    return x[rows[:, None], position[:, None]]


def key_mask(valid_mask: Tensor) -> Tensor:
    """Return the positions, [B, 1, 1, L] bool, that bidirectional attention may see.

    They are the items, and always the first position, because attention to nothing is undefined (NaN by the
    formula).
    """
    first = torch.arange(valid_mask.shape[1], device=valid_mask.device) == 0
    return (valid_mask | first)[:, None, None, :]
