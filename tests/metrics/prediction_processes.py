"""What each process of the distributed test of skip predictions runs."""

from pathlib import Path

import torch
from torchmetrics import MetricCollection

from skipcl_lightning.metrics import SkipAccuracyByPlace, skip_prediction_metrics

# A session's targets are spread over both processes, and the second one has a single row.
SHARDS = [slice(0, 7), slice(7, 8)]


def build_metrics():
    by_place = MetricCollection({"by_place": SkipAccuracyByPlace(2)})
    return skip_prediction_metrics(num_bins=3), by_place


def eight_targets():
    return {
        "skip_predictions": torch.tensor([0.1, 0.8, 0.5, 0.3, 0.9, 0.3, 0.6, 0.2]),
        "target_feedback": torch.tensor([1.0, -1.0, 0.2, -0.4, -0.3, 0.9, 0.0, -1.0]),
        "place": torch.tensor([1, 2, 3, 1, 2, 1, 2, 3]),
        "session_index": torch.tensor([4, 4, 4, 0, 0, 7, 7, 7]),
    }


def update_all(metrics, targets):
    """Feed all metrics in batches of two, the last one of which may be shorter."""
    for start in range(0, len(targets["place"]), 2):
        batch = {name: tensor[start : start + 2] for name, tensor in targets.items()}
        for collection in metrics:
            collection.update(**batch)


def compute_all(metrics):
    return {name: value for collection in metrics for name, value in collection.compute().items()}


def refusals(first_prediction):
    """Return the error of each metric whose update got this prediction."""
    batch = {name: tensor[:2] for name, tensor in eight_targets().items()}
    batch["skip_predictions"] = torch.tensor([first_prediction, 0.5])
    found = []
    for collection in build_metrics():
        for metric in collection.values():
            metric.update(**metric._filter_kwargs(**batch))
            try:
                metric.compute()
            except ValueError as error:
                found.append(str(error))
    return found


def evaluate_shard(rank: int, folder: str):
    """Compute the metrics of one uneven shard, twice, as two epochs do."""
    torch.set_num_threads(1)
    store = f"file://{folder}/predictions_store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    metrics = build_metrics()
    shard = {name: tensor[SHARDS[rank]] for name, tensor in eight_targets().items()}
    epochs = []
    for _ in range(2):
        update_all(metrics, shard)
        epochs.append(compute_all(metrics))
        for collection in metrics:
            collection.reset()
    torch.save(epochs, Path(folder) / f"predictions_{rank}.pt")
    if rank == 0:
        update_all(metrics, shard)
    torch.save(compute_all(metrics), Path(folder) / f"of_the_first_alone_{rank}.pt")
    torch.save(refusals(first_prediction=0.5 + 3 * rank), Path(folder) / f"refusals_{rank}.pt")
    # Both files are written when the first process ends.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
