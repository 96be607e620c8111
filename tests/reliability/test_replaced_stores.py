"""Readers find a whole store while another process replaces it and is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from skipcl_lightning.data import open_store, prepare_store, simulate_sessions

REPLACED, KILLS = 500, 5

# Two stores take turns: each has the version of the one before the last. The pause is shorter than any
# preparation; without one, at 450 stores a second, a reader may give up after 50 attempts.
WRITER = """
import shutil, sys, time
from pathlib import Path
from skipcl_lightning.data.store.folder import new_store, publish
folder = Path(sys.argv[1])
for n in range(100_000):
    with new_store(folder) as (_, store):
        shutil.copytree(folder.with_name(f"store {n % 2}"), store, dirs_exist_ok=True)
        publish(store, folder)
    print(n, flush=True)
    time.sleep(0.02)
"""


@pytest.mark.reliability
@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot exchange two folders")
def test_a_name_always_has_a_whole_store(tmp_path, record):
    log, folder, lengths = simulate_sessions(40, num_items=30, num_moods=3), tmp_path / "store", set()
    for number, shortest in enumerate((15, 3)):
        data = prepare_store(log, tmp_path / f"store {number}", min_session_length=shortest)
        lengths.add(len(data.store))
    shutil.copytree(tmp_path / "store 0", folder)
    generator, replaced, looked, opened = np.random.default_rng(0), 0, 0, []
    for kill in range(1, KILLS + 1):
        writer = [sys.executable, "-c", WRITER, str(folder)]
        with subprocess.Popen(writer, stdout=subprocess.PIPE) as process:  # noqa: S603 - our own command
            os.set_blocking(process.stdout.fileno(), False)
            end = None
            while end is None or time.monotonic() < end:
                for _ in range(100):
                    folder.stat()
                looked += 100
                opened.append(len(open_store(folder).store))
                replaced += (process.stdout.read() or b"").count(b"\n")
                if end is None and replaced >= kill * REPLACED // KILLS:
                    end = time.monotonic() + generator.uniform(0, 0.2)
            process.send_signal(signal.SIGKILL)
    assert set(opened) == lengths
    record(
        f"{KILLS} kills of a process that replaced a store {replaced} times: its name was there {looked:,} "
        f"of {looked:,} times, and {len(opened):,} of {len(opened):,} openings gave a whole one"
    )
