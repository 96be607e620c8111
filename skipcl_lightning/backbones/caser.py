"""Caser: convolutions over a window of the latest items."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipcl_lightning._checks import check_integer, check_number, clean_input, requires_mask
from skipcl_lightning._settings import records_settings
from skipcl_lightning.backbones.dropout import Dropout

__all__ = ["Caser"]


class Caser(nn.Module):
    """Horizontal and vertical convolutions over the last `window` items, at every position.

    A horizontal filter spans some items and all D dimensions; its largest value in the window is its output.
    A vertical filter is a weighted sum of the window's items in each dimension. Zeros fill a window before
    the session's start, as in the paper. The windows are never built: a horizontal filter runs over the
    session once, followed by a sliding maximum.

    Args:
        embedding_size: D; the paper has 50.
        window: The number of items that each position sees, itself included (the paper's L).
        num_horizontal_filters: Horizontal filters of each height from 1 to `window`.
        num_vertical_filters: Vertical filters.
        dropout: Share of the convolutions' outputs dropped, in [0, 1).

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Reference:
        Tang and Wang: Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding, WSDM
        2018, arXiv 1809.07047. The user's embedding is left out, because sessions have no users here. The
        other defaults are those of the authors' code.

    Examples:
        >>> backbone = Caser(embedding_size=8)
        >>> backbone(torch.zeros(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)).shape
        torch.Size([2, 3, 8])
    """

    causal = True

    @records_settings
    def __init__(
        self,
        embedding_size: int = 64,
        *,
        window: int = 5,
        num_horizontal_filters: int = 16,
        num_vertical_filters: int = 4,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        check_integer("embedding_size", embedding_size)
        check_integer("window", window)
        check_integer("num_horizontal_filters", num_horizontal_filters)
        check_integer("num_vertical_filters", num_vertical_filters)
        check_number("dropout", dropout, minimum=0, maximum=1, open_maximum=True)
        self.window = window
        self.horizontal = nn.ModuleList(
            nn.Conv1d(embedding_size, num_horizontal_filters, height) for height in range(1, window + 1)
        )
        self.vertical = nn.Conv1d(1, num_vertical_filters, window)
        self.dropout = Dropout(dropout)
        features = num_horizontal_filters * window + num_vertical_filters * embedding_size
        self.output = nn.Linear(features, embedding_size)

    @requires_mask
    def forward(self, x: Tensor, valid_mask: Tensor) -> Tensor:
        """Return the query after each item.

        Args:
            x: [B, L, D] floating point, the embedded items.
            valid_mask: [B, L] bool, True at items; padding is on the right.

        Returns:
            [B, L, D], zero at padding and never negative (the paper's last activation is a ReLU).

        Raises:
            ValueError: The shapes disagree.
        """
        x = clean_input(x, valid_mask)
        x = F.pad(x.transpose(1, 2), (self.window - 1, 0))  # [B, D, window - 1 + L]
        features = self.dropout(torch.cat([self._convolve_horizontally(x), self._convolve_vertically(x)], 2))
        return torch.where(valid_mask[..., None], F.relu(self.output(features)), 0)

    def _convolve_horizontally(self, x: Tensor) -> Tensor:
        """[B, L, filters · window]: the largest value of each filter in the window."""
        maxima = [
            # A filter of height h has window - h + 1 places in a window.
            # In two dimensions, because an export would fix the length in one.
            F.max_pool2d(F.relu(convolution(x))[:, :, None], (1, self.window - height + 1), stride=1).squeeze(
                2
            )
            for height, convolution in enumerate(self.horizontal, start=1)
        ]
        return torch.cat(maxima, dim=1).transpose(1, 2)

    def _convolve_vertically(self, x: Tensor) -> Tensor:
        """[B, L, D · filters]: weighted sums of the window's tracks."""
        sums: Tensor = self.vertical(x.flatten(0, 1)[:, None, :])  # [B · D, filters, L]
        filters = x.shape[1] * sums.shape[1]
        return sums.reshape(x.shape[0], filters, sums.shape[2]).transpose(1, 2)
