import json
import subprocess
import sys

import callback_processes
import pytest
from callback_processes import watch
from watched_runs import wandb_runs


@pytest.mark.slow
def test_two_processes_with_uneven_shards_show_what_one_does_and_only_the_first_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    watch(1, tmp_path)
    run = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, callback_processes.__file__, "2", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    told = {}
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        told[devices] = json.loads((folder / "told.json").read_text(encoding="utf-8"))
        assert len(wandb_runs(folder)) == 1
        assert len(list(folder.rglob("metrics.csv"))) == 1
        assert len(list(folder.rglob("val_recommendations.csv"))) == 1
    one, two = told[1], told[2]
    assert one["counts"] == two["counts"]
    assert sum(row[1] + row[2] for row in one["counts"]["test"]) == 9
    # Pairs of queries are those within a process: which they are depends on how many there are.
    one["embeddings"].pop("embeddings/query_uniformity")
    assert two["embeddings"].pop("embeddings/query_uniformity") < 0
    assert two["embeddings"] == pytest.approx(one["embeddings"], rel=1e-5, abs=1e-6)
    assert one["shown"] == 3
    assert two["shown"] == 3
