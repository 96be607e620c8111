import json

import pytest
from rank_processes import compute, shard


def flatten(values):
    if not isinstance(values, list):
        return [values]
    return [number for part in values for number in flatten(part)]


def test_two_processes_have_the_loss_and_the_gradient_of_one(two_processes):
    compute(0, 1, two_processes)
    one, two = (
        json.loads((two_processes / f"head_{ranks}_0.json").read_text(encoding="utf-8")) for ranks in (1, 2)
    )
    assert one["loss"] > 0
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-12)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, gradient in one["gradients"].items():
        expected = flatten(gradient)
        assert any(expected), name
        assert flatten(two["gradients"][name]) == pytest.approx(expected, rel=1e-9, abs=1e-12), name


def test_all_processes_have_the_bank_of_all_skips(two_processes):
    first, second = (
        json.loads((two_processes / f"head_2_{rank}.json").read_text(encoding="utf-8"))["bank"]
        for rank in (0, 1)
    )
    assert first == second
    skips = [part.items[part.skip_mask].tolist() for part in (shard(0, 2), shard(1, 2))]
    twice = 2 * sum(map(sorted, skips), [])  # noqa: RUF017 - two lists
    assert sorted(filter(None, first)) == sorted(twice)
    # The processes in turn, so that none has a bank of its own in a small one.
    shorter = min(map(len, skips))
    assert first[: 2 * shorter] == [item for pair in zip(*skips, strict=False) for item in pair]
