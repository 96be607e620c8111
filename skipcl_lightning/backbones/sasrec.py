"""SASRec: causal self-attention over a session."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from skipcl_lightning._checks import check_choice
from skipcl_lightning._settings import records_settings
from skipcl_lightning.backbones.attention import (
    LearnedPositions,
    ResidualBlock,
    SelfAttention,
    check_transformer,
    feed_forward,
    run_blocks,
)
from skipcl_lightning.backbones.contract import clean_input, requires_mask

__all__ = ["SASRec"]

Norm = Literal["pre", "post"]


class SASRec(nn.Module):
    """Transformer blocks with learned positions, in which each position sees itself and earlier ones.

    Padding is on the right, so no item ever sees it. The outputs at padding are zeros.

    Args:
        embedding_size: D, divisible by `num_heads`; the paper has 50.
        max_length: The largest number of positions. The paper has 200 for MovieLens-1M and 50 for sparser
            data.
        num_layers: The number of blocks.
        num_heads: Attention heads in each block.
        dropout: Share of units dropped, in [0, 1): at the input, in attention, and after both sublayers. The
            paper has 0.2 for MovieLens-1M and 0.5 for sparser data.
        norm: Layer norms before the sublayers and at the end (`pre`, the paper), or after each residual sum
            (`post`, the first Transformer).

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Reference:
        Kang and McAuley: Self-Attentive Sequential Recommendation, ICDM 2018, arXiv 1808.09781.

    Examples:
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
        norm: Norm = "pre",
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
        check_choice("norm", norm, get_args(Norm))
        self.max_length = max_length
        self.scale = embedding_size**0.5
        self.positions = LearnedPositions(max_length, embedding_size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            ResidualBlock(
                SelfAttention(embedding_size, num_heads=num_heads, dropout=dropout, causal=True),
                # The paper's point-wise network keeps the width and uses ReLU.
                feed_forward(embedding_size, embedding_size, nn.ReLU(), dropout),
                embedding_size,
                dropout=dropout,
                norm_first=norm == "pre",
            )
            for _ in range(num_layers)
        )
        # The last block of `post` already ends with a norm.
        self.norm = nn.LayerNorm(embedding_size) if norm == "pre" else nn.Identity()

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
