import pytest
from small_run import train

COUNTS = []


@pytest.fixture(scope="package")
def trained(tmp_path_factory):
    """A module, its data and its checkpoint: trained once for all that is damaged."""
    path = tmp_path_factory.mktemp("trained") / "model.ckpt"
    return *train(path), path


@pytest.fixture(scope="session")
def record(pytestconfig):
    """Keep a count for the end of the run."""
    return COUNTS.append


def pytest_terminal_summary(terminalreporter):
    if COUNTS:
        terminalreporter.section("reliability: what was counted")
        for line in COUNTS:
            terminalreporter.line(line)
