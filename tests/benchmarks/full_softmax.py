"""The full softmax, forward and backward, against the plain formula and against its products alone.

python tests/benchmarks/full_softmax.py all                          # some minutes on 2 cores
python tests/benchmarks/full_softmax.py all --items "[1000000]" --queries 512
python tests/benchmarks/full_softmax.py all --items "[50000]" --queries 5120 --device cuda --dtype bfloat16

Prints Markdown: medians of the rounds, which are interleaved, with the smallest and the largest ratio to the
products; and the peak memory of each way in a process of its own, beyond what its tensors take.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from memory import peak_mebibytes

from skipcl_lightning.functional import chunked_softmax_loss, full_softmax_loss


def products(query: torch.Tensor, table: torch.Tensor, target: torch.Tensor) -> None:
    """The three products of a step, and nothing else: the limit."""
    with torch.no_grad():
        logits = query @ table.T
        _ = logits @ table
        _ = logits.T @ query
    del target


def plain(query: torch.Tensor, table: torch.Tensor, target: torch.Tensor) -> None:
    """All logits at once."""
    query.grad = table.grad = None
    full_softmax_loss(query, table, target).mean().backward()


def cross_entropy(query: torch.Tensor, table: torch.Tensor, target: torch.Tensor) -> None:
    """All logits at once, by torch's own loss, as peers have it."""
    query.grad = table.grad = None
    F.cross_entropy(query @ table.T, target).backward()


def chunked(query: torch.Tensor, table: torch.Tensor, target: torch.Tensor) -> None:
    """Ours."""
    query.grad = table.grad = None
    chunked_softmax_loss(query, table, target).backward()


WAYS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]] = {
    "products alone": products,
    "plain": plain,
    "torch's cross_entropy": cross_entropy,
    "chunked": chunked,
}


def make(
    queries: int, items: int, size: int, device: str = "cpu", dtype: str = "float32"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, a table and targets."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(queries, size, generator=generator)
    table = torch.randn(items + 1, size, generator=generator) * size**-0.5
    target = torch.randint(1, items + 1, (queries,), generator=generator).to(device)
    leaves = [one.to(device, getattr(torch, dtype)).requires_grad_() for one in (query, table)]
    return leaves[0], leaves[1], target


def benchmark(
    items: Sequence[int] = (10_000, 50_000),
    queries: int = 3500,
    size: int = 64,
    rounds: int = 5,
    threads: int | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> None:
    """Print the table.

    Args:
        items: V, one after the other.
        queries: N, real positions: 256 sessions of 20 tracks have about 3,500.
        size: D.
        rounds: How often each is timed.
        threads: torch's; all cores if None.
        device: Where.
        dtype: Of queries and table.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {name}, {dtype}, N {queries:,}, D {size}\n")
    print("| V | way | seconds | against the products | peak MiB |\n|---:|---|---:|---:|---:|")
    for count in items:
        tensors = make(queries, count, size, device, dtype)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds + 1):
            for way, run in WAYS.items():
                start = time.perf_counter()
                run(*tensors)
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds[way].append(time.perf_counter() - start)
        limit = seconds["products alone"][1:]
        for way, times in seconds.items():
            ratios = [one / other for one, other in zip(times[1:], limit, strict=True)]
            print(
                f"| {count:,} | {way} | {statistics.median(times[1:]):.4f} | {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}) | {_peak(way, tensors):,.0f} |",
                flush=True,
            )


def _peak(way: str, tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> float:
    if tensors[0].device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        WAYS[way](*tensors)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    (queries, size), items = tensors[0].shape, len(tensors[1]) - 1
    dtype = str(tensors[0].dtype).removeprefix("torch.")
    command = [sys.executable, __file__, "memory", way, str(queries), str(items), str(size), dtype]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - this script
    return float(json.loads(done.stdout.splitlines()[-1]))


def memory(way: str, queries: int, items: int, size: int, dtype: str) -> None:
    """The peak memory of one way in this process, beyond that of its tensors."""
    tensors = make(queries, items, size, dtype=dtype)
    before = peak_mebibytes()
    WAYS[way](*tensors)
    print(peak_mebibytes() - before)


if __name__ == "__main__":
    auto_cli({"all": benchmark, "memory": memory})
