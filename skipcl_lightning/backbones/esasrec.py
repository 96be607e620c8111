"""eSASRec: SASRec with gated LiGR blocks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipcl_lightning._checks import check_integer
from skipcl_lightning._settings import records_settings
from skipcl_lightning.backbones.attention import (
    LearnedPositions,
    SelfAttention,
    at_position,
    check_transformer,
    run_blocks,
)
from skipcl_lightning.backbones.contract import clean_input, requires_mask

__all__ = ["ESASRec"]


class ESASRec(nn.Module):
    """SASRec with gated residual blocks: x + sigmoid(W x + b) · f(norm(x)); f is attention, then SwiGLU.

    The paper finds these LiGR blocks, SASRec's shifted targets and a sampled softmax to be the strongest of
    many combinations. The loss is set in the module: `next_item_loss=SampledSoftmax(256)`.

    Args:
        embedding_size: D, divisible by `num_heads`.
        max_length: The largest number of positions.
        num_layers: The number of blocks.
        num_heads: Attention heads in each block.
        dropout: Share of units dropped, in [0, 1): at the input, in attention, inside the SwiGLU and after
            both sublayers.
        expansion: The width of the SwiGLU, in multiples of D. The authors' code has 4, and no bias there.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Reference:
        Tikhonovich et al.: eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion, RecSys
        2025, arXiv 2508.06450. The block: Borisyuk et al.: From Features to Transformers: Redefining Ranking
        for Scalable Impact, arXiv 2502.03417. The papers tune sizes by data set; the defaults here are
        SASRec's. So are the scaled input and the layer norm after the last block, which the authors' code
        does not have.

    Examples:
        >>> backbone = ESASRec(embedding_size=8, max_length=5)
        >>> backbone(torch.zeros(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)).shape
        torch.Size([2, 3, 8])
    """

    causal = True

    @records_settings
    def __init__(
        self,
        embedding_size: int = 64,
        *,
        max_length: int = 50,
        num_layers: int = 2,
        num_heads: int = 1,
        dropout: float = 0.2,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        check_transformer(
            embedding_size=embedding_size,
            max_length=max_length,
            num_layers=num_layers,
            num_heads=num_heads,
            dropout=dropout,
        )
        check_integer("expansion", expansion)
        self.max_length = max_length
        self.scale = embedding_size**0.5
        self.positions = LearnedPositions(max_length, embedding_size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            _GatedBlock(embedding_size, num_heads, dropout, expansion) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embedding_size)

    @requires_mask
    def forward(self, x: Tensor, valid_mask: Tensor, *, last_only: bool = False) -> Tensor:
        """Return the query after each item.

        Args:
            x: [B, L, D] floating point, the embedded items.
            valid_mask: [B, L] bool, True at items; padding is on the right.
            last_only: Whether to return only the output at each session's last item; the last block then
                computes no other.

        Returns:
            [B, L, D], zero at padding; or [B, 1, D], zero for an empty session.

        Raises:
            ValueError: The shapes disagree, or the sessions are longer than `max_length`.
        """
        x = clean_input(x, valid_mask, max_length=self.max_length)
        x = self.dropout(self.positions(x * self.scale))
        x, is_real = run_blocks(self.blocks, x, valid_mask, causal=True, last_only=last_only)
        return torch.where(is_real[..., None], self.norm(x), 0)


class _GatedBlock(nn.Module):
    def __init__(self, size: int, num_heads: int, dropout: float, expansion: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(size)
        self.attention = SelfAttention(size, num_heads=num_heads, dropout=dropout, causal=True)
        self.attention_gate = nn.Linear(size, size)
        self.feed_forward_norm = nn.LayerNorm(size)
        self.feed_forward = _SwiGLU(size, expansion * size, dropout)
        self.feed_forward_gate = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, position: Tensor | None = None) -> Tensor:
        attended = self.dropout(self.attention(self.attention_norm(x), mask, position))
        x = at_position(x, position)
        x = x + self.attention_gate(x).sigmoid() * attended
        fed_forward = self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        output: Tensor = x + self.feed_forward_gate(x).sigmoid() * fed_forward
        return output


class _SwiGLU(nn.Module):
    def __init__(self, size: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(size, 2 * hidden_size, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_and_value(x).chunk(2, dim=2)
        output: Tensor = self.output(self.dropout(F.silu(gate) * value))
        return output
