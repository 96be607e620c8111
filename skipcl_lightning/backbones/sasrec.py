"""SASRec: causal self-attention over a session."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipcl_lightning._checks import check_integer, check_number, check_shape
from skipcl_lightning._settings import records_settings

__all__ = ["SASRec"]


class SASRec(nn.Module):
    """Pre-norm Transformer blocks with learned positions, each position seeing itself and what came before.

    Since padding stands on the right and attention looks only to the left, no real position ever sees
    padding; padded positions themselves come out as zeros.

    Args:
        embedding_size: D, divisible by ``num_heads``.
        max_length: The longest session, in tracks; learned positions know no more.
        num_layers: Blocks.
        num_heads: Attention heads a block.
        dropout: Share of units dropped, in [0, 1): at the input, in attention, and behind both sublayers.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Reference:
        Kang and McAuley: Self-Attentive Sequential Recommendation, ICDM 2018, arXiv 1808.09781.

    Example:
        >>> backbone = SASRec(embedding_size=8, max_length=5)
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
    ) -> None:
        super().__init__()
        check_integer("embedding_size", embedding_size)
        check_integer("max_length", max_length)
        check_integer("num_layers", num_layers)
        check_integer("num_heads", num_heads)
        check_number("dropout", dropout, minimum=0, maximum=1, open_maximum=True)
        if embedding_size % num_heads:
            raise ValueError(
                f"`embedding_size` must be divisible by `num_heads`, got {embedding_size} and {num_heads}."
            )
        self.max_length = max_length
        self.scale = embedding_size**0.5
        self.positions = nn.Parameter(torch.randn(max_length, embedding_size) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(embedding_size, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(embedding_size)

    def forward(self, x: Tensor, valid_mask: Tensor) -> Tensor:
        """The session as known after each track.

        Args:
            x: [B, L, D] floating point, the embedded tracks.
            valid_mask: [B, L] bool, True where a real track stands; padding is on the right.

        Returns:
            [B, L, D], zero at padding.

        Raises:
            ValueError: The shapes disagree, or the sessions are longer than ``max_length``.
        """
        sizes = check_shape("x", x, "B L D", floating=True)
        check_shape("valid_mask", valid_mask, "B L", sizes, dtype=torch.bool)
        if sizes["L"] > self.max_length:
            raise ValueError(
                f"`x` must have at most `max_length` = {self.max_length} positions, got {sizes['L']}. "
                "Keep the latest tracks of each session, or build the backbone with a larger `max_length`."
            )
        # Whatever stands at padding, NaN included, must not meet attention's zero weights.
        x = torch.where(valid_mask[..., None], x, 0)
        x = self.dropout(x * self.scale + self.positions[: sizes["L"]])
        for block in self.blocks:
            x = block(x)
        return torch.where(valid_mask[..., None], self.norm(x), 0)


class _Block(nn.Module):
    def __init__(self, size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_dropout = dropout
        self.attention_norm = nn.LayerNorm(size)
        self.query_key_value = nn.Linear(size, 3 * size)
        self.attention_output = nn.Linear(size, size)
        self.feed_forward_norm = nn.LayerNorm(size)
        # The paper's point-wise network keeps the width, and uses ReLU.
        self.feed_forward = nn.Sequential(
            nn.Linear(size, size), nn.ReLU(), nn.Dropout(dropout), nn.Linear(size, size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self._attend(self.attention_norm(x)))
        output: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return output

    def _attend(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, L, D / heads]
            for part in self.query_key_value(x).chunk(3, dim=2)
        )
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        output: Tensor = self.attention_output(attended.transpose(1, 2).flatten(2))  # [B, L, D]
        return output
