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


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder in which `skipcl fit` has trained, and the lines that its terminal of 80 columns showed."""
    folder = tmp_path_factory.mktemp("trained")
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    settings = [
        "--config", "simulated/sasrec", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
        "--data.log.num_sessions", "60", "--data.log.num_items", "40",
    ]  # fmt: skip
    command = [sys.executable, "-W", "error", "-c", "from skipcl_lightning.cli import main; main()", "fit"]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(  # noqa: S603 - our own command
        [*command, *settings], stdout=there, stderr=there, cwd=folder, env={**environment, "TERM": "xterm"}
    ) as process:
        os.close(there)
        shown = b""
        # Linux reports the end of a terminal as an error.
        with contextlib.suppress(OSError):
            while part := os.read(here, 65536):
                shown += part
    os.close(here)
    assert process.returncode == 0, shown.decode()
    # Without control sequences.
    return folder, re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()))
