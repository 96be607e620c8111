import json

import pytest
from rank_processes import compute


def flatten(values):
    if not isinstance(values, list):
        return [values]
    return [number for part in values for number in flatten(part)]


def test_two_processes_have_the_loss_and_the_gradient_of_one(two_processes):
    compute(0, 1, two_processes)
    one, two = (
        json.loads((two_processes / f"head_{ranks}.json").read_text(encoding="utf-8")) for ranks in (1, 2)
    )
    assert one["loss"] > 0
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-12)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, gradient in one["gradients"].items():
        expected = flatten(gradient)
        assert any(expected), name
        assert flatten(two["gradients"][name]) == pytest.approx(expected, rel=1e-9, abs=1e-12), name
