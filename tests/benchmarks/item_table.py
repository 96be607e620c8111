"""A training step by the way the item table is updated: dense AdamW, fused or not, and sparse rows alone.

python tests/benchmarks/item_table.py all        # about two minutes on 2 cores

SASRec, D 64, L 20, B 256, sampled softmax with 1,000 negatives. Prints Markdown: medians of interleaved
rounds, each as so many times the sparse step at the smallest catalogue, with the smallest and largest ratio.
"""

import statistics
import time
from collections.abc import Sequence

import torch
from jsonargparse import auto_cli

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.heads import SampledSoftmax, SkipInfoNCE

WAYS = ("sparse", "dense, fused", "dense, plain")


def make(items: int, way: str) -> tuple[SkipCLModule, torch.optim.Optimizer]:
    """A module and its optimizer."""
    module = SkipCLModule(
        SASRec(64, max_length=20),
        SkipInfoNCE(),
        num_items=items,
        next_item_loss=SampledSoftmax(1000),
        sparse_item_table=way == "sparse",
    )
    if way == "dense, plain":
        return module, torch.optim.AdamW(module.parameters(), 1e-3, weight_decay=0.0)
    optimizer = module.configure_optimizers()["optimizer"]
    return module, optimizer


def sessions(items: int, count: int = 256, length: int = 21) -> SessionBatch:
    """Sessions of 5 to 21 tracks, four in ten skipped."""
    generator = torch.Generator().manual_seed(0)
    real = torch.arange(length) < torch.randint(5, length + 1, (count, 1), generator=generator)
    tracks = torch.randint(1, items + 1, (count, length), generator=generator) * real
    skips = torch.rand(count, length, generator=generator) < 0.4
    return SessionBatch(tracks, torch.where(skips, -1.0, 1.0) * real)


def step(module: SkipCLModule, optimizer: torch.optim.Optimizer, batch: SessionBatch) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    optimizer.zero_grad()
    module.losses(module.part_losses(batch))["loss"].backward()
    optimizer.step()
    return time.perf_counter() - start


def benchmark(items: Sequence[int] = (10_000, 1_000_000), rounds: int = 7) -> None:
    """Print the table.

    Args:
        items: The catalogues' sizes, the smallest first.
        rounds: How often each is timed, in turns.
    """
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    cases = {(count, way): make(count, way) for count in items for way in WAYS}
    batches = {count: sessions(count) for count in items}
    seconds: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
    for _ in range(rounds + 1):
        for (count, way), (module, optimizer) in cases.items():
            seconds[count, way].append(step(module, optimizer, batches[count]))
    print("| V | table | milliseconds | against sparse, smallest V |\n|---:|---|---:|---:|")
    least = seconds[items[0], "sparse"][1:]
    for (count, way), times in seconds.items():
        ratios = [one / other for one, other in zip(times[1:], least, strict=True)]
        print(
            f"| {count:,} | {way} | {1000 * statistics.median(times[1:]):.0f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


if __name__ == "__main__":
    auto_cli({"all": benchmark})
