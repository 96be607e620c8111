"""What all workers share: their arguments, the data file, the clock, and the line that each of them prints.

Runs in the environment of every peer, so that it knows only numpy and torch. Each worker is a process:

ENVIRONMENT/bin/python tests/benchmarks/peers/WORKER.py --data FILE --task train_full --seconds 10
"""

import argparse
import json
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

# The same model everywhere: SASRec with pointwise networks of the same width as the embeddings.
SIZE, LAYERS, HEADS, MAX_LENGTH, DROPOUT = 64, 2, 2, 20, 0.2
LEARNING_RATE = 1e-3
NEGATIVES = 1000
TOP_K = 10
TASKS = ("train_full", "train_sampled", "train_skip", "evaluate")
HELD_OUT = 2  # leave-one-out: the last track is for the test, the one before for validation


@dataclass(frozen=True)
class Task:
    """What a worker is asked for."""

    data: Path
    task: str
    batch: int
    seconds: float
    steps: int
    warm_up: int
    test_sessions: int
    threads: int
    memory_gib: float
    device: str
    precision: str
    clock: str

    @property
    def now(self) -> Callable[[], float]:
        """The clock: the processor time of this process, of all its threads, is deaf to other programs."""
        return time.process_time if self.clock == "cpu" else time.perf_counter

    @property
    def trainer_settings(self) -> dict[str, Any]:
        """What every Trainer of Lightning's gets."""
        return {
            "accelerator": self.device,
            "devices": 1,
            "precision": self.precision,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }


@dataclass(frozen=True, eq=False)
class Sessions:
    """The data file: [plays] items in 1..V and skips, session after session, and [sessions] lengths."""

    items: np.ndarray
    skipped: np.ndarray
    lengths: np.ndarray
    num_items: int

    @classmethod
    def load(cls, path: Path) -> "Sessions":
        """Read what `compare.py` wrote."""
        with np.load(path) as arrays:
            return cls(arrays["items"], arrays["skipped"], arrays["lengths"], int(arrays["num_items"]))

    @cached_property
    def sequences(self) -> list[np.ndarray]:
        """The items of each session."""
        return np.split(self.items, np.cumsum(self.lengths)[:-1])

    @property
    def rows(self) -> np.ndarray:
        """[plays]: the session of each play."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def positions(self) -> np.ndarray:
        """[plays]: where in its session each play stands."""
        starts = np.cumsum(self.lengths) - self.lengths
        return np.arange(len(self.items)) - np.repeat(starts, self.lengths)

    @property
    def left(self) -> np.ndarray:
        """[plays]: how many tracks of the session come after each."""
        return np.repeat(self.lengths, self.lengths) - 1 - self.positions

    @property
    def targets_a_session(self) -> float:
        """How many positions of a session are trained on, on average."""
        return float((self.lengths - HELD_OUT - 1).mean())


class StepClock:
    """Times the steps after the first few, and says when it has seen enough.

    The first step never counts; the warm-up then ends early where it has taken as long as is to be measured.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.losses: list[float] = []
        self.sessions = 0.0
        self.steps = 0
        self.before = 0
        self.warming = True
        self.restart()

    def restart(self) -> None:
        """Begin to count now, where data were prepared meanwhile."""
        self.born = self.start = self.end = self.task.now()

    def step(self, sessions: float, loss: float) -> bool:
        """Note a step that has just ended; True if it was the last one."""
        now = self.task.now()
        self.losses.append(loss)
        if self.before == 0 or (self.warming and self.before < self.task.warm_up):
            self.before += 1
            self.start = now
            self.warming = now - self.born < self.task.seconds
            return False
        self.warming = False
        self.sessions += sessions
        self.steps += 1
        self.end = now
        return self.steps >= self.task.steps or now - self.start >= self.task.seconds

    def __deepcopy__(self, memo: dict[int, Any]) -> "StepClock":
        """Itself: a library that trains with a copy of what it was given shall still stop this clock."""
        return self

    def result(self) -> dict[str, Any]:
        """What goes into the worker's line."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return {
            "sessions_per_second": self.sessions / (self.end - self.start),
            "steps": self.steps,
            "first_loss": self.losses[0],
            "last_loss": statistics.fmean(last),
        }


def repeat(task: Task, once: Callable[[], tuple[int, dict[str, float]]]) -> dict[str, Any]:
    """Evaluate again and again; the first time counts only where there is no other.

    Args:
        task: How long.
        once: Evaluates, and returns the sessions and the metrics.

    Returns:
        What goes into the worker's line.
    """
    rates, born, metrics = [], task.now(), {}
    while not rates or task.now() - born < task.seconds:
        start = task.now()
        sessions, metrics = once()
        rates.append(sessions / (task.now() - start))
    return {"sessions_per_second": statistics.median(rates[1:] or rates), "steps": len(rates), **metrics}


def peak_mebibytes(device: str) -> float:
    """The most memory of the device that this program has had; `ru_maxrss` would start with its parent's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024  # type: ignore[index]


def forget_peak() -> None:
    """Begin to measure the peak anew: how the data were prepared is no part of a step."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def read_task() -> Task:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="what compare.py wrote")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--batch", type=int, default=256, help="sessions in a batch")
    parser.add_argument("--seconds", type=float, default=10.0, help="to measure, after the warm-up")
    parser.add_argument("--steps", type=int, default=1_000_000, help="optimizer steps to measure at most")
    parser.add_argument("--warm_up", type=int, default=3, help="steps that do not count")
    parser.add_argument("--test_sessions", type=int, default=2048, help="sessions to evaluate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory_gib", type=float, default=16.0, help="what this process may have")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", default="32-true", help="of Lightning's Trainer, in training")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    return Task(**vars(parser.parse_args()))


def work(packages: tuple[str, ...], run: Callable[[Task, Sessions], dict[str, Any]]) -> None:
    """Run a worker, and print its line of JSON.

    Args:
        packages: Whose versions are told.
        run: Does the task, and returns what it measured.
    """
    task = read_task()
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    versions = {name: version(name) for name in ("torch", *packages)}
    if task.device == "cpu":
        limit = int(task.memory_gib * 2**30)
        # What a process asks for beyond fails at once, instead of having the kernel end some process.
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    line: dict[str, Any] = {
        "versions": versions,
        "threads": torch.get_num_threads(),
        "batch": task.batch,
    }
    try:
        with redirect_stdout(sys.stderr):
            line |= run(task, Sessions.load(task.data))
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        line["failed"] = "out of memory"
    line["peak_mib"] = peak_mebibytes(task.device)
    print(json.dumps(line))


def _lacks_memory(error: BaseException) -> bool:
    words = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "cannot allocate memory",
        "bad_alloc",
    )
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)
