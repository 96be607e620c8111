"""NextItNet: dilated causal convolutions over a session."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipcl_lightning._checks import check_integer, check_number, clean_input, requires_mask
from skipcl_lightning._settings import records_settings
from skipcl_lightning.backbones.dropout import Dropout

__all__ = ["NextItNet"]


class NextItNet(nn.Module):
    """Residual blocks of two dilated causal convolutions, without a limit of length.

    Each position sees itself and the 3 · (kernel_size - 1) · Σ dilations positions before it.

    Args:
        embedding_size: D.
        kernel_size: Positions that a convolution sees, at least 2.
        dilations: One residual block each: its first convolution sees every l-th position, its second every
            2l-th.
        dropout: Share of units dropped, in [0, 1): at the input and behind each block. The paper has none,
            and overfits small logs (docs/results.md).

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Reference:
        Yuan, Karatzoglou, Arapakis, Jose, He: A Simple Convolutional Generative Network for Next Item
        Recommendation, WSDM 2019, arXiv 1808.05163; the residual block (b) of its figure 3, and the kernel
        and dilations of the authors' code.

    Examples:
        >>> backbone = NextItNet(embedding_size=8)
        >>> backbone(torch.zeros(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)).shape
        torch.Size([2, 3, 8])
    """

    causal = True

    @records_settings
    def __init__(
        self,
        embedding_size: int = 64,
        *,
        kernel_size: int = 3,
        dilations: Sequence[int] = (1, 4, 1, 4, 1, 4, 1, 4),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        check_integer("embedding_size", embedding_size)
        check_integer("kernel_size", kernel_size, minimum=2, cure="A kernel of 1 sees no other track.")
        if not isinstance(dilations, Sequence):
            raise TypeError(f"`dilations` must be a sequence of integers, got {dilations!r}. Give a list.")
        if not dilations:
            raise ValueError("`dilations` must hold one for each block, got none. The paper has 1 and 4.")
        for dilation in dilations:
            check_integer("dilations", dilation)
        self.blocks = nn.ModuleList(
            _DilatedBlock(embedding_size, kernel_size, dilation) for dilation in dilations
        )
        check_number("dropout", dropout, minimum=0, maximum=1, open_maximum=True)
        self.dropout = Dropout(dropout)

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
        x = self.dropout(clean_input(x, valid_mask))
        for block in self.blocks:
            x = x + self.dropout(block(x))
        return torch.where(valid_mask[..., None], x, 0)


class _DilatedBlock(nn.Module):
    def __init__(self, size: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(size, size, kernel_size, dilation=dilation)
        self.first_norm = nn.LayerNorm(size)
        self.second = nn.Conv1d(size, size, kernel_size, dilation=2 * dilation)
        self.second_norm = nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first_norm(_convolve_the_past(self.first, x)))
        return F.relu(self.second_norm(_convolve_the_past(self.second, hidden)))


def _convolve_the_past(convolution: nn.Conv1d, x: Tensor) -> Tensor:
    """[B, L, D] to [B, L, D], each position from itself and from positions before it."""
    reach = (convolution.kernel_size[0] - 1) * convolution.dilation[0]
    output: Tensor = convolution(F.pad(x.transpose(1, 2), (reach, 0)))
    return output.transpose(1, 2)
