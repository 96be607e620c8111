"""What each of two processes of the distributed metric test runs."""

from pathlib import Path

import torch

from skipcl_lightning.metrics import session_metrics

SHARDS = [slice(0, 5), slice(5, 6)]


def build_metrics():
    return session_metrics(num_items=50, top_k=[3, 10], ties="mean")


def six_sessions():
    generator = torch.Generator().manual_seed(0)
    return {
        "ranks": torch.tensor([1.0, 2.5, 3.0, 40.0, 7.5, 2.0]),
        "target_feedback": torch.tensor([1.0, -1.0, 0.2, 0.4, -0.3, 0.9]),
        "target_scores": torch.randint(-1, 2, (6,), generator=generator).float(),
        "skip_scores": torch.randint(-1, 2, (6, 4), generator=generator).float(),
        "skip_mask": torch.rand(6, 4, generator=generator) < 0.7,
    }


def evaluate_shard(rank: int, folder: str):
    """Compute the metrics of one uneven shard, twice, as two epochs do."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=len(SHARDS))
    metrics = build_metrics()
    shard = {name: tensor[SHARDS[rank]] for name, tensor in six_sessions().items()}
    epochs = []
    for _ in range(2):
        metrics.update(**shard)
        epochs.append(metrics.compute())
        metrics.reset()
    torch.save(epochs, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
