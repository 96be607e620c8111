"""Next-item models without skip support, in the style of other libraries.

Each is a torch module with its own item table, padding and call signature; none uses this library.
`custom_module.py` trains them. Two have the interfaces of RecTools 0.19 (`encode_sessions` of its
transformers) and RePlay 0.22 (the body of its SASRec), so you can replace them with the real models.
"""

from typing import Any

import torch
from torch import Tensor, nn

MAX_LENGTH = 20


def make_table(last: int, size: int, *, padding: int | None = None) -> nn.Embedding:
    """Return [last + 1, D] embeddings of length about 1, for inner-product scores; padding is 0."""
    table = nn.Embedding(last + 1, size, padding_idx=padding)
    with torch.no_grad():
        table.weight *= size**-0.5
    return table


class PlainModel(nn.Module):
    """GRU in plain PyTorch, for right-padded ids in 1..V with 0 as padding."""

    def __init__(self, num_items: int, size: int) -> None:
        super().__init__()
        self.items = make_table(num_items, size, padding=0)
        self.gru = nn.GRU(size, size, batch_first=True)

    def forward(self, items: Tensor) -> Tensor:
        """Map [B, L] to [B, L, D]."""
        output, _ = self.gru(self.items(items))
        return output  # type: ignore[no-any-return]


class CausalTransformer(nn.Module):
    """Causal transformer over item embeddings with learned positions."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.positions = make_table(MAX_LENGTH - 1, size)
        layer = nn.TransformerEncoderLayer(
            size, 2, 2 * size, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(size), enable_nested_tensor=False)

    def forward(self, x: Tensor, valid_mask: Tensor) -> Tensor:
        """Map [B, L, D] and [B, L] to [B, L, D]."""
        length = x.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        # Left padding attends to itself, since attention over no position would be NaN.
        itself = torch.eye(length, dtype=torch.bool, device=x.device)
        hidden = (later | ~valid_mask[:, None]) & ~itself  # [B, L, L]
        x = x + self.positions.weight[MAX_LENGTH - length :]
        output: Tensor = self.layers(x, mask=hidden.repeat_interleave(2, dim=0))
        return output * valid_mask[..., None]


class ItemNet(nn.Module):
    """Item model of a RecTools-style backbone."""

    def __init__(self, num_items: int, size: int) -> None:
        super().__init__()
        self.ids = make_table(num_items, size, padding=0)

    def get_all_embeddings(self) -> Tensor:
        """Return the [V + 1, D] item embeddings."""
        return self.ids.weight


class RecToolsStyle(nn.Module):
    """RecTools-style backbone, for left-padded ids in 1..V under `x`, with 0 as padding."""

    def __init__(self, num_items: int, size: int) -> None:
        super().__init__()
        self.item_model = ItemNet(num_items, size)
        self.transformer_layers = CausalTransformer(size)

    def encode_sessions(self, batch: dict[str, Tensor], item_embs: Tensor) -> Tensor:
        """Map `x` [B, L] and the item embeddings [V + 1, D] to [B, L, D]."""
        output: Tensor = self.transformer_layers(item_embs[batch["x"]], batch["x"] != 0)
        return output


class RePlayStyle(nn.Module):
    """RePlay-style body, for left-padded ids in 0..V-1 with V as padding, and a mask of real items."""

    def __init__(self, num_items: int, size: int) -> None:
        super().__init__()
        self.item_emb = make_table(num_items, size, padding=num_items)
        self.encoder = CausalTransformer(size)

    def forward(self, feature_tensors: dict[str, Tensor], padding_mask: Tensor) -> Tensor:
        """Map `item_id` [B, L] and the mask [B, L] to [B, L, D]."""
        output: Tensor = self.encoder(self.item_emb(feature_tensors["item_id"]), padding_mask)
        return output


class HuggingFaceModel(nn.Module):
    """Item table and Hugging Face decoder, for right-padded ids in 1..V with 0 as padding."""

    def __init__(self, num_items: int, size: int) -> None:
        super().__init__()
        self.items = make_table(num_items, size, padding=0)
        self.decoder = make_decoder(size)

    def forward(self, items: Tensor) -> Tensor:
        """Map [B, L] to [B, L, D]."""
        output = self.decoder(
            inputs_embeds=self.items(items), attention_mask=(items != 0).long(), use_cache=False
        )
        return output.last_hidden_state  # type: ignore[no-any-return]


def make_decoder(size: int) -> Any:
    """Return a small untrained GPT-2 of width D, which takes embeddings instead of tokens.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        from transformers import GPT2Config, GPT2Model
    except ImportError as error:
        raise ImportError(
            "`model` hugging_face must have the package transformers, and it is missing. "
            'Run `pip install ".[hf]"`.'
        ) from error
    return GPT2Model(GPT2Config(vocab_size=1, n_positions=MAX_LENGTH, n_embd=size, n_layer=2, n_head=2))
