"""Several processes have the results of one, and end together."""

import subprocess
import sys

import polars as pl
import pytest
import resumed_runs
from polars.testing import assert_frame_equal

from skipcl_lightning import SkipCLModule


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
