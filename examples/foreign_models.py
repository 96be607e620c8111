"""Next-track models that know nothing of skips, in the forms that other libraries give theirs.

Each is a torch module with its own item table, its own padding and its own way to be called; none uses this
library. `custom_module.py` trains them. Two are called as in RecTools 0.19 (`encode_sessions` of its
transformers) and RePlay 0.22 (the body of its SASRec): the real ones can stand in their place.
"""

from typing import Any

import torch
from torch import Tensor, nn

MAX_LENGTH = 20


def make_table(last: int, size: int, *, padding: int | None = None) -> nn.Embedding:
    """[last + 1, D] embeddings of about length 1, as scores by inner product want them; padding's is 0."""
    table = nn.Embedding(last + 1, size, padding_idx=padding)
    with torch.no_grad():
        table.weight *= size**-0.5
    return table


class PlainModel(nn.Module):
    """A GRU, in plain PyTorch: right-padded ids in 1..V, 0 is padding."""

    def __init__(self, num_items: int, size: int) -> None:
        super().__init__()
        self.items = make_table(num_items, size, padding=0)
        self.gru = nn.GRU(size, size, batch_first=True)

    def forward(self, items: Tensor) -> Tensor:
        """[B, L] to [B, L, D]."""
        output, _ = self.gru(self.items(items))
        return output  # type: ignore[no-any-return]


class CausalTransformer(nn.Module):
    """Embedded tracks and their positions through a transformer that looks back only."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.positions = make_table(MAX_LENGTH - 1, size)
        layer = nn.TransformerEncoderLayer(
            size, 2, 2 * size, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(size), enable_nested_tensor=False)

    def forward(self, x: Tensor, valid_mask: Tensor) -> Tensor:
        """[B, L, D] and [B, L] to [B, L, D]."""
        length = x.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        # Padding on the left has nothing before it: it sees itself, or its attention would be NaN.
        itself = torch.eye(length, dtype=torch.bool, device=x.device)
        hidden = (later | ~valid_mask[:, None]) & ~itself  # [B, L, L]
        x = x + self.positions.weight[MAX_LENGTH - length :]
        output: Tensor = self.layers(x, mask=hidden.repeat_interleave(2, dim=0))
        return output * valid_mask[..., None]


class ItemNet(nn.Module):
    """The item model of a RecTools-style backbone."""

    def __init__(self, num_items: int, size: int) -> None:
        super().__init__()
        self.ids = make_table(num_items, size, padding=0)

    def get_all_embeddings(self) -> Tensor:
        """[V + 1, D]."""
        return self.ids.weight


class RecToolsStyle(nn.Module):
    """A backbone as RecTools has it: left-padded ids in 1..V under `x`, 0 is padding."""

    def __init__(self, num_items: int, size: int) -> None:
        super().__init__()
        self.item_model = ItemNet(num_items, size)
        self.transformer_layers = CausalTransformer(size)

    def encode_sessions(self, batch: dict[str, Tensor], item_embs: Tensor) -> Tensor:
        """`x` [B, L] and the item embeddings [V + 1, D] to [B, L, D]."""
        output: Tensor = self.transformer_layers(item_embs[batch["x"]], batch["x"] != 0)
        return output


class RePlayStyle(nn.Module):
    """A body as RePlay has it: left-padded ids in 0..V-1, V is padding, and a mask of the real ones."""

    def __init__(self, num_items: int, size: int) -> None:
        super().__init__()
        self.item_emb = make_table(num_items, size, padding=num_items)
        self.encoder = CausalTransformer(size)

    def forward(self, feature_tensors: dict[str, Tensor], padding_mask: Tensor) -> Tensor:
        """`item_id` [B, L] and the mask [B, L] to [B, L, D]."""
        output: Tensor = self.encoder(self.item_emb(feature_tensors["item_id"]), padding_mask)
        return output


class HuggingFaceModel(nn.Module):
    """An item table before a decoder of Hugging Face's: right-padded ids in 1..V, 0 is padding."""

    def __init__(self, num_items: int, size: int) -> None:
        super().__init__()
        self.items = make_table(num_items, size, padding=0)
        self.decoder = make_decoder(size)

    def forward(self, items: Tensor) -> Tensor:
        """[B, L] to [B, L, D]."""
        output = self.decoder(
            inputs_embeds=self.items(items), attention_mask=(items != 0).long(), use_cache=False
        )
        return output.last_hidden_state  # type: ignore[no-any-return]


def make_decoder(size: int) -> Any:
    """A small GPT-2 without tokens of its own.

    Args:
        size: D.

    Returns:
        The model, not trained.

    Raises:
        ImportError: transformers is missing.
    """
    try:
        from transformers import GPT2Config, GPT2Model
    except ImportError as error:
        raise ImportError(
            "`model` hugging_face must have the package transformers, and it is missing. "
            'Run `pip install ".[hf]"`.'
        ) from error
    return GPT2Model(GPT2Config(vocab_size=1, n_positions=MAX_LENGTH, n_embd=size, n_layer=2, n_head=2))
