import contextlib
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import torch
from ddp_training import run_in_two_processes

from skipcl_lightning.cli import main
from skipcl_lightning.data import prepare_store, simulate_sessions

# The writer of large simulated logs is a tool of the benchmarks.
sys.path.append(str(Path(__file__).parent / "benchmarks"))

# Models and torch warm up unevenly: a deadline would measure the machine. Derandomised, so that a failure
# seen once is seen again.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("suite")


# Workers of pytest-xdist share the cores: more threads than cores wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start


# What the tests of reliability have counted.
COUNTS = []


@pytest.fixture(scope="session")
def small_store(tmp_path_factory):
    """A session store that is prepared once."""
    folder = tmp_path_factory.mktemp("stores") / "store"
    prepare_store(simulate_sessions(60, num_items=500), folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A small module, its data and its checkpoint: trained once for all that is damaged."""
    from small_run import train  # beside the tests of reliability, whose folder is on the path by then

    path = tmp_path_factory.mktemp("trained") / "model.ckpt"
    return *train(path), path


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:  # noqa: S603
        pytest.skip("a small file system can be mounted by the administrator of a Linux machine only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)  # noqa: S603, S607


@pytest.fixture
def record():
    """Keep a line for the end of the run: what was counted."""
    return COUNTS.append


def pytest_terminal_summary(terminalreporter):
    if COUNTS:
        terminalreporter.section("what was counted")
        for line in COUNTS:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """The folder into which two processes have written: once for all that is tested of them."""
    folder = tmp_path_factory.mktemp("two_processes")
    run_in_two_processes("SASRec", folder)
    return folder


@pytest.fixture
def skipcl(monkeypatch, tmp_path):
    """The command line as it is typed, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def skipcl(*arguments):
        monkeypatch.setattr(sys, "argv", ["skipcl", *map(str, arguments)])
        main()

    return skipcl


@pytest.fixture(scope="session")
def trained_in_terminal(tmp_path_factory):
    """A folder in which `skipcl fit` has trained, and the lines that its terminal of 80 columns showed."""
    import fcntl
    import pty
    import termios  # not on Windows

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


@pytest.fixture(autouse=True, scope="module")
def wandb_ends_here():
    """End W&B's service with the module: processes that later tests start would go on in it, elsewhere."""
    before = dict(os.environ)
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()
    for name in set(os.environ) - set(before):
        if name.startswith("WANDB_"):
            del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if name.startswith("WANDB_")})
