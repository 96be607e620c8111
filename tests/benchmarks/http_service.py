"""Requests per second and latencies of `examples/serve_http.py` over the loopback address.

python tests/benchmarks/http_service.py                    # a minute on 2 cores

The service runs in a process of its own, the clients in this one: on a machine of two cores each has one. On
a busy machine compare the processor time, which is read from Linux's /proc.
"""

import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import sys
import time
from pathlib import Path

import torch
import uvicorn
from jsonargparse import auto_cli

from skipcl_lightning import ItemIndex, Recommender
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import ItemVocabulary, SessionEncoder
from skipcl_lightning.heads import SkipPrediction
from skipcl_lightning.model import Scorer, SessionModel

sys.path.append(str(Path(__file__).parents[2] / "examples"))


def serve(port: int, items: int, size: int, batch_wait: float, index: bool) -> None:
    """Serve an untrained model."""
    from serve_http import Limits, make_app

    torch.set_num_threads(1)
    model, head = SessionModel(SASRec(size, max_length=50), num_items=items), SkipPrediction()
    head.materialise(model.item_table)
    encoder = SessionEncoder(ItemVocabulary([f"track {n}" for n in range(items)]), max_length=50)
    recommender = Recommender(Scorer(model, head).requires_grad_(False), encoder)
    search = ItemIndex.build(recommender.scorer, encoder) if index else None
    app = make_app(recommender, limits=Limits(batch_wait=batch_wait), index=search)
    uvicorn.run(app, port=port, log_level="error", access_log=False)


async def client(port: int, bodies: list[bytes], seconds: list[float]) -> None:
    """Send requests one after the other over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for body in bodies:
        start = time.perf_counter()
        head = f"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(answer.split(b"content-length: ")[1].split(b"\r\n")[0]))
        seconds.append(time.perf_counter() - start)
        if b" 200 " not in answer.split(b"\r\n")[0]:
            raise RuntimeError(answer.decode())
    writer.close()


def processor_seconds(pid: int) -> float:
    """Return what a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(port: int, pid: int, clients: int, requests: int, items: int) -> str:
    """Return a row for a number of clients."""
    draws = torch.randint(items, (requests, 20), generator=torch.Generator().manual_seed(0)).tolist()
    signals = [1.0, -1.0] * 10
    bodies = [
        json.dumps({"sessions": [[f"track {n}" for n in draw]], "feedback": [signals]}).encode()
        for draw in draws
    ]
    seconds: list[float] = []
    start, used = time.perf_counter(), processor_seconds(pid)
    await asyncio.gather(*(client(port, bodies[number::clients], seconds) for number in range(clients)))
    wall = time.perf_counter() - start
    used = processor_seconds(pid) - used
    cuts = statistics.quantiles(seconds, n=100)
    return (
        f"{clients:7d} {requests / wall:12.0f} {1000 * cuts[49]:7.1f} {1000 * cuts[98]:7.1f} "
        f"{1000 * used / requests:14.1f}"
    )


def benchmark(
    items: int = 100_000,
    size: int = 64,
    requests: int = 1000,
    batch_wait: float = 0.002,
    index: bool = False,
) -> None:
    """Print requests per second, the median and the 99th percentile of the latency by number of clients.

    Args:
        items: V.
        size: D.
        requests: Requests for each number of clients, each with one session of 20 tracks.
        batch_wait: Seconds for which the first request of a batch waits for others.
        index: Search with an `ItemIndex`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(port, items, size, batch_wait, index)
    )
    process.start()
    try:
        with socket.socket() as probe:
            while process.is_alive() and probe.connect_ex(("127.0.0.1", port)):
                time.sleep(0.1)
        pid = process.pid or 0
        asyncio.run(load(port, pid, 8, 64, items))  # warms up
        print(f"{items:,} tracks, D {size}\nclients   requests/s  p50 ms  p99 ms ms CPU/request")
        for clients in (1, 8, 64):
            print(asyncio.run(load(port, pid, clients, requests, items)))
    finally:
        process.terminate()
        process.join()


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
