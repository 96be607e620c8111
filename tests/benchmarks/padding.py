"""How much of a training batch is padding, and what sorting sessions of some batches by length wins.

python tests/benchmarks/padding.py all                        # sessions of 10 to 20 tracks, as in MSSD
python tests/benchmarks/padding.py all --skewed true          # mostly short ones with a long tail

Prints Markdown: the share of places that are padding, and how many times as fast an epoch of training is as
without the order (`bucket_batches=0`), the smallest and largest ratio of interleaved rounds beside it.
"""

import statistics
import time
from collections.abc import Sequence

import polars as pl
import torch
from jsonargparse import auto_cli
from lightning.pytorch import seed_everything

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule, SplitBySession, simulate_sessions
from skipcl_lightning.heads import SampledSoftmax, SkipInfoNCE


def make_log(sessions: int, skewed: bool) -> pl.DataFrame:
    """Simulated sessions; skewed ones are cut at lengths whose logarithms are normal."""
    log = simulate_sessions(sessions, num_items=5_000)
    log = log.collect() if isinstance(log, pl.LazyFrame) else log
    if not skewed:
        return log
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.randn(sessions, generator=generator) * 0.6 + 1.6).exp().clamp(3, 20).round()
    keys = log.select(pl.col("session_id").unique(maintain_order=True))
    kept = keys.with_columns(pl.Series("kept", lengths[: len(keys)].numpy()))
    return (
        log.join(kept, on="session_id", maintain_order="left")
        .filter(pl.int_range(pl.len()).over("session_id") < pl.col("kept"))
        .drop("kept")
    )


def epoch(data: SessionDataModule, number: int) -> tuple[float, float]:
    """Seconds of training for an epoch, and the share of places that are padding."""
    seed_everything(0, verbose=False)
    module = SkipCLModule(
        SASRec(64, max_length=20), SkipInfoNCE(), num_items=data.num_items, next_item_loss=SampledSoftmax(500)
    )
    optimizer = module.configure_optimizers()["optimizer"]
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    places = padding = 0
    start = time.perf_counter()
    for batch in loader:
        optimizer.zero_grad()
        module.losses(module.part_losses(batch))["loss"].backward()
        optimizer.step()
        places += batch.items.numel()
        padding += int((batch.items == 0).sum())
    return time.perf_counter() - start, padding / places


def benchmark(
    sessions: int = 10_000, skewed: bool = False, buckets: Sequence[int] = (0, 10, 50), rounds: int = 5
) -> None:
    """Print the table.

    Args:
        sessions: How many.
        skewed: Whether most are short.
        buckets: Settings of `bucket_batches`, the first to compare with.
        rounds: How often each is timed, in turns.
    """
    log = make_log(sessions, skewed)
    modules = {
        count: SessionDataModule(
            log, batch_size=256, max_length=20, split=SplitBySession(), bucket_batches=count, seed=0
        )
        for count in buckets
    }
    found: dict[int, list[tuple[float, float]]] = {count: [] for count in buckets}
    for number in range(rounds + 1):
        for count, data in modules.items():
            found[count].append(epoch(data, number))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| bucket_batches | padding | seconds an epoch | as fast |\n|---:|---:|---:|---:|")
    for count in buckets:
        seconds = [one for one, _ in found[count][1:]]
        ratios = [other / one for one, (other, _) in zip(seconds, found[buckets[0]][1:], strict=True)]
        share = statistics.mean(padding for _, padding in found[count][1:])
        print(
            f"| {count} | {share:.1%} | {statistics.median(seconds):.2f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


if __name__ == "__main__":
    auto_cli({"all": benchmark})
