"""Train, test and reload your own backbone, which needs no base class of this library.

python examples/custom_backbone.py
python examples/custom_backbone.py --smoke true           # seconds
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import SkipInfoNCE


class GatedMemory(nn.Module):
    """Backbone that mixes each item with a mean of past items, weighted by learned importance."""

    causal = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.importance = nn.Linear(size, 1)
        self.mix = nn.Sequential(nn.Linear(2 * size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor, valid_mask: Tensor) -> Tensor:
        """Map [B, L, D] and [B, L] to [B, L, D]; a position sees only itself and earlier positions."""
        weight = torch.sigmoid(self.importance(x)) * valid_mask[..., None]  # [B, L, 1]
        past = (weight * x).cumsum(dim=1) / weight.cumsum(dim=1).clamp(min=1e-6)
        output: Tensor = self.norm(x + self.mix(torch.cat([x, past], dim=2)))
        return output


def train_custom_backbone(
    *,
    sessions: int = 1000,
    items: int = 200,
    epochs: int = 5,
    batch_size: int = 128,
    embedding_size: int = 32,
    weight: float = 0.3,
    learning_rate: float = 0.005,
    accelerator: str = "auto",
    seed: int = 0,
    smoke: bool = False,
) -> None:
    """Train your own backbone on simulated sessions, test it, reload it and recommend items.

    Args:
        sessions: Simulated sessions.
        items: Simulated items.
        epochs: Epochs of training.
        batch_size: Sessions in a batch.
        embedding_size: The size of the item embeddings.
        weight: λ, the weight of the skip-contrastive loss.
        learning_rate: The learning rate of AdamW.
        accelerator: The accelerator of Lightning's Trainer.
        seed: Random seed of simulation, initialisation and shuffling.
        smoke: Quick check that everything works: few sessions, one epoch.
    """
    if smoke:
        sessions, items, epochs, embedding_size = 60, 40, 1, 8
    seed_everything(seed)
    data = SessionDataModule(
        simulate_sessions(sessions, num_items=items, num_moods=8, seed=seed),
        batch_size=batch_size,
        max_length=20,
    )
    module = SkipCLModule(
        GatedMemory(embedding_size),
        SkipInfoNCE(weight=weight),
        num_items=data.num_items,
        embedding_size=embedding_size,
        learning_rate=learning_rate,
    )
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, data)
    trainer.test(module, data)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.ckpt"
        trainer.save_checkpoint(path)
        # The checkpoint holds weights but no code, so pass your own backbone again.
        recommender = Recommender.from_checkpoint(path, backbone=GatedMemory(embedding_size))
    print(recommender.recommend([data.vocabulary.ids[:5]], top_k=5))


if __name__ == "__main__":
    auto_cli(train_custom_backbone, as_positional=False)
