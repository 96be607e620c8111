"""Throughput of training and evaluation beside RecBole, RePlay and RecTools, data loading included.

bash tests/benchmarks/peers/set_up.sh                                        # their environments, once
python tests/benchmarks/peers/compare.py                                     # about half an hour on 2 cores
python tests/benchmarks/peers/compare.py --items "[1000000]" --rounds 1 --time_limit 900

Every measurement is a process of its own, one at a time, in rounds that go from library to library. Writes
Markdown after each round: the median of sessions a second, how many times as fast ours is (median, smallest
and largest of the rounds' pairs), and the peak memory of the process from the first step on. What differs
between the libraries is said in each worker. What is evaluated has not been trained: the time is the same.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common import TASKS
from data import write_sessions
from jsonargparse import auto_cli
from table import Cell, Cells, write_table

FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parents[2]
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Library:
    """A worker, the environment that it runs in (None is that of this script), and what it can do."""

    worker: str
    environment: str | None
    tasks: tuple[str, ...]


LIBRARIES = {
    "ours": Library("ours.py", None, TASKS),
    "RecBole": Library("recbole_worker.py", "recbole", ("train_full", "evaluate")),
    "RePlay": Library("replay_worker.py", "replay", ("train_full", "train_sampled", "evaluate")),
    "RecTools": Library("rectools_worker.py", "rectools", ("train_full", "train_sampled", "evaluate")),
    "naive": Library("naive.py", None, ("train_full", "train_skip")),
    "products alone": Library("limit.py", None, ("train_full", "evaluate")),
}


def compare(
    items: Sequence[int] = (10_000, 50_000),
    rounds: int = 3,
    seconds: float = 6.0,
    tasks: Sequence[str] = TASKS,
    libraries: Sequence[str] = tuple(LIBRARIES),
    sessions: int = 20_000,
    test_sessions: int = 2048,
    batch: int = 256,
    smaller_batch: int | None = 32,
    steps: int = 1_000_000,
    threads: int = 2,
    time_limit: float = 300.0,
    memory_gib: float = 16.0,
    device: Literal["cpu", "cuda"] = "cpu",
    precision: str = "32-true",
    clock: Literal["wall", "cpu"] = "wall",
    environments: Path = REPOSITORY / ".benchmark_environments",
    output: Path = Path("peers.md"),
) -> None:
    """Measure, and write the table.

    Args:
        items: V, one after the other.
        rounds: How often each is measured.
        seconds: How long each is measured, after its start and warm-up.
        tasks: Of train_full, train_sampled, train_skip and evaluate.
        libraries: Which columns; ours is needed for the ratios.
        sessions: At least so many; each item is in some, which a large V needs more for.
        test_sessions: Sessions that are evaluated.
        batch: Sessions in a batch.
        smaller_batch: Sessions in a batch for what lacks memory at that; None to leave it at that.
        steps: Optimizer steps that are measured at most.
        threads: Of every library.
        time_limit: Seconds that a process may take in all; nothing that takes longer is tried again.
        memory_gib: What a process may ask for; on a CPU only.
        device: Where; RecBole's worker is for a CPU alone.
        precision: Of Lightning's Trainer, in training; RecBole has its own.
        clock: What a second is: `cpu` is the processor time of the worker, for a machine that others use
            too; at one thread the two are the same otherwise. Not for a GPU.
        environments: Where `set_up.sh` has put the environments of the peers.
        output: The table.
    """
    present, notes = find_libraries(libraries, environments)
    notes.insert(
        0,
        f"Batch {batch}, {device}, {precision}, {threads} threads, {rounds} rounds of {seconds:g} s "
        f"({clock} time) each; a "
        f"process may take {time_limit:g} s"
        + (f" and ask for {memory_gib:g} GiB" if device == "cpu" else "")
        + ". Sessions a second; ours over that; peak memory.",
    )
    arguments = {
        "seconds": seconds,
        "steps": steps,
        "test_sessions": test_sessions,
        "threads": threads,
        "memory_gib": memory_gib,
        "device": device,
        "precision": precision,
        "clock": clock,
    }
    cells: Cells = {}
    with tempfile.TemporaryDirectory() as name:
        for count in items:
            data = Path(name) / f"{count}.npz"
            made = write_sessions(data, count, sessions)
            print(f"V {count:,}: {made:,} sessions", file=sys.stderr, flush=True)
            for number in range(rounds):
                for task in tasks:
                    for library, python in present.items():
                        if task not in LIBRARIES[library].tasks:
                            continue
                        cell = cells.setdefault((task, count, library), Cell(batch=batch))
                        command = [
                            str(python),
                            str(FOLDER / LIBRARIES[library].worker),
                            *(f"--{key}={value}" for key, value in arguments.items()),
                            f"--data={data}",
                            f"--task={task}",
                        ]
                        measure(cell, command, smaller_batch, time_limit, threads)
                        said = cell.failed or {k: v for k, v in cell.line.items() if k != "versions"}
                        print(f"{number + 1} {task} {library}: {said}", file=sys.stderr, flush=True)
                write_table(output, cells, list(present), notes, batch)


def find_libraries(names: Sequence[str], environments: Path) -> tuple[dict[str, Path], list[str]]:
    """The interpreter of each library that is there, and a note on each that is not."""
    present: dict[str, Path] = {}
    notes = []
    for name in names:
        if name not in LIBRARIES:
            raise ValueError(f"`libraries` must be of {list(LIBRARIES)}, got {name!r}.")
        environment = LIBRARIES[name].environment
        python = (
            Path(sys.executable) if environment is None else environments / environment / "bin" / "python"
        )
        if python.exists():
            present[name] = python.absolute()
        else:
            notes.append(f"{name} is left out: it has no environment; `set_up.sh` makes one.")
    return present, notes


def measure(
    cell: Cell, command: list[str], smaller_batch: int | None, time_limit: float, threads: int
) -> None:
    """One round of one cell; one that failed before is not tried again."""
    if cell.failed:
        cell.rates.append(None)
        return
    line = run_worker([*command, f"--batch={cell.batch}"], time_limit, threads) | {"batch": cell.batch}
    if line.get("failed") == OUT_OF_MEMORY and smaller_batch is not None and smaller_batch < cell.batch:
        line = run_worker([*command, f"--batch={smaller_batch}"], time_limit, threads)
        line |= {"batch": smaller_batch}
    cell.add(line)


def run_worker(command: list[str], time_limit: float, threads: int) -> dict[str, Any]:
    """The line that a worker prints, or why there is none."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if command[0] == str(Path(sys.executable).absolute()):
        environment["PYTHONPATH"] = str(REPOSITORY)
    start = time.perf_counter()
    # Some of the peers write logs where they are started.
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(  # noqa: S603 - our own scripts
                command, capture_output=True, text=True, timeout=time_limit, cwd=folder, env=environment
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"no result within {time_limit:g} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1]) | {"wall": time.perf_counter() - start}
    print(done.stderr[-2000:], file=sys.stderr)
    message = done.stderr.strip().splitlines()
    if done.returncode == -9 or message[-1:] == [
        "MemoryError"
    ]:  # ended by the kernel, or before the task began
        return {"failed": OUT_OF_MEMORY}
    return {"failed": message[-1][:100].replace("|", "/") if message else f"exit {done.returncode}"}


if __name__ == "__main__":
    auto_cli(compare)
