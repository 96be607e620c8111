import torch
from metric_processes import SHARDS, build_metrics, evaluate_shard, six_sessions


def test_two_processes_with_uneven_shards_equal_one_to_the_last_bit(tmp_path):
    torch.multiprocessing.spawn(evaluate_shard, args=(str(tmp_path),), nprocs=len(SHARDS))
    expected = build_metrics()
    expected.update(**six_sessions())
    expected = expected.compute()
    assert all(value.isfinite() for value in expected.values())
    for rank in range(len(SHARDS)):
        for epoch in torch.load(tmp_path / f"{rank}.pt"):
            assert epoch.keys() == expected.keys()
            assert all(torch.equal(value, expected[name]) for name, value in epoch.items())
