import sys

import pytest

from skipcl_lightning.cli import main
from skipcl_lightning.data import prepare_store, simulate_sessions


@pytest.fixture(scope="session")
def small_store(tmp_path_factory):
    """A session store that is prepared once."""
    folder = tmp_path_factory.mktemp("stores") / "store"
    prepare_store(simulate_sessions(60, num_items=500), folder)
    return folder


@pytest.fixture
def skipcl(monkeypatch, tmp_path):
    """The command line as it is typed, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def skipcl(*arguments):
        monkeypatch.setattr(sys, "argv", ["skipcl", *map(str, arguments)])
        main()

    return skipcl
