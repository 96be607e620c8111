"""GRU4Rec: a gated recurrent network over a session."""

import torch
from torch import Tensor, nn

from skipcl_lightning._checks import check_integer, check_number, clean_input, requires_mask
from skipcl_lightning._settings import records_settings
from skipcl_lightning.backbones.dropout import Dropout

__all__ = ["GRU4Rec"]


class GRU4Rec(nn.Module):
    """Layers of gated recurrent units, without a limit of length.

    The cell is torch's (and cuDNN's), which applies the reset gate after the recurrent product; the paper
    applies it before.

    Args:
        embedding_size: D.
        hidden_size: Units in each layer; None for D, the paper has 100. A linear map leads back to D if it
            differs.
        num_layers: The number of layers; the paper finds one to be best.
        embedding_dropout: Share of input units dropped, in [0, 1).
        hidden_dropout: Share of each layer's output units dropped, in [0, 1).

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Reference:
        Hidasi, Karatzoglou, Baltrunas, Tikk: Session-based Recommendations with Recurrent Neural Networks,
        ICLR 2016, arXiv 1511.06939. Embeddings shared by input and output, and dropout on both: Hidasi and
        Karatzoglou: Recurrent Neural Networks with Top-k Gains for Session-based Recommendations, CIKM 2018,
        arXiv 1706.03847. The defaults are those of the authors' code, without dropout.

    Examples:
        >>> backbone = GRU4Rec(embedding_size=8, hidden_size=16)
        >>> backbone(torch.zeros(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)).shape
        torch.Size([2, 3, 8])
    """

    causal = True

    @records_settings
    def __init__(
        self,
        embedding_size: int = 64,
        *,
        hidden_size: int | None = None,
        num_layers: int = 1,
        embedding_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        check_integer("embedding_size", embedding_size)
        hidden_size = embedding_size if hidden_size is None else hidden_size
        check_integer("hidden_size", hidden_size)
        check_integer("num_layers", num_layers)
        check_number("embedding_dropout", embedding_dropout, minimum=0, maximum=1, open_maximum=True)
        check_number("hidden_dropout", hidden_dropout, minimum=0, maximum=1, open_maximum=True)
        self.embedding_dropout = Dropout(embedding_dropout)
        self.hidden_dropout = Dropout(hidden_dropout)
        # torch's own dropout is only between layers, and warns for a single layer.
        self.gru = nn.GRU(
            embedding_size,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=hidden_dropout if num_layers > 1 else 0.0,
        )
        self.output = (
            nn.Identity() if hidden_size == embedding_size else nn.Linear(hidden_size, embedding_size)
        )

    @requires_mask
    def forward(self, x: Tensor, valid_mask: Tensor) -> Tensor:
        """Return the query after each item.

        Args:
            x: [B, L, D] floating point, the embedded items.
            valid_mask: [B, L] bool, True at items; padding is on the right.

        Returns:
            [B, L, D], zero at padding.

        Raises:
            ValueError: The shapes disagree.
        """
        x = clean_input(x, valid_mask)
        hidden, _ = self.gru(self.embedding_dropout(x))  # [B, L, hidden_size]
        return torch.where(valid_mask[..., None], self.output(self.hidden_dropout(hidden)), 0)
