import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("rank_processes.py")


def run(ranks, folder):
    processes = [
        subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, str(SCRIPT), str(rank), str(ranks), str(folder)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    finally:
        # One that waits for another would wait for ever.
        for process in processes:
            process.kill()
            process.communicate()
    return json.loads((folder / f"{ranks}.json").read_text(encoding="utf-8"))


def flatten(values):
    if not isinstance(values, list):
        return [values]
    return [number for part in values for number in flatten(part)]


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path):
    one, two = run(1, tmp_path), run(2, tmp_path)
    assert one["loss"] > 0
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-12)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, gradient in one["gradients"].items():
        expected = flatten(gradient)
        assert any(expected), name
        assert flatten(two["gradients"][name]) == pytest.approx(expected, rel=1e-9, abs=1e-12), name
