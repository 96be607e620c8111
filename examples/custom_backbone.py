"""Wrap a backbone of your own, with no base class of ours: train it, test it, load it again."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import SkipInfoNCE


class GatedMemory(nn.Module):
    """A running mean of the past whose pace each track decides, mixed with the track itself."""

    causal = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.importance = nn.Linear(size, 1)
        self.mix = nn.Sequential(nn.Linear(2 * size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor, valid_mask: Tensor) -> Tensor:
        """[B, L, D] and [B, L] to [B, L, D]; each position sees itself and what came before."""
        weight = torch.sigmoid(self.importance(x)) * valid_mask[..., None]  # [B, L, 1]
        past = (weight * x).cumsum(dim=1) / weight.cumsum(dim=1).clamp(min=1e-6)
        output: Tensor = self.norm(x + self.mix(torch.cat([x, past], dim=2)))
        return output


def main() -> None:
    """Train on simulated sessions."""
    seed_everything(0)
    data = SessionDataModule(simulate_sessions(1000, num_items=200), batch_size=128, max_length=20)
    module = SkipCLModule(
        GatedMemory(32),
        SkipInfoNCE(weight=0.3),
        num_items=data.num_items,
        embedding_size=32,
        learning_rate=5e-3,
    )
    trainer = Trainer(max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, data)
    trainer.test(module, data)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.ckpt"
        trainer.save_checkpoint(path)
        # The checkpoint holds the weights, but not the code: a backbone of your own is passed again.
        recommender = Recommender.from_checkpoint(path, backbone=GatedMemory(32))
    print(recommender.recommend([data.vocabulary.ids[:5]], top_k=5))


if __name__ == "__main__":
    main()
