"""SASRec: causal self-attention over a session."""

from typing import Literal, get_args

from torch import nn

from skipcl_lightning._checks import check_choice
from skipcl_lightning._settings import records_settings
from skipcl_lightning.backbones.attention import ResidualBlock, SelfAttention, Transformer, feed_forward

__all__ = ["SASRec"]

Norm = Literal["pre", "post"]


class SASRec(Transformer):
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
        >>> import torch
        >>> backbone = SASRec(embedding_size=8, max_length=5)
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
        norm: Norm = "pre",
    ) -> None:
        check_choice("norm", norm, get_args(Norm))
        super().__init__(
            embedding_size,
            max_length=max_length,
            num_layers=num_layers,
            num_heads=num_heads,
            dropout=dropout,
            make_block=lambda: ResidualBlock(
                SelfAttention(embedding_size, num_heads=num_heads, dropout=dropout, causal=True),
                # The paper's point-wise network keeps the width and uses ReLU.
                feed_forward(embedding_size, embedding_size, nn.ReLU(), dropout),
                embedding_size,
                dropout=dropout,
                norm_first=norm == "pre",
            ),
        )
        # The last block of `post` already ends with a norm.
        self.norm = nn.LayerNorm(embedding_size) if norm == "pre" else nn.Identity()
