"""Ranks and metrics against a matrix product alone and against peers, interleaved in one run.

python tests/benchmarks/evaluation.py                                   # some minutes on 2 cores
python tests/benchmarks/evaluation.py --replay_python ENV/bin/python    # with RePlay, in its own place
python tests/benchmarks/evaluation.py --device cuda

Prints Markdown: medians of the repetitions, with their smallest and largest ratio. Nothing here is a test:
what a machine can do is no property of the code.
"""

import json
import resource
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jsonargparse import auto_cli

from skipcl_lightning.functional import target_ranks
from skipcl_lightning.metrics import RankingMetrics

TOP_K = 10
# Runs in RePlay's environment, which knows nothing of ours.
REPLAY = """
import json, sys, time, torch
from replay.metrics.torch_metrics_builder import TorchMetricsBuilder
sessions, items, repeats, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
generator = torch.Generator().manual_seed(0)
scores = torch.randn(sessions, items, generator=generator)
target = torch.randint(items, (sessions, 1), generator=generator)
seconds = []
for _ in range(repeats + 1):
    builder = TorchMetricsBuilder(metrics=["recall", "ndcg"], top_k=[10], item_count=items)
    builder.reset()
    start = time.perf_counter()
    builder.add_prediction(scores.topk(10, dim=1).indices, target)
    builder.get_metrics()
    seconds.append(time.perf_counter() - start)
print(json.dumps(seconds[1:]))
"""


def benchmark(
    queries: int = 4096,
    items: int = 1_000_000,
    size: int = 64,
    sessions: int = 4096,
    catalogue: int = 50_000,
    repeats: int = 5,
    threads: int | None = None,
    device: str = "cpu",
    replay_python: Path | None = None,
) -> None:
    """Print both comparisons.

    Args:
        queries: N of the ranks.
        items: V of the ranks.
        size: D of the ranks.
        sessions: Rows of scores that the metrics get.
        catalogue: Columns of these scores.
        repeats: How often each is timed.
        threads: torch's; all cores if None.
        device: `cpu` or `cuda`.
        replay_python: The interpreter of an environment with RePlay, or None to leave it out.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {device} ({name}), {repeats} repetitions, interleaved\n")
    compare_ranks(queries, items, size, repeats, torch.device(device))
    compare_metrics(sessions, catalogue, repeats, torch.device(device), replay_python)


def compare_ranks(num_queries: int, num_items: int, size: int, repeats: int, device: torch.device) -> None:
    """`target_ranks` beside the same matrix product, in the blocks in which it is fastest."""
    generator = torch.Generator(device).manual_seed(0)
    table = torch.randn(num_items + 1, size, generator=generator, device=device)
    queries = torch.randn(num_queries, size, generator=generator, device=device)
    target = torch.randint(1, num_items + 1, (num_queries,), generator=generator, device=device)
    exclude = torch.randint(1, num_items + 1, (num_queries, 20), generator=generator, device=device)
    blocks = (
        [(1024, 1024), (2048, 512), (4096, 256)] if device.type == "cpu" else [(4096, 4096), (4096, 65536)]
    )
    ways: dict[str, Callable[[], object]] = {
        f"product alone, {rows} x {columns}": lambda rows=rows, columns=columns: multiply(
            queries, table, rows, columns
        )
        for rows, columns in blocks
    }
    ways["target_ranks"] = lambda: target_ranks(queries, table, target)
    ways["target_ranks, 20 items excluded"] = lambda: target_ranks(queries, table, target, exclude=exclude)
    memory = measure_memory(ways["target_ranks"], device)
    seconds = time_interleaved(ways, repeats, device)
    limit = min((name for name in ways if name.startswith("product")), key=lambda name: median(seconds[name]))
    print(f"{num_queries:,} queries x {num_items:,} items x {size} dimensions\n")
    print("| way | seconds | of the fastest product |\n|---|---:|---:|")
    for name in ways:
        print(f"| {name} | {median(seconds[name]):.2f} | {ratio(seconds[name], seconds[limit])} |")
    print(f"\nPeak memory of target_ranks beyond queries and table: {memory:.0f} MiB\n")


def multiply(queries: torch.Tensor, table: torch.Tensor, rows: int, columns: int) -> None:
    """All inner products, into one block of memory."""
    block = queries.new_empty(rows, columns)
    for left in range(0, len(table), columns):
        part = table[left : left + columns].T
        for top in range(0, len(queries), rows):
            query = queries[top : top + rows]
            torch.mm(query, part, out=block.flatten()[: len(query) * part.shape[1]].view(len(query), -1))


def compare_metrics(
    sessions: int, items: int, repeats: int, device: torch.device, replay_python: Path | None
) -> None:
    """HitRate@10 and NDCG@10 from scores, beside other ways to them."""
    generator = torch.Generator(device).manual_seed(0)
    scores = torch.randn(sessions, items, generator=generator, device=device)
    target = torch.randint(items, (sessions,), generator=generator, device=device)
    few = max(1, sessions // 128)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: by_ours(scores, target),
        "topk and compare": lambda: by_top_k(scores, target),
        "argsort": lambda: by_argsort(scores, target),
        # So slow that fewer sessions must do.
        f"torchmetrics.retrieval ({few} sessions)": lambda: by_retrieval(scores[:few], target[:few]),
    }
    expected = by_ours(scores[:few], target[:few])
    assert torch.allclose(expected, by_top_k(scores[:few], target[:few]))
    assert torch.allclose(expected, by_retrieval(scores[:few], target[:few]))
    seconds = time_interleaved(ways, repeats, device)
    rates = {name: [sessions / s for s in times] for name, times in seconds.items()}
    slow = next(name for name in ways if "retrieval" in name)
    rates[slow] = [few / s for s in seconds[slow]]
    if replay_python is not None:
        arguments = [str(value) for value in (sessions, items, repeats, torch.get_num_threads())]
        run = subprocess.run(  # noqa: S603 - our own script
            [str(replay_python), "-c", REPLAY, *arguments], capture_output=True, text=True, check=True
        )
        rates["RePlay's builder on topk"] = [sessions / s for s in json.loads(run.stdout.splitlines()[-1])]
    print(f"HitRate@{TOP_K} and NDCG@{TOP_K} of {sessions:,} sessions x {items:,} scores\n")
    print("| way | sessions a second | ours is so many times as fast |\n|---|---:|---:|")
    for name, values in rates.items():
        print(f"| {name} | {median(values):,.0f} | {ratio(rates['ours'], values)} |")


def by_ours(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    metrics = RankingMetrics(top_k=[TOP_K]).to(scores.device)
    metrics.update(scores, target)
    values = metrics.compute()
    return torch.stack([values[f"hit_rate@{TOP_K}"], values[f"ndcg@{TOP_K}"]])


def by_top_k(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    hits = scores.topk(TOP_K, dim=1).indices == target[:, None]
    gains = 1 / torch.arange(2, TOP_K + 2, device=scores.device).log2()
    return torch.stack([hits.any(dim=1).float().mean(), (hits * gains).sum(dim=1).mean()])


def by_argsort(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    order = scores.argsort(dim=1, descending=True)
    ranks = (order == target[:, None]).float().argmax(dim=1) + 1
    hits = ranks <= TOP_K
    return torch.stack([hits.float().mean(), (hits / (ranks + 1).log2()).mean()])


def by_retrieval(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalNormalizedDCG

    rows = torch.arange(len(scores), device=scores.device)
    indexes = rows[:, None].expand_as(scores)
    relevant = torch.zeros_like(scores, dtype=torch.bool)
    relevant[rows, target] = True
    values = []
    for kind in (RetrievalHitRate, RetrievalNormalizedDCG):
        metric = kind(top_k=TOP_K).to(scores.device)
        metric.update(scores.flatten(), relevant.flatten(), indexes=indexes.flatten())
        values.append(metric.compute())
    return torch.stack(values)


def time_interleaved(
    ways: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each way, one after the other in each round, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_memory(way: Callable[[], object], device: torch.device) -> float:
    """MiB that a call needs at most, beyond what is held before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before, peak, done = resident_memory(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    way()
    done.set()
    watcher.join()
    return peak[0] - before


def resident_memory() -> float:
    """MiB of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def median(values: list[float]) -> float:
    return statistics.median(values)


def ratio(values: list[float], others: list[float]) -> str:
    """The ratio of the medians, and the smallest and largest of the rounds."""
    rounds = [value / other for value, other in zip(values, others, strict=True)]
    return f"{median(values) / median(others):.2f} ({min(rounds):.2f} to {max(rounds):.2f})"


if __name__ == "__main__":
    auto_cli(benchmark)
