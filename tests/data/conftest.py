import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from skipcl_lightning.data import SessionStore

ROOT = Path(__file__).parents[2]


@pytest.fixture
def real_data() -> Path:
    """The folder with listening logs, which the project itself may not carry."""
    folder = Path(os.environ.get("SKIPCL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no listening logs: SKIPCL_DATA is not set and {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def make_store() -> Callable[[list[list[int]]], SessionStore]:
    """Stores from lists of item indices; feedback rises over all tracks, so it tells where one was."""

    def make(sessions: list[list[int]]) -> SessionStore:
        flat = [item for session in sessions for item in session]
        offsets = [0]
        for session in sessions:
            offsets.append(offsets[-1] + len(session))
        return SessionStore(
            items=np.array(flat, dtype=np.int32),
            feedback=np.linspace(-1, 1, len(flat), dtype=np.float32),
            offsets=np.array(offsets, dtype=np.int64),
            session_ids=pl.Series(range(len(sessions))),
        )

    return make
