"""What each process of the distributed metric test runs."""

from pathlib import Path

import torch
from torchmetrics import MetricCollection

from skipcl_lightning.metrics import CatalogueCoverage, Novelty, session_metrics

# By the number of processes; a last batch is shorter, or a process has a single session.
SHARDS = {
    2: [slice(0, 5), slice(5, 6)],
    3: [slice(0, 3), slice(3, 5), slice(5, 6)],
}
NUM_ITEMS = 50


def build_metrics():
    lists = {
        "coverage": CatalogueCoverage(NUM_ITEMS, top_k=3),
        "novelty": Novelty(torch.arange(NUM_ITEMS + 1), top_k=3),
    }
    return session_metrics(NUM_ITEMS, top_k=[3, 10], ties="mean"), MetricCollection(lists)


def six_sessions():
    generator = torch.Generator().manual_seed(0)
    return {
        "ranks": torch.tensor([1.0, 2.5, 3.0, 40.0, 7.5, 2.0]),
        "target_feedback": torch.tensor([1.0, -1.0, 0.2, 0.4, -0.3, 0.9]),
        "target_seen": torch.tensor([True, False, False, True, False, False]),
        "target_scores": torch.randint(-1, 2, (6,), generator=generator).float(),
        "skip_scores": torch.randint(-1, 2, (6, 4), generator=generator).float(),
        "skip_mask": torch.rand(6, 4, generator=generator) < 0.7,
        "recommended": torch.randint(0, NUM_ITEMS + 1, (6, 3), generator=generator),
    }


def update_all(metrics, sessions):
    """Feed both collections in batches of two, the last one of which may be shorter."""
    for start in range(0, len(sessions["ranks"]), 2):
        batch = {name: tensor[start : start + 2] for name, tensor in sessions.items()}
        lists = batch.pop("recommended")
        metrics[0].update(**batch)
        metrics[1].update(recommended=lists)


def compute_all(metrics):
    return {**metrics[0].compute(), **metrics[1].compute()}


def evaluate_shard(rank: int, processes: int, folder: str):
    """Compute the metrics of one uneven shard, twice, as two epochs do."""
    torch.set_num_threads(1)
    store = f"file://{folder}/metrics_store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    metrics = build_metrics()
    shard = {name: tensor[SHARDS[processes][rank]] for name, tensor in six_sessions().items()}
    epochs = []
    for _ in range(2):
        update_all(metrics, shard)
        epochs.append(compute_all(metrics))
        for collection in metrics:
            collection.reset()
    torch.save(epochs, Path(folder) / f"metrics_{rank}.pt")
    # Both files are written when the first process ends.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
