import json
import math

import pytest
from ddp_training import run_in_two_processes, train_and_test


def assert_that_two_log_what_one_does(backbone, folder):
    # 9 sessions in batches of 3: one process tests 5 of them in two batches, the other 4.
    train_and_test(backbone, 1, 9, folder)
    (one, loss_of_one), (two, loss_of_two) = (
        json.loads((folder / f"module_{devices}.json").read_text(encoding="utf-8")) for devices in (1, 2)
    )
    assert one["test/num_listened"] + one["test/num_skipped"] == 9
    assert one == two
    assert math.isfinite(loss_of_one)
    assert math.isfinite(loss_of_two)


def test_two_processes_with_uneven_shards_log_what_one_does(two_processes):
    assert_that_two_log_what_one_does("SASRec", two_processes)


@pytest.mark.slow
def test_two_processes_hide_tracks_and_log_what_one_does(tmp_path):
    run_in_two_processes("BERT4Rec", tmp_path)
    assert_that_two_log_what_one_does("BERT4Rec", tmp_path)
