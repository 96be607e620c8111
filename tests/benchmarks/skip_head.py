"""The skip-contrastive loss against the tiled form of it, and its share of a training step.

python tests/benchmarks/skip_head.py all        # a minute on 2 cores

The tiled form copies each session's tracks once for every position, [B·L, L, D], as general contrastive
losses and the paper's code do; it is the same formula, and gives the same loss. Prints Markdown: medians of
interleaved rounds, with the smallest and the largest ratio, and each one's peak memory in its own process.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from memory import peak_mebibytes

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional import next_listened, skip_info_nce
from skipcl_lightning.heads import SkipInfoNCE

TEMPERATURE = 0.1


def tiled(
    query: torch.Tensor, keys: torch.Tensor, items: torch.Tensor, feedback: torch.Tensor
) -> torch.Tensor:
    """The formula, with a copy of the session for every position."""
    _, length, size = keys.shape
    skipped = (feedback < 0) & (items != 0)
    listened = (feedback >= 0) & (items != 0)
    positive = next_listened(feedback, items != 0)
    again = (items[:, :, None] == items[:, None, :]) & listened[:, None, :]
    negative = skipped & ~again.any(dim=2)
    copies = keys.repeat_interleave(length, dim=0)  # [B * L, L, D]
    flat = query.reshape(-1, 1, size)
    scores = F.cosine_similarity(flat.expand_as(copies), copies, dim=2) / TEMPERATURE
    scores = scores.masked_fill(~negative.repeat_interleave(length, dim=0), -torch.inf)
    target = keys.gather(1, positive.clamp(min=0)[:, :, None].expand(-1, -1, size))
    own = F.cosine_similarity(query, target, dim=2).reshape(-1, 1) / TEMPERATURE
    anchors = (listened & (positive >= 0) & negative.any(dim=1, keepdim=True)).reshape(-1)
    losses = torch.logsumexp(torch.cat([own, scores], dim=1), dim=1) - own.squeeze(1)
    return losses[anchors].mean()


def ours(
    query: torch.Tensor, keys: torch.Tensor, items: torch.Tensor, feedback: torch.Tensor
) -> torch.Tensor:
    """One masked product."""
    return skip_info_nce(query, keys, (items, feedback), negatives="session", temperature=TEMPERATURE)


WAYS: dict[str, Callable[..., torch.Tensor]] = {"tiled": tiled, "ours": ours}


def make(sessions: int, length: int, size: int, items: int = 50_000) -> tuple[torch.Tensor, ...]:
    """Queries, keys, items and feedback; three places in ten are padding, four tracks in ten skipped."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(sessions, length, size, generator=generator).requires_grad_()
    keys = torch.randn(sessions, length, size, generator=generator).requires_grad_()
    lengths = torch.randint(round(0.4 * length), length + 1, (sessions, 1), generator=generator)
    real = torch.arange(length) < lengths
    tracks = torch.randint(1, items + 1, (sessions, length), generator=generator) * real
    feedback = torch.where(torch.rand(sessions, length, generator=generator) < 0.4, -1.0, 1.0) * real
    return query, keys, tracks, feedback


def benchmark(sessions: int = 1024, length: int = 20, size: int = 128, rounds: int = 9) -> None:
    """Print both comparisons.

    Args:
        sessions: B of the first.
        length: L of the first.
        size: D of the first.
        rounds: How often each is timed.
    """
    tensors = make(sessions, length, size)
    losses = {way: run(*tensors).item() for way, run in WAYS.items()}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, B {sessions}, L {length}, D {size}")
    print(f"the losses: {losses}\n\n| way | milliseconds | against ours | peak MiB |\n|---|---:|---:|---:|")
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds + 1):
        for way, run in WAYS.items():
            start = time.perf_counter()
            run(*tensors).backward()
            seconds[way].append(time.perf_counter() - start)
    for way, times in seconds.items():
        ratios = [one / other for one, other in zip(times[1:], seconds["ours"][1:], strict=True)]
        command = [sys.executable, __file__, "memory", way, str(sessions), str(length), str(size)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - this script
        print(
            f"| {way} | {1000 * statistics.median(times[1:]):.1f} | {statistics.median(ratios):.1f} "
            f"({min(ratios):.1f} to {max(ratios):.1f}) | {json.loads(done.stdout.splitlines()[-1]):,.0f} |"
        )
    share_of_a_step(rounds)


def share_of_a_step(rounds: int = 9, items: int = 50_000) -> None:
    """Time of a training step of SASRec, B 256, L 20, D 64, with and without the head.

    Args:
        rounds: How often each is timed, in turns.
        items: V.
    """
    _, _, tracks, feedback = make(256, 20, 1, items)
    batch = SessionBatch(tracks, feedback)
    modules = {
        name: SkipCLModule(SASRec(64, max_length=20), head, num_items=items)
        for name, head in (("without", None), ("with", SkipInfoNCE()))
    }
    optimizers = {
        name: torch.optim.AdamW(module.parameters(), fused=True) for name, module in modules.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(rounds + 1):
        for name, module in modules.items():
            start = time.perf_counter()
            optimizers[name].zero_grad()
            module.losses(module.part_losses(batch))["loss"].backward()
            optimizers[name].step()
            seconds[name].append(time.perf_counter() - start)
    ratios = [one / other for one, other in zip(seconds["with"][1:], seconds["without"][1:], strict=True)]
    print(f"\na step at {items:,} tracks: {1000 * statistics.median(seconds['without'][1:]):.0f} ms")
    print(
        f"with the head: {statistics.median(ratios):.3f} times that ({min(ratios):.3f} to {max(ratios):.3f})"
    )


def memory(way: str, sessions: int, length: int, size: int) -> None:
    """The peak memory of one way in this process, beyond that of its tensors."""
    tensors = make(sessions, length, size)
    before = peak_mebibytes()
    WAYS[way](*tensors).backward()
    print(peak_mebibytes() - before)


if __name__ == "__main__":
    auto_cli({"all": benchmark, "memory": memory, "share_of_a_step": share_of_a_step})
