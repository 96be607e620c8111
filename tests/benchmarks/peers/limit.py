"""The matrix products of a task and nothing else, in the blocks in which they are fastest: the limit.

Training on the full softmax takes three for each batch, scores [N, D] x [D, V] and those to both gradients,
where N are the targets of a batch; evaluation takes the scores of each session alone. The step of the
optimizer, which is memory and no product, is left out.
"""

from collections.abc import Callable
from typing import Any

import torch
from common import SIZE, Sessions, Task, forget_peak, work

COLUMNS = (1024, 4096, 16384)
ROWS = (1024, 2048, 4096)
# Held at once: what a CPU's caches take, or what keeps a GPU busy.
MOST_SCORES = {"cpu": 2**24, "cuda": 2**29}


def products(query: torch.Tensor, table: torch.Tensor, columns: int) -> None:
    """Scores, and the products to both gradients, a block of items at a time."""
    to_query, to_table = torch.zeros_like(query), torch.empty_like(table)
    for left in range(0, len(table), columns):
        part = table[left : left + columns]
        scores = query @ part.T
        to_query.addmm_(scores, part)
        torch.mm(scores.T, query, out=to_table[left : left + columns])


def scores(query: torch.Tensor, table: torch.Tensor, rows: int, columns: int) -> None:
    """All scores, into one block of memory."""
    block = query.new_empty(rows * columns)
    for left in range(0, len(table), columns):
        part = table[left : left + columns].T
        for top in range(0, len(query), rows):
            some = query[top : top + rows]
            torch.mm(some, part, out=block[: len(some) * part.shape[1]].view(len(some), -1))


def fastest(ways: list[Callable[[], None]], task: Task) -> float:
    """Seconds that the fastest way takes; each is tried at least twice, and the first time is for warming."""
    best = float("inf")
    for way in ways:
        born, times = task.now(), 0
        while times < 2 or task.now() - born < task.seconds / len(ways):
            start = task.now()
            way()
            if task.device == "cuda":
                torch.cuda.synchronize()
            if times:
                best = min(best, task.now() - start)
            times += 1
    return best


@torch.no_grad()
def run(task: Task, sessions: Sessions) -> dict[str, Any]:
    """Time the products."""
    dtype = torch.bfloat16 if task.precision == "bf16-mixed" else torch.float32
    table = torch.randn(sessions.num_items + 1, SIZE, device=task.device, dtype=dtype)
    forget_peak()
    if task.task == "evaluate":
        count = min(task.test_sessions, len(sessions.lengths))
        query = torch.randn(count, SIZE, device=task.device, dtype=dtype)
        ways = [
            lambda rows=rows, columns=columns: scores(query, table, rows, columns)
            for rows in ROWS
            for columns in (2**21 // rows, 2**20 // rows)
        ]
    else:
        count = task.batch
        query = torch.randn(round(count * sessions.targets_a_session), SIZE, device=task.device, dtype=dtype)
        ways = [
            lambda columns=columns: products(query, table, columns)
            for columns in COLUMNS
            if columns * len(query) <= MOST_SCORES[task.device] or columns == min(COLUMNS)
        ]
    return {
        "num_items": sessions.num_items,
        "sessions_per_second": count / fastest(ways, task),
    }


if __name__ == "__main__":
    work((), run)
