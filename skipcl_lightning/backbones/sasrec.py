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
from skipcl_lightning.backbones.contract import clean_input

__all__ = ["SASRec"]

Norm = Literal["pre", "post"]


class SASRec(nn.Module):
    """Transformer blocks with learned positions, each position seeing itself and what came before.

    Since padding stands on the right and attention looks only to the left, no real position ever sees
    padding; padded positions themselves come out as zeros.

    Args:
        embedding_size: D, divisible by `num_heads`; the paper has 50.
        max_length: The longest session, in tracks; learned positions know no more. The paper has 200 for
            MovieLens-1M and 50 for sparser data.
        num_layers: Blocks.
        num_heads: Attention heads a block.
        dropout: Share of units dropped, in [0, 1): at the input, in attention, and behind both sublayers.
            The paper has 0.2 for MovieLens-1M and 0.5 for sparser data.
        norm: Layer norms before the sublayers and at the end (`pre`, the paper), or behind each residual
            sum (`post`, the first Transformer's).

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
                # The paper's point-wise network keeps the width, and uses ReLU.
                feed_forward(embedding_size, embedding_size, nn.ReLU(), dropout),
                embedding_size,
                dropout=dropout,
                norm_first=norm == "pre",
            )
            for _ in range(num_layers)
        )
        # Behind the last block of `post` stands a norm already.
        self.norm = nn.LayerNorm(embedding_size) if norm == "pre" else nn.Identity()

    def forward(self, x: Tensor, valid_mask: Tensor, *, last_only: bool = False) -> Tensor:
        """The session as known after each track.

        Args:
            x: [B, L, D] floating point, the embedded tracks.
            valid_mask: [B, L] bool, True where a real track stands; padding is on the right.
            last_only: Whether only what stands at each session's last track is wanted: the last block then
                leaves out all else.

        Returns:
            [B, L, D], zero at padding; or [B, 1, D], zero without a track.

        Raises:
            ValueError: The shapes disagree, or the sessions are longer than `max_length`.
        """
        x = clean_input(x, valid_mask, max_length=self.max_length)
        x = self.dropout(self.positions(x * self.scale))
        x, is_real = run_blocks(self.blocks, x, valid_mask, causal=True, last_only=last_only)
        return torch.where(is_real[..., None], self.norm(x), 0)
