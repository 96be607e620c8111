"""From log files to batches, and batches from a store, against the usual ways, interleaved in one run.

pip install ".[benchmark]" && python tests/benchmarks/preparation.py all    # half an hour on 2 cores
python tests/benchmarks/preparation.py log_to_batches --rows "[1000000]"    # two minutes
python tests/benchmarks/preparation.py gathering
python tests/benchmarks/preparation.py bounded_memory                       # 20 million rows within 4 GiB

Prints Markdown: medians of the rounds, with the smallest and the largest ratio. Nothing here is a test: what
a machine can do is no property of the code.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer
from memory import peak_mebibytes
from mssd_logs import write_mssd_logs
from torch.utils.data import DataLoader, Dataset, TensorDataset

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import (
    SessionDataModule,
    prepare_store,
    read_mssd,
    simulate_sessions,
)
from skipcl_lightning.heads import SampledSoftmax, SkipInfoNCE

# Of version 1 and 2: the folder, the file with the limit, the file with the processes.
CONTROL_GROUPS = (
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "tasks"),
    ("/sys/fs/cgroup", "memory.max", "cgroup.procs"),
)
ROWS_A_SESSION = 16.4
MAX_LENGTH = 20
BATCH_SIZE = 256


def with_pandas(folder: Path) -> int:
    """The paper's way: pandas, a list a session, a loop that pads, a `TensorDataset`; gives the rows read."""
    import pandas

    columns = ["session_id", "session_position", "track_id_clean", "skip_2"]
    files = sorted(folder.glob("*.csv.gz"))
    frame = pandas.concat([pandas.read_csv(file, usecols=columns) for file in files], ignore_index=True)
    frame = frame.sort_values(["session_id", "session_position"])
    numbers = {track: number for number, track in enumerate(sorted(set(frame["track_id_clean"])), start=1)}
    frame["item"] = frame["track_id_clean"].map(numbers)
    sessions = frame.groupby("session_id").agg({"item": list, "skip_2": list})
    items, skips = [], []
    for tracks, flags in zip(sessions["item"], sessions["skip_2"], strict=True):
        if len(tracks) < 3:
            continue
        # Without the last two, which are held out.
        seen, skipped = tracks[:-2][-MAX_LENGTH:], flags[:-2][-MAX_LENGTH:]
        padding = [0] * (MAX_LENGTH - len(seen))
        items.append(seen + padding)
        skips.append(skipped + padding)
    dataset = TensorDataset(torch.tensor(items), torch.tensor(skips, dtype=torch.bool))
    for _ in DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True):
        pass
    return len(frame)


def in_memory(folder: Path) -> int:
    """Ours, prepared in memory; gives the rows read."""
    data = SessionDataModule(read_mssd(folder), batch_size=BATCH_SIZE, max_length=MAX_LENGTH)
    for _ in data.train_dataloader():
        pass
    return data.drop_report.rows_read


def on_disk(folder: Path) -> int:
    """Ours, by way of a store; gives the rows read."""
    with tempfile.TemporaryDirectory() as place:
        prepare_store(read_mssd(folder), Path(place) / "store")
        data = SessionDataModule(Path(place) / "store", batch_size=BATCH_SIZE, max_length=MAX_LENGTH)
        for _ in data.train_dataloader():
            pass
        return data.drop_report.rows_read


def reading_alone(folder: Path) -> int:
    """The limit: polars reads and parses the same columns, and that is all; gives the rows read."""
    return read_mssd(folder).collect().height


WAYS: dict[str, Callable[[Path], int]] = {
    "pandas": with_pandas,
    "memory": in_memory,
    "store": on_disk,
    "reading": reading_alone,
}


def worker(way: str, folder: Path) -> None:
    """One way, in this process; prints its seconds and its peak memory."""
    start = time.perf_counter()
    rows = WAYS[way](folder)
    seconds = time.perf_counter() - start
    peak = peak_mebibytes()
    print(json.dumps({"seconds": seconds, "mebibytes": peak, "rows": rows}))


def log_to_batches(
    rows: Sequence[int] = (1_000_000, 10_000_000), rounds: int = 3, items: int = 50_000
) -> None:
    """Time from gzip CSV files to one epoch of batches.

    Args:
        rows: About how many rows the simulated logs have.
        rounds: How often each way runs, in turns, each time in a process of its own.
        items: Tracks in the catalogue.
    """
    print("| rows | way | seconds | against pandas | peak MiB |\n|---:|---|---:|---:|---:|")
    for size in rows:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "logs"
            write_mssd_logs(folder, num_sessions=round(size / ROWS_A_SESSION), num_items=items)
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way, found in runs.items():
                    found.append(_run_worker(way, folder))
            _print_ways(runs)


def _run_worker(way: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "worker", way, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - this script
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _print_ways(runs: dict[str, list[dict[str, float]]]) -> None:
    for way, measured in runs.items():
        ratios = [
            slow["seconds"] / fast["seconds"] for slow, fast in zip(runs["pandas"], measured, strict=True)
        ]
        print(
            f"| {measured[0]['rows']:,.0f} | {way} "
            f"| {statistics.median(run['seconds'] for run in measured):.1f} | {_spread(ratios)} "
            f"| {max(run['mebibytes'] for run in measured):,.0f} |",
            flush=True,
        )


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


class OneByOne(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The usual dataset: a session a call, padded by a collate function."""

    def __init__(self, items: list[list[int]], feedback: list[list[float]]) -> None:
        self.items, self.feedback = items, feedback

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        tracks, signals = self.items[index][-MAX_LENGTH:], self.feedback[index][-MAX_LENGTH:]
        return torch.tensor(tracks), torch.tensor(signals)


def collate(sessions: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad the sessions of a batch."""
    items, feedback = zip(*sessions, strict=True)
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(list(items), batch_first=True), pad(list(feedback), batch_first=True)


def gathering(sessions: int = 100_000, rounds: int = 5) -> None:
    """Time of an epoch of batches from a store, against one session a call.

    Args:
        sessions: How many.
        rounds: How often each is timed, in turns.
    """
    with tempfile.TemporaryDirectory() as place:
        data = prepare_store(simulate_sessions(sessions, num_items=50_000), Path(place) / "store")
        view, store = data.views["train"], data.store
        ends = store.offsets[view.rows] + view.ends
        spans = list(zip(store.offsets[view.rows].tolist(), ends.tolist(), strict=True))
        dataset = OneByOne(
            [store.items[start:end].tolist() for start, end in spans],
            [store.feedback[start:end].tolist() for start, end in spans],
        )
        ways: dict[str, DataLoader[object]] = {
            "one session a call": DataLoader(dataset, BATCH_SIZE, shuffle=True, collate_fn=collate),
            "whole batches": SessionDataModule(
                Path(place) / "store", batch_size=BATCH_SIZE, max_length=MAX_LENGTH - 1
            ).train_dataloader(),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds + 1):
            for way, loader in ways.items():
                start = time.perf_counter()
                for _batch in loader:
                    pass
                seconds[way].append(time.perf_counter() - start)
    slow, fast = (times[1:] for times in seconds.values())
    print(f"\n{sessions:,} sessions, B {BATCH_SIZE}, L {MAX_LENGTH}, no workers")
    print(f"one session a call: {len(view) / statistics.median(slow):,.0f} sessions a second")
    print(f"whole batches: {len(view) / statistics.median(fast):,.0f} sessions a second")
    print(f"ratio: {_spread([one / other for one, other in zip(slow, fast, strict=True)])}")


def bounded_memory(
    rows: int = 20_000_000,
    items: int = 50_000,
    limit_gib: float = 4.0,
    training_limit_gib: float = 1.5,
    steps: int = 300,
    rows_in_memory: int = 2_000_000,
) -> None:
    """Prepare a log, and train from its store, in processes that may have so much memory and no more.

    Args:
        rows: About how many the simulated log has.
        items: Tracks in the catalogue.
        limit_gib: What the preparation may have, in GiB.
        training_limit_gib: What training may have.
        steps: Steps of training, with 256 sessions each.
        rows_in_memory: As for `prepare_store`.
    """
    with tempfile.TemporaryDirectory() as place:
        logs, store = Path(place) / "logs", Path(place) / "store"
        write_mssd_logs(logs, num_sessions=round(rows / ROWS_A_SESSION), num_items=items)
        size = sum(file.stat().st_size for file in logs.iterdir())
        print(f"\n{rows:,} rows in {size / 2**20:,.0f} MiB of gzip CSV")
        for task, limit, arguments in (
            ("prepare", limit_gib, [str(logs), str(store), str(rows_in_memory)]),
            ("train", training_limit_gib, [str(store), str(steps)]),
        ):
            command = [sys.executable, __file__, "limited", str(limit), task, json.dumps(arguments)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
            for folder, *_ in CONTROL_GROUPS:
                with suppress(OSError):
                    (Path(folder) / f"skipcl-{os.getpid()}").rmdir()
            print(f"{task} within {limit} GiB: " + (done.stdout.splitlines() or ["nothing"])[-1])
            if done.returncode:
                print(done.stderr[-2000:])
                return
        print(f"the store: {sum(file.stat().st_size for file in store.iterdir()) / 2**20:,.0f} MiB")


def limited(limit_gib: float, task: str, arguments: list[str]) -> None:
    """A task of `bounded_memory`, in this process."""
    how = _limit_memory(round(limit_gib * 2**30), f"skipcl-{os.getppid()}")
    start = time.perf_counter()
    if task == "prepare":
        logs, store, rows = arguments
        report = prepare_store(read_mssd(logs), store, rows_in_memory=int(rows)).drop_report
        print(report)
    else:
        store, steps = arguments
        data = SessionDataModule(store, batch_size=BATCH_SIZE, max_length=MAX_LENGTH)
        # The logits of a full softmax, a gigabyte at 50,000 tracks, would be most of what is measured.
        module = SkipCLModule(
            SASRec(64, max_length=MAX_LENGTH),
            SkipInfoNCE(),
            next_item_loss=SampledSoftmax(1000),
            num_items=data.num_items,
        )
        Trainer(
            accelerator="cpu",
            max_steps=int(steps),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        ).fit(module, data)
    peak = peak_mebibytes()
    print(f"{time.perf_counter() - start:.0f} s, peak {peak:,.0f} MiB resident, limited by {how}")


def _limit_memory(limit: int, name: str) -> str:
    """Limit this process: by a control group where one may be made, else by its address space."""
    for folder, setting, tasks in CONTROL_GROUPS:
        group = Path(folder) / name
        with suppress(OSError):
            group.mkdir()
            (group / setting).write_text(str(limit))
            (group / tasks).write_text(str(os.getpid()))
            return f"the control group's {setting}"
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return "the address space"


def everything() -> None:
    """All of them."""
    log_to_batches()
    gathering()
    bounded_memory()


if __name__ == "__main__":
    auto_cli(
        {
            "all": everything,
            "log_to_batches": log_to_batches,
            "gathering": gathering,
            "bounded_memory": bounded_memory,
            "worker": worker,
            "limited": limited,
        }
    )
