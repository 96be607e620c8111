import json
import math
import subprocess
import sys

import ddp_training
import pytest
from ddp_training import train_and_test


@pytest.mark.parametrize("backbone", ["SASRec", pytest.param("BERT4Rec", marks=pytest.mark.slow)])
def test_two_processes_with_uneven_shards_log_what_one_does(backbone, tmp_path):
    # 9 sessions in batches of 3: one process tests 5 of them in two batches, the other 4.
    train_and_test(backbone, 1, 9, tmp_path)
    run = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, ddp_training.__file__, backbone, "2", "9", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    (one, loss_of_one), (two, loss_of_two) = (
        json.loads((tmp_path / f"{devices}.json").read_text(encoding="utf-8")) for devices in (1, 2)
    )
    assert one["test/num_listened"] + one["test/num_skipped"] == 9
    assert one == two
    assert math.isfinite(loss_of_one)
    assert math.isfinite(loss_of_two)
