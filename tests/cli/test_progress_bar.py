import re

import pytest
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from skipcl_lightning.cli.training import ShortProgressBar, run_training

SMALL = [
    "fit", "--config", "simulated/sasrec", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
    "--data.log.num_sessions", "60", "--data.log.num_items", "40",
]  # fmt: skip


def test_eighty_columns_show_the_loss_and_both_hit_rates(trained_in_terminal):
    last = " ".join(trained_in_terminal[1]).rpartition("Epoch 0/0")[2]
    assert re.search(r"loss: \d\.\d{3} .*\bHR@10: 0\.\d{3}\s+SkipHR@10: 0\.\d{3}", last)
    assert "…" not in last
    assert "v_num" not in last


@pytest.mark.parametrize(
    ("settings", "bars"),
    [
        ([], [ShortProgressBar]),
        (["--trainer.enable_progress_bar", "false"], []),
        (["--trainer.callbacks+", "TQDMProgressBar"], [TQDMProgressBar]),
        (["--trainer.callbacks", "TQDMProgressBar"], [TQDMProgressBar]),
    ],
)
def test_a_run_has_at_most_one_progress_bar(settings, bars, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = run_training([*SMALL, "--trainer.max_steps", "1", *settings])
    assert [type(one) for one in cli.trainer.callbacks if isinstance(one, ProgressBar)] == bars
