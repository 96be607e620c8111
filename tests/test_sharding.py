"""Weights and moments sharded over two processes, by Lightning's own strategy."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from skipcl_lightning import SkipCLModule

SCRIPT = Path(__file__).with_name("sharded_training.py")


def start(rank, port, folder, processes):
    return subprocess.Popen(  # noqa: S603 - this suite's own script
        [sys.executable, str(SCRIPT), str(rank), str(port), str(folder), str(processes)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.slow
def test_two_processes_share_the_table_and_learn_what_one_learns(tmp_path):
    for processes in (1, 2):
        port = free_port()
        running = [start(rank, port, tmp_path, processes) for rank in range(processes)]
        for process in running:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output
    one, two = (SkipCLModule.load_from_checkpoint(tmp_path / f"{n}.ckpt", weights_only=True) for n in (1, 2))
    # Two processes average their own means, of uneven numbers of targets.
    similar = F.cosine_similarity(one.item_table[1:], two.item_table[1:], dim=1)
    assert similar.min() > 0.98
    metrics = [torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2)]
    assert metrics[0].keys() == metrics[1].keys()
    assert metrics[0]["test/num_listened"] == metrics[1]["test/num_listened"]
