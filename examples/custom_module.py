"""Add the skip head to your own LightningModule, in three lines.

python examples/custom_module.py
python examples/custom_module.py --model rectools         # or replay, or hugging_face (the extra hf)
python examples/custom_module.py --smoke true             # seconds
"""

import warnings
from typing import Any, Literal

import polars as pl
import torch
import torch.nn.functional as F
from helpers.foreign_models import MAX_LENGTH, HuggingFaceModel, PlainModel, RecToolsStyle, RePlayStyle
from jsonargparse import auto_cli
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from skipcl_lightning.data import simulate_sessions
from skipcl_lightning.heads import SkipInfoNCE
from skipcl_lightning.metrics import HitRate, SkipHitRate

Side = Literal["left", "right"]


class NextTrack(LightningModule):
    """Typical next-item module with its own batches and loss, plus the skip head.

    Args:
        model: A model of `helpers/foreign_models.py`.
        weight: λ, the weight of the skip-contrastive loss; 0 trains without it.
        learning_rate: The learning rate of Adam.
    """

    padding: Side = "right"

    def __init__(self, model: nn.Module, *, weight: float, learning_rate: float) -> None:
        super().__init__()
        self.model: Any = model
        self.learning_rate = learning_rate
        self.skip_head = SkipInfoNCE(weight=weight)  # 1
        self.hit_rate, self.skip_hit_rate = HitRate(top_k=10), SkipHitRate(top_k=10)

    def encode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return the session after each item and the item table; override this to call another model.

        Args:
            items: [B, L] int64 in 0..V; 0 is padding.

        Returns:
            [B, L, D] and [V + 1, D].
        """
        return self.model(items), self.model.items.weight

    def losses(self, items: Tensor, feedback: Tensor) -> tuple[Tensor, Tensor]:
        """Return the model's own loss and the unweighted skip-contrastive loss, two scalars.

        Args:
            items: [B, L] int64 in 0..V; 0 is padding.
            feedback: [B, L] float32, below 0 skipped.
        """
        query, table = self.encode(items)
        logits = query[:, :-1] @ table.T  # [B, L - 1, V + 1]
        own = F.cross_entropy(logits.flatten(0, 1), items[:, 1:].flatten(), ignore_index=0)
        return own, self.skip_head(query, table[items], (items, feedback))  # 2

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's
        """Return the loss of a batch of items and feedback."""
        own, skip_loss = self.losses(*batch)
        loss = own + self.skip_head.weight * skip_loss  # 3
        self.log_dict({"train/loss": loss, "train/skip_loss": skip_loss}, prog_bar=True)
        return loss

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:  # noqa: ARG002 - Lightning's
        """Rank the last item of each session, given the earlier items."""
        items, feedback = batch
        last = find_last(items)
        target = items.gather(1, last)[:, 0]
        query, table = self.encode(items)
        query = query.gather(1, (last - 1)[..., None].expand(-1, -1, query.shape[2]))[:, 0]  # [B, D]
        scores = query @ table[1:].T  # [B, V]
        heard = feedback.gather(1, last)[:, 0]
        for metric in (self.hit_rate, self.skip_hit_rate):
            metric.update(scores, target - 1, target_feedback=heard)
        self.log_dict({"test/hit_rate@10": self.hit_rate, "test/skip_hit_rate@10": self.skip_hit_rate})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the Adam optimizer."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class RecToolsNextTrack(NextTrack):
    """Module for a RecTools-style backbone, whose input is `x`, padded on the left."""

    padding: Side = "left"

    def encode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """As `NextTrack` does."""
        table = self.model.item_model.get_all_embeddings()
        return self.model.encode_sessions({"x": items}, table), table


class RePlayNextTrack(NextTrack):
    """Module for a RePlay-style body, with ids from 0 and padding as the last id.

    If your own batches use these ids, give the head `((ids + 1) * padding_mask, feedback)`.
    """

    padding: Side = "left"

    def encode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """As `NextTrack` does."""
        weight = self.model.item_emb.weight
        padding_mask = items != 0
        ids = torch.where(padding_mask, items - 1, len(weight) - 1)
        # The head expects the padding row first.
        return self.model({"item_id": ids}, padding_mask), weight.roll(1, dims=0)


MODELS: dict[str, tuple[type[NextTrack], type[nn.Module]]] = {
    "plain": (NextTrack, PlainModel),
    "rectools": (RecToolsNextTrack, RecToolsStyle),
    "replay": (RePlayNextTrack, RePlayStyle),
    "hugging_face": (NextTrack, HuggingFaceModel),
}


def find_last(items: Tensor) -> Tensor:
    """Return the [B, 1] position of the last item of each session [B, L], padded on either side."""
    place = torch.arange(items.shape[1], device=items.device)
    return (place * (items != 0)).argmax(dim=1, keepdim=True)


def pad_sessions(log: pl.DataFrame, padding: Side) -> tuple[Tensor, Tensor]:
    """Return the latest items of each session, padded without this library's data module.

    Args:
        log: `session_id`, `item_id` such as `track-7`, and `feedback`, in order.
        padding: The side on which shorter sessions are padded.

    Returns:
        [N, L] int64 items in 1..V and [N, L] float32 feedback; both are 0 at padding.
    """
    items = torch.zeros(log["session_id"].n_unique(), MAX_LENGTH, dtype=torch.int64)
    feedback = torch.zeros(items.shape)
    number = pl.col("item_id").rank("dense").cast(pl.Int64)
    sessions = log.with_columns(number).group_by("session_id", maintain_order=True)
    for row, (_, session) in enumerate(sessions):
        latest = session.tail(MAX_LENGTH)
        places = slice(-len(latest), None) if padding == "left" else slice(len(latest))
        items[row, places] = latest["item_id"].to_torch()
        feedback[row, places] = latest["feedback"].to_torch()
    return items, feedback


def train_custom_module(
    *,
    model: Literal["plain", "rectools", "replay", "hugging_face"] = "plain",
    sessions: int = 2000,
    items: int = 300,
    epochs: int = 8,
    batch_size: int = 64,
    embedding_size: int = 32,
    weight: float = 0.1,
    learning_rate: float = 0.003,
    accelerator: str = "auto",
    seed: int = 0,
    smoke: bool = False,
) -> dict[str, float]:
    """Train your own module with the skip head, and return the test metrics.

    Args:
        model: A plain GRU, or a model in the style of RecTools, RePlay or Hugging Face's transformers.
        sessions: Simulated sessions; one tenth is the test set.
        items: Simulated items.
        epochs: Epochs of training.
        batch_size: Sessions in a batch.
        embedding_size: The size of the item embeddings.
        weight: λ, the weight of the skip-contrastive loss; 0 trains without it.
        learning_rate: The learning rate of Adam.
        accelerator: The accelerator of Lightning's Trainer.
        seed: Random seed of simulation, initialisation and shuffling.
        smoke: Quick check that everything works: few sessions, one epoch.
    """
    if smoke:
        sessions, items, epochs, embedding_size = 60, 40, 1, 8
    # Lightning 2.6 calls a deprecated API of torch 2.13.
    warnings.filterwarnings("ignore", message=".*LeafSpec")
    seed_everything(seed)
    log = simulate_sessions(sessions, num_items=items, num_moods=4, seed=seed).collect()
    kind, make_model = MODELS[model]
    padded = pad_sessions(log, kind.padding)
    num_items = int(padded[0].max())
    parts = [TensorDataset(*(part[rows] for part in padded)) for rows in split(sessions)]
    module = kind(make_model(num_items, embedding_size), weight=weight, learning_rate=learning_rate)
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    training, testing = parts
    trainer.fit(module, DataLoader(training, batch_size, shuffle=True))
    (tested,) = trainer.test(module, DataLoader(testing, batch_size))
    return dict(tested)


def split(sessions: int) -> tuple[slice, slice]:
    """Return slices of nine tenths for training and one tenth for the test."""
    most = sessions - max(1, sessions // 10)
    return slice(most), slice(most, None)


if __name__ == "__main__":
    auto_cli(train_custom_module, as_positional=False)
