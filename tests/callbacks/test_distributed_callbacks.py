import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from watched_runs import wandb_runs

SCRIPT = Path(__file__).with_name("callback_processes.py")


def test_two_processes_with_uneven_shards_show_what_one_does_and_only_the_first_writes(tmp_path):
    told = {}
    for devices in (1, 2):
        run = subprocess.run(  # noqa: S603 - our own script
            [sys.executable, str(SCRIPT), str(devices), str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"},
        )
        assert run.returncode == 0, run.stderr
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
