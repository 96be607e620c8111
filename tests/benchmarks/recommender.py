"""What one request to a `Recommender` costs beside its plain product, one line for each catalogue.

OMP_NUM_THREADS=1 python tests/benchmarks/recommender.py
python tests/benchmarks/recommender.py --num_items "[100000]" --skip_prediction true --index true

SASRec with D 64 and random weights, a session of 20 items; medians of the CPU time, which another job on the
machine changes less than the time on the clock.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from jsonargparse import auto_cli

from skipcl_lightning import ItemIndex, Recommender
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import ItemVocabulary, SessionEncoder
from skipcl_lightning.heads import SkipPrediction
from skipcl_lightning.model import Scorer, SessionModel


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Return the median CPU time of a call."""
    taken = []
    for _ in range(repeats + 1):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return 1000 * median(taken[1:])


def best(query: torch.Tensor, table: torch.Tensor) -> object:
    """Return the ten best items by a plain product."""
    return (query @ table.T).topk(10)


def measure(
    num_items: tuple[int, ...] = (100_000, 1_000_000),
    repeats: int = 15,
    skip_prediction: bool = False,
    index: bool = False,
) -> None:
    """Print the time of one session and of a batch, and of the product and `topk` alone.

    A batch has 1,024 sessions, or 256 above 100,000 items, whose plain product holds all scores at once.

    Args:
        num_items: The sizes of the catalogue.
        repeats: The number of measurements.
        skip_prediction: Rank with a `SkipPrediction` head at the penalty 0.5.
        index: Search with an `ItemIndex`.
    """
    torch.set_grad_enabled(False)
    for size in num_items:
        model = SessionModel(SASRec(64), num_items=size).eval()
        head = SkipPrediction() if skip_prediction else None
        if head is not None:
            head.materialise(model.item_table)
        encoder = SessionEncoder(ItemVocabulary([f"t{number}" for number in range(size)]), max_length=50)
        scorer = Scorer(model, head, skip_penalty=0.5 if skip_prediction else 0.0)
        scorer.eval().requires_grad_(False)
        recommender, table = Recommender(scorer, encoder), scorer.item_table
        found = ItemIndex.build(scorer, encoder) if index else None
        for sessions in (1, 1024 if size <= 100_000 else 256):
            items = [[f"t{number}" for number in range(row, row + 20)] for row in range(sessions)]
            feedback, query = [[1.0, -1.0] * 10] * sessions, torch.randn(sessions, table.shape[1])
            whole = milliseconds(partial(recommender.recommend, items, feedback, index=found), repeats)
            plain = milliseconds(partial(best, query, table), repeats)
            print(f"{size:,} items, {sessions} sessions: {whole:.1f} ms, product and topk {plain:.1f} ms")


if __name__ == "__main__":
    auto_cli(measure, as_positional=False)
