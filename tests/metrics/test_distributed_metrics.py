import pytest
import torch
from metric_processes import build_metrics, compute_all, evaluate_shard, six_sessions, update_all


def assert_that_each_has_what_one_has(processes, folder):
    metrics = build_metrics()
    update_all(metrics, six_sessions())
    expected = compute_all(metrics)
    assert all(value.isfinite() for value in expected.values())
    for rank in range(processes):
        for epoch in torch.load(folder / f"metrics_{rank}.pt"):
            assert epoch.keys() == expected.keys()
            assert all(torch.equal(value, expected[name]) for name, value in epoch.items())


def test_processes_with_uneven_shards_equal_one_to_the_last_bit(two_processes):
    assert_that_each_has_what_one_has(2, two_processes)


@pytest.mark.slow
def test_three_processes_equal_one_too(tmp_path):
    torch.multiprocessing.spawn(evaluate_shard, args=(3, str(tmp_path)), nprocs=3)
    assert_that_each_has_what_one_has(3, tmp_path)
