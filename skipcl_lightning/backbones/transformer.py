"""The Transformer backbones: what they share, and SASRec, eSASRec and BERT4Rec."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipcl_lightning._checks import check_choice, check_integer, check_number, clean_input, requires_mask
from skipcl_lightning._settings import records_settings
from skipcl_lightning.backbones.dropout import Dropout, attend

__all__ = [
    "BERT4Rec",
    "ESASRec",
    "Packing",
    "ResidualBlock",
    "SASRec",
    "SelfAttention",
    "Transformer",
    "at_position",
    "feed_forward",
    "key_mask",
]

# With less padding, the copies cost more than the products that they save.
_MOST_PACKED = 0.9


class Packing(NamedTuple):
    """The items of a batch in a row, without its padding.

    Attributes:
        items: [T] int64, the place of each item among the B · L positions.
        rows: [B · L] int64, the item at each position; at padding, any item.
        last: [B] int64, the last item of each session; of an empty session, any item.
        shape: B and L.
    """

    items: Tensor
    rows: Tensor
    last: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, valid_mask: Tensor) -> "Packing | None":
        """Return the packing of a batch [B, L]; None where it does not pay.

        The number of items would make a GPU wait for the host, and a graph valid for one batch alone.
        """
        if valid_mask.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        items = valid_mask.flatten().nonzero().squeeze(1)
        if not 0 < len(items) < _MOST_PACKED * valid_mask.numel():
            return None
        rows = (valid_mask.flatten().cumsum(0) - 1).clamp(min=0)
        last = (valid_mask.sum(dim=1).cumsum(0) - 1).clamp(min=0)
        return cls(items, rows, last, (valid_mask.shape[0], valid_mask.shape[1]))

    def pack(self, x: Tensor) -> Tensor:
        """[B, L, D] to [T, D]."""
        return x.flatten(0, 1).index_select(0, self.items)

    def unpack(self, x: Tensor) -> Tensor:
        """[T, D] to [B, L, D]; the vectors at padding mean nothing."""
        return x.index_select(0, self.rows).view(*self.shape, -1)


class Transformer(nn.Module):
    """Learned positions, blocks of attention and an output: the base of SASRec, ESASRec and BERT4Rec.

    On a CPU, all but attention is computed at the items alone, without the padding.

    `make_block` returns a block `forward(x, mask, position, packing)`. `norm_input` replaces the factor of
    the items, the square root of D, by a layer norm. A subclass sets `norm`, which follows the last block.
    """

    causal = True
    # With smaller item embeddings, models learn faster at first and end higher (docs/results.md).
    item_scale = 0.4
    norm: nn.Module

    def __init__(
        self,
        embedding_size: int,
        *,
        max_length: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        make_block: Callable[[], nn.Module],
        norm_input: bool = False,
    ) -> None:
        super().__init__()
        check_integer("embedding_size", embedding_size)
        check_integer("max_length", max_length)
        check_integer("num_layers", num_layers)
        check_integer("num_heads", num_heads)
        check_number("dropout", dropout, minimum=0, maximum=1, open_maximum=True)
        if embedding_size % num_heads:
            raise ValueError(
                f"`embedding_size` must be divisible by `num_heads`, got {embedding_size} and {num_heads}. "
                "Each head takes an equal share."
            )
        self.embedding_size = embedding_size
        self.max_length = max_length
        self.scale = 1.0 if norm_input else embedding_size**0.5
        # A vector for each position, counted from the session's first item.
        self.positions = nn.Embedding(max_length, embedding_size)
        self.positions.weight.data.mul_(0.02)
        self.input_norm = nn.LayerNorm(embedding_size) if norm_input else nn.Identity()
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(make_block() for _ in range(num_layers))

    @requires_mask
    def forward(self, x: Tensor, valid_mask: Tensor, *, last_only: bool = False) -> Tensor:
        """Return the query after each item; of a bidirectional backbone, the prediction of the item there.

        Args:
            x: [B, L, D] floating point, the embedded items, with the mask token's vector at hidden positions.
            valid_mask: [B, L] bool, True at items and mask tokens; padding is on the right.
            last_only: Whether to return only the output at each session's last item; the last block then
                computes no other.

        Returns:
            [B, L, D], zero at padding; or [B, 1, D], zero for an empty session.

        Raises:
            TypeError: The mask is missing, or a tensor has the wrong dtype.
            ValueError: The shapes disagree, or the sessions are longer than `max_length`.
        """
        x = clean_input(x, valid_mask, max_length=self.max_length)
        x = x * self.scale + self.positions.weight[: x.shape[1]]
        packing = Packing.of(valid_mask)
        x = x if packing is None else packing.pack(x)
        x = self.dropout(self.input_norm(x))
        mask = None if self.causal else key_mask(valid_mask)
        *earlier, final = self.blocks
        for block in earlier:
            x = block(x, mask, packing=packing)
        if last_only:
            position = (valid_mask.sum(dim=1) - 1).clamp(min=0)
            x = self.finish(final(x, key_mask(valid_mask), position, packing))
            valid_mask = valid_mask.any(dim=1, keepdim=True)
        else:
            x = self.finish(final(x, mask, packing=packing))
            x = x if packing is None else packing.unpack(x)
        return torch.where(valid_mask[..., None], x, 0)

    def finish(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D], after the last block."""
        finished: Tensor = self.norm(x)
        return finished


class SelfAttention(nn.Module):
    """Multi-head attention of a session to itself; `causal` positions see only themselves and the past."""

    def __init__(self, size: int, *, num_heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.causal = causal
        self.query_key_value = nn.Linear(size, 3 * size)
        self.output = nn.Linear(size, size)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        position: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Attend from all positions, or from the one `position` [B] int64 of each session.

        Args:
            x: [B, L, D], or the items alone [T, D].
            mask: [B, 1, 1, L] bool, True at visible positions; None if causal, because padding on the right
                is then invisible anyway.
            position: None for all.
            packing: Where the items are, if `x` holds them alone.

        Returns:
            Shaped as `x`, or [B, 1, D].
        """
        unpack = _same if packing is None else packing.unpack
        if position is None:
            parts = unpack(self.query_key_value(x)).chunk(3, dim=2)
        else:
            weight, bias, size = self.query_key_value.weight, self.query_key_value.bias, x.shape[-1]
            asking = F.linear(at_position(x, position, packing), weight[:size], bias[:size])
            parts = (asking, *unpack(F.linear(x, weight[size:], bias[size:])).chunk(2, dim=2))
        width = x.shape[-1] // self.num_heads
        query, key, value = (
            part.view(*part.shape[:2], self.num_heads, width).transpose(1, 2)  # [B, heads, L, D / heads]
            for part in parts
        )
        dropout = self.dropout if self.training else 0.0
        is_causal = self.causal and position is None
        attended = attend(query, key, value, mask, is_causal=is_causal, dropout=dropout)
        attended = attended.transpose(1, 2).flatten(2)  # [B, L, D]
        if packing is not None and position is None:
            attended = packing.pack(attended)
        output: Tensor = self.output(attended)
        return output


class ResidualBlock(nn.Module):
    """Attention and a feed-forward network, each with a residual connection, dropout and a norm.

    The norms come before the two if `norm_first` (pre-norm), else after each sum (post-norm).
    """

    def __init__(
        self,
        attention: SelfAttention,
        feed_forward: nn.Module,
        size: int,
        *,
        dropout: float,
        norm_first: bool,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = attention
        self.feed_forward = feed_forward
        self.attention_norm = nn.LayerNorm(size)
        self.feed_forward_norm = nn.LayerNorm(size)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        position: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Return what `SelfAttention` does, of the same arguments."""
        output: Tensor
        own = at_position(x, position, packing)
        if self.norm_first:
            x = own + self.dropout(self.attention(self.attention_norm(x), mask, position, packing))
            output = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        else:
            x = self.attention_norm(own + self.dropout(self.attention(x, mask, position, packing)))
            output = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return output


def feed_forward(size: int, hidden_size: int, activation: nn.Module, dropout: float = 0.0) -> nn.Sequential:
    """Return the point-wise network of a block: two linear maps with an activation between them."""
    return nn.Sequential(
        nn.Linear(size, hidden_size), activation, Dropout(dropout), nn.Linear(hidden_size, size)
    )


def at_position(x: Tensor, position: Tensor | None, packing: Packing | None = None) -> Tensor:
    """Return one position of each session, [B, 1, D], or all if `position` is None.

    With a `packing` of the items `x` [T, D], it is the last one.
    """
    if position is None:
        return x
    if packing is not None:
        return x.index_select(0, packing.last)[:, None]
    rows = torch.arange(x.shape[0], device=x.device)  # `len` would be fixed by an export
    return x[rows[:, None], position[:, None]]


def _same(x: Tensor) -> Tensor:
    return x


def key_mask(valid_mask: Tensor) -> Tensor:
    """Return the positions, [B, 1, 1, L] bool, that bidirectional attention may see.

    They are the items, and always the first position, because attention to nothing is undefined (NaN by the
    formula).
    """
    first = torch.arange(valid_mask.shape[1], device=valid_mask.device) == 0
    return (valid_mask | first)[:, None, None, :]


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
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        position: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        attended = self.dropout(self.attention(self.attention_norm(x), mask, position, packing))
        x = at_position(x, position, packing)
        x = x + self.attention_gate(x).sigmoid() * attended
        fed_forward = self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        output: Tensor = x + self.feed_forward_gate(x).sigmoid() * fed_forward
        return output


class _SwiGLU(nn.Module):
    def __init__(self, size: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(size, 2 * hidden_size, bias=False)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(hidden_size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        output: Tensor = self.output(self.dropout(F.silu(gate) * value))
        return output


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
    # On real sessions it loses with smaller ones (docs/results.md).
    item_scale = 1.0

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
        """[..., D] to [..., D]: the last non-linear map, and a layer norm."""
        finished: Tensor = self.output(x)
        return finished
