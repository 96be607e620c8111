"""BERT4Rec: bidirectional self-attention, trained to predict hidden items."""

from torch import Tensor, nn

from skipcl_lightning._checks import check_integer
from skipcl_lightning._settings import records_settings
from skipcl_lightning.backbones.attention import ResidualBlock, SelfAttention, Transformer, feed_forward

__all__ = ["BERT4Rec"]


class BERT4Rec(Transformer):
    """Transformer blocks in which each position sees the whole session, trained by the cloze task.

    `SkipCLModule` hides items behind a mask token in training, and predicts the next item at a mask token
    after the session's last one. A session of `max_length` items loses its earliest item to that token.

    Args:
        embedding_size: D, divisible by `num_heads`; the paper has 64 (and others, from 16 to 256).
        max_length: The largest number of positions, the mask token included, at least 2. The paper has 200
            for MovieLens-1M and 50 for sparser data.
        num_layers: The number of blocks.
        num_heads: Attention heads in each block.
        dropout: Share of units dropped, in [0, 1): at the input, in attention, and after both sublayers. 0.2
            is the authors' setting for MovieLens-1M.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Reference:
        Sun et al.: BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from
        Transformer, CIKM 2019, arXiv 1904.06690. As in BERT and in the authors' code, a layer norm follows
        the sum of item and position, and the last non-linear map. Scores have no bias for each item, because
        recommendations are nearest neighbours of z_t in the item table.

    Examples:
        >>> import torch
        >>> backbone = BERT4Rec(embedding_size=8, max_length=5)
        >>> backbone(torch.zeros(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)).shape
        torch.Size([2, 3, 8])
    """

    causal = False

    @records_settings
    def __init__(
        self,
        embedding_size: int = 64,
        *,
        max_length: int = 50,
        num_layers: int = 2,
        num_heads: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(
            embedding_size,
            max_length=max_length,
            num_layers=num_layers,
            num_heads=num_heads,
            dropout=dropout,
            make_block=lambda: ResidualBlock(
                SelfAttention(embedding_size, num_heads=num_heads, dropout=dropout, causal=False),
                feed_forward(embedding_size, 4 * embedding_size, nn.GELU()),
                embedding_size,
                dropout=dropout,
                norm_first=False,
            ),
            norm_input=True,
        )
        check_integer(
            "max_length", max_length, minimum=2, cure="The mask token needs a place beside a track."
        )
        self.output = nn.Sequential(
            nn.Linear(embedding_size, embedding_size), nn.GELU(), nn.LayerNorm(embedding_size)
        )

    def finish(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]: the last non-linear map, and a layer norm."""
        finished: Tensor = self.output(x)
        return finished
