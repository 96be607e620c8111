"""Use only the metrics of this library, with your own model, data and loss.

python examples/metrics_only.py
python examples/metrics_only.py --smoke true              # seconds
"""

import warnings

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from skipcl_lightning.metrics import RankingMetrics, SkipRankMetrics


class NextOfPair(LightningModule):
    """Module that predicts the next item from the last item only.

    Args:
        num_items: V.
        size: D.
        learning_rate: The learning rate of Adam.
    """

    def __init__(self, num_items: int, size: int, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.before, self.after = nn.Embedding(num_items, size), nn.Linear(size, num_items)
        # Each computes the ranks of a batch once for all its metrics.
        self.ranking = RankingMetrics(top_k=[1, 10], prefix="test/")
        self.skips = SkipRankMetrics(num_items, top_k=[1, 10], prefix="test/")

    def forward(self, items: Tensor) -> Tensor:
        """Map [B] ids in 0..V-1 to [B, V] scores."""
        scores: Tensor = self.after(self.before(items))
        return scores

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's
        """Return the mean loss over the listened targets."""
        items, target, feedback = batch
        losses = F.cross_entropy(self(items), target, reduction="none")
        listened = feedback >= 0
        loss = (losses * listened).sum() / listened.sum().clamp(min=1)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:  # noqa: ARG002 - Lightning's
        """Rank the next item, listened to or skipped."""
        items, target, feedback = batch
        scores = self(items)
        for metrics in (self.ranking, self.skips):
            metrics.update(scores, target, target_feedback=feedback)
            self.log_dict(metrics)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the Adam optimizer."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def simulate_pairs(count: int, num_items: int) -> TensorDataset:
    """Simulate pairs of items on a circle: a close successor is listened to, a random one is skipped.

    Returns:
        [N] int64 items in 0..V-1, [N] int64 next items, and [N] float32 feedback, 1 or -1; N is `count`.
    """
    items = torch.randint(num_items, (count,))
    listened = torch.rand(count) < 0.6
    near, anywhere = (items + torch.randint(1, 4, (count,))) % num_items, torch.randint(num_items, (count,))
    return TensorDataset(items, torch.where(listened, near, anywhere), listened.float() * 2 - 1)


def use_metrics_only(
    *,
    pairs: int = 20_000,
    items: int = 200,
    epochs: int = 5,
    batch_size: int = 128,
    embedding_size: int = 32,
    learning_rate: float = 0.01,
    accelerator: str = "auto",
    seed: int = 0,
    smoke: bool = False,
) -> dict[str, float]:
    """Train a model that predicts the next item, and return this library's metrics on the test set.

    Args:
        pairs: Training pairs of an item and the next item; the test set has a fifth as many.
        items: Number of items.
        epochs: Epochs of training.
        batch_size: Pairs in a batch.
        embedding_size: The size of the embeddings.
        learning_rate: The learning rate of Adam.
        accelerator: The accelerator of Lightning's Trainer.
        seed: Random seed of simulation, initialisation and shuffling.
        smoke: Quick check that everything works: few pairs, one epoch.
    """
    if smoke:
        pairs, items, epochs, embedding_size = 500, 20, 1, 8
    # Lightning 2.6 calls a deprecated API of torch 2.13.
    warnings.filterwarnings("ignore", message=".*LeafSpec")
    seed_everything(seed)
    training, testing = simulate_pairs(pairs, items), simulate_pairs(pairs // 5, items)
    module = NextOfPair(items, embedding_size, learning_rate)
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, DataLoader(training, batch_size, shuffle=True))
    (tested,) = trainer.test(module, DataLoader(testing, batch_size))
    return dict(tested)


if __name__ == "__main__":
    auto_cli(use_metrics_only, as_positional=False)
