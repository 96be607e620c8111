"""Evaluation at a skip penalty against none, and a training step with skip prediction against one without.

python tests/benchmarks/skip_penalty.py                  # a minute on 2 cores

Prints one line for each: the median of interleaved rounds and its ratio, with the quartiles of the ratio, and
the ratio of the fastest rounds, which a busy machine disturbs least.
"""

import statistics
import time
from collections.abc import Callable

import torch
from jsonargparse import auto_cli
from skip_head import make

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional import rank_batch
from skipcl_lightning.heads import SkipPrediction

PENALTY = 0.25


def benchmark(
    items: int = 20_000, sessions: int = 256, size: int = 64, vector_size: int = 16, rounds: int = 40
) -> None:
    """Print the comparisons.

    Args:
        items: V.
        sessions: B.
        size: D.
        vector_size: M.
        rounds: How often each is timed, in turns.
    """
    threads = torch.get_num_threads()
    print(
        f"torch {torch.__version__}, {threads} threads, V {items:,}, B {sessions}, D {size}, M {vector_size}"
    )
    _, _, tracks, feedback = make(sessions, 20, 1, items)
    target = torch.randint(1, items + 1, (sessions,), generator=torch.Generator().manual_seed(1))
    batch = SessionBatch(tracks, feedback, target=target, target_feedback=torch.ones(sessions))
    head = SkipPrediction(vector_size=vector_size)
    module = SkipCLModule(SASRec(size, max_length=20), head, num_items=items)
    measure_evaluation(module.eval(), batch, size, vector_size, rounds)
    measure_training(SessionBatch(tracks, feedback), items, size, vector_size, rounds)


@torch.no_grad()
def measure_evaluation(
    module: SkipCLModule, batch: SessionBatch, size: int, vector_size: int, rounds: int
) -> None:
    """Time the ranks of a batch with a table that is read once, and with one that each batch reads again."""
    tables = {}
    for penalty in (0.0, PENALTY):
        with module.at_skip_penalty(penalty):
            tables[penalty] = module.item_table

    def rank(penalty: float, *, again: bool) -> None:
        with module.at_skip_penalty(penalty):
            table = module.item_table if again else tables[penalty]
            rank_batch(module.session_query(batch), table, batch)

    ways: dict[str, Callable[[], None]] = {
        "no penalty": lambda: rank(0.0, again=True),
        "a penalty, table read once (`evaluate`)": lambda: rank(PENALTY, again=False),
        "a penalty, table read in each batch (`Trainer`)": lambda: rank(PENALTY, again=True),
    }
    print(f"\nevaluation of a batch; limit (D + M + 1) / D: {(size + vector_size + 1) / size:.2f}")
    compare(ways, "no penalty", rounds)


def measure_training(batch: SessionBatch, items: int, size: int, vector_size: int, rounds: int) -> None:
    """Time a step with and without the head."""
    ways: dict[str, Callable[[], None]] = {}
    for name, head in (("no head", None), ("the head", SkipPrediction(vector_size=vector_size))):
        module = SkipCLModule(SASRec(size, max_length=20), head, num_items=items)
        optimizer = torch.optim.AdamW(module.parameters(), fused=True)

        def step(module: SkipCLModule = module, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            module.losses(module.part_losses(batch))["loss"].backward()
            optimizer.step()

        ways[name] = step
    print("\na training step; limit 1.10")
    compare(ways, "no head", rounds)


def compare(ways: dict[str, Callable[[], None]], base: str, rounds: int) -> None:
    """Print the milliseconds of each way, and its ratios to a base, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        ratios = [one / other for one, other in zip(times, seconds[base], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"- {name}: {1000 * statistics.median(times):.1f} ms, {middle:.2f} ({low:.2f} to {high:.2f}), "
            f"fastest {min(times) / min(seconds[base]):.2f}"
        )


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
