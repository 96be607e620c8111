"""eSASRec: SASRec with gated LiGR blocks."""

import torch.nn.functional as F
from torch import Tensor, nn

from skipcl_lightning._checks import check_integer
from skipcl_lightning._settings import records_settings
from skipcl_lightning.backbones.attention import SelfAttention, Transformer, at_position

__all__ = ["ESASRec"]


class ESASRec(Transformer):
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
        >>> import torch
        >>> backbone = ESASRec(embedding_size=8, max_length=5)
        >>> backbone(torch.zeros(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)).shape
        torch.Size([2, 3, 8])
    """

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
        check_integer("expansion", expansion)
        super().__init__(
            embedding_size,
            max_length=max_length,
            num_layers=num_layers,
            num_heads=num_heads,
            dropout=dropout,
            make_block=lambda: _GatedBlock(embedding_size, num_heads, dropout, expansion),
        )
        self.norm = nn.LayerNorm(embedding_size)


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
