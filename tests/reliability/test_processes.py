"""Several processes have the results of one, and end together."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import failing_processes
import polars as pl
import pytest
import resumed_runs
import torch
from polars.testing import assert_frame_equal

from skipcl_lightning import SkipCLModule
from skipcl_lightning.data import datamodule


@pytest.fixture(scope="module")
def data():
    return resumed_runs.make_data()


def assert_predicts_like_one(processes, data, folder):
    module = SkipCLModule.load_from_checkpoint(folder / f"whole_{processes}.ckpt", weights_only=True)
    resumed_runs.predict(module, data, folder / "predicted_1.parquet")
    one, several = (pl.read_parquet(folder / f"predicted_{count}.parquet") for count in (1, processes))
    # The same rows in the same order; a batch of other sessions rounds scores otherwise.
    assert_frame_equal(one, several, check_exact=False, rel_tol=1e-5)
    assert one["session_id"].n_unique() == 50


def test_two_processes_resume_exactly_and_predict_like_one(data, two_processes):
    # Each process of the fixture has compared its losses and weights.
    assert_predicts_like_one(2, data, two_processes)


@pytest.mark.reliability
def test_three_processes_resume_exactly_and_predict_like_one(data, tmp_path):
    script = [sys.executable, resumed_runs.__file__, "3", str(tmp_path)]
    run = subprocess.run(script, capture_output=True, text=True, check=False, timeout=300)  # noqa: S603
    assert run.returncode == 0, run.stderr
    assert_predicts_like_one(3, data, tmp_path)


def test_all_errors_name_the_process_that_failed_first(data, monkeypatch):
    store, ranks = torch.distributed.HashStore(), iter((1, 0))
    monkeypatch.setattr(datamodule, "_get_default_store", lambda: store)
    monkeypatch.setattr(datamodule.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(datamodule.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(datamodule.dist, "get_rank", lambda: next(ranks))
    cause, result = ValueError("this track does not exist"), RuntimeError("connection closed by peer")
    for error in (cause, result):
        data.on_exception(error)
    assert not hasattr(cause, "__notes__")
    assert result.__notes__ == ["Process 1 failed first, with ValueError: this track does not exist"]


@pytest.mark.reliability
@pytest.mark.parametrize("way", ["raises", "is killed", "is stopped"])
def test_a_run_ends_with_its_process_within_the_time_out(way, tmp_path, record):
    script = [sys.executable, failing_processes.__file__, way]
    limit = 60 + 2 * failing_processes.TIMEOUT.total_seconds()
    # Not through a pipe, which a stopped process would keep open.
    with (tmp_path / "errors").open("w") as errors:
        run = subprocess.Popen(script, stdout=errors, stderr=errors, start_new_session=True)  # noqa: S603
        start = time.monotonic()
        try:
            assert run.wait(limit) != 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    seconds, limit = time.monotonic() - start, failing_processes.TIMEOUT.total_seconds()
    record(f"one process of two {way}: the run ended after {seconds:.0f} s, with a time-out of {limit:.0f} s")
    if way == "raises":
        last = (tmp_path / "errors").read_text().strip().splitlines()[-1]
        assert last.endswith("Process 1 failed first, with ValueError: this track does not exist")
