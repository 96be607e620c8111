import pytest
import torch
from metric_processes import SHARDS, build_metrics, compute_all, evaluate_shard, six_sessions, update_all


@pytest.mark.parametrize(
    "processes", [pytest.param(n, marks=pytest.mark.slow if n > 2 else ()) for n in SHARDS]
)
def test_processes_with_uneven_shards_equal_one_to_the_last_bit(processes, tmp_path):
    torch.multiprocessing.spawn(evaluate_shard, args=(processes, str(tmp_path)), nprocs=processes)
    metrics = build_metrics()
    update_all(metrics, six_sessions())
    expected = compute_all(metrics)
    assert all(value.isfinite() for value in expected.values())
    for rank in range(processes):
        for epoch in torch.load(tmp_path / f"{rank}.pt"):
            assert epoch.keys() == expected.keys()
            assert all(torch.equal(value, expected[name]) for name, value in epoch.items())
