import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from skipcl_lightning.cli.training import ShortProgressBar, run_training

SMALL = [
    "fit", "--config", "simulated/sasrec", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
    "--data.log.num_sessions", "60", "--data.log.num_items", "40",
]  # fmt: skip


def lines_in_a_terminal(folder, columns):
    """Return what a run shows in a terminal of that width, without control sequences."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-c", "from skipcl_lightning.cli import main; main()", *SMALL]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(  # noqa: S603 - our own command
        command, stdout=there, stderr=there, cwd=folder, env={**environment, "TERM": "xterm"}
    ) as process:
        os.close(there)
        shown = b""
        # Linux reports the end of a terminal as an error.
        with contextlib.suppress(OSError):
            while part := os.read(here, 65536):
                shown += part
    os.close(here)
    assert process.returncode == 0, shown.decode()
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()))


def test_eighty_columns_show_the_loss_and_both_hit_rates(tmp_path):
    last = " ".join(lines_in_a_terminal(tmp_path, 80)).rpartition("Epoch 0/0")[2]
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
