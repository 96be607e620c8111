import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import (
    ItemVocabulary,
    SessionFilter,
    SessionStore,
    SplitBySession,
    leave_one_out,
)
from skipcl_lightning.data.prepare.prepared_data import PreparationSettings, Storage, prepare_into
from skipcl_lightning.data.store import session_store as store

SESSIONS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=8), min_size=1, max_size=6)


@given(sessions=SESSIONS, max_length=st.integers(1, 10), data=st.data())
def test_gathering_gives_what_a_loop_over_sessions_gives(make_store, sessions, max_length, data):
    store = make_store(sessions)
    rows = data.draw(st.lists(st.integers(0, len(sessions) - 1), min_size=1, max_size=8))
    ends = [data.draw(st.integers(1, len(sessions[row]))) for row in rows]
    feedback = np.split(store.feedback, store.offsets[1:-1])
    expected_items = [sessions[row][:end][-max_length:] for row, end in zip(rows, ends, strict=True)]
    expected_feedback = [
        feedback[row][:end][-max_length:].tolist() for row, end in zip(rows, ends, strict=True)
    ]
    longest = max(map(len, expected_items))
    gathered = store.gather(np.array(rows), np.array(ends), max_length=max_length)
    assert list(gathered) == ["items", "feedback"]
    items, signals = gathered.values()
    assert items.dtype == torch.int64
    assert signals.dtype == torch.float32
    assert items.tolist() == [row + [0] * (longest - len(row)) for row in expected_items]
    assert signals.tolist() == [row + [0.0] * (longest - len(row)) for row in expected_feedback]


def test_a_store_can_be_read_from_memory_maps(make_store, tmp_path):
    store = make_store([[1, 2, 3], [4, 5]])
    mapped = {}
    for name in ("items", "feedback", "offsets"):
        np.save(tmp_path / f"{name}.npy", getattr(store, name))
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    twin = SessionStore(**mapped, session_ids=store.session_ids)
    rows, ends = np.array([1, 0]), np.array([2, 2])
    first, second = (one.gather(rows, ends, max_length=9)["items"] for one in (twin, store))
    assert torch.equal(first, second)


def test_a_log_is_laid_out_session_by_session():
    log = pl.DataFrame(
        {
            "session_id": ["z", "a", "z", "a", "a"],
            "item_id": [10, 30, 30, 10, 30],
            "feedback": pl.Series([1, 0, 1, -1, 1], dtype=pl.Int8),
            "position": [2, 1, 1, 2, 3],
        }
    )
    split = SplitBySession(0, 1)
    vocabulary = ItemVocabulary([10, 30])
    settings = PreparationSettings(SessionFilter(min_session_length=2), split, vocabulary=vocabulary)
    store = prepare_into(Storage(), log, settings).store
    assert (store.items.tolist(), store.feedback.tolist()) == ([2, 1, 2, 2, 1], [0, -1, 1, 1, 1])
    assert (store.offsets.tolist(), store.ids.to_list()) == ([0, 3, 5], ["a", "z"])
    assert (store.items.dtype, store.feedback.dtype) == (np.int32, np.float32)


@pytest.mark.parametrize(
    ("rows", "ends", "message"),
    [
        ([-1], [1], "`rows`"),
        ([2], [1], "`rows`"),
        ([0], [0], "`ends`"),
        ([0], [4], "`ends`"),
        ([0, 1], [1], "same length"),
    ],
)
def test_rows_and_ends_that_do_not_exist_are_errors_and_not_other_sessions(make_store, rows, ends, message):
    with pytest.raises(ValueError, match=message):
        make_store([[1, 2, 3], [4, 5]]).gather(np.array(rows), np.array(ends), max_length=5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"items": np.array([1, 2, 3])}, TypeError, "`items` must be int32"),
        ({"feedback": np.zeros(3)}, TypeError, "`feedback` must be float32"),
        ({"feedback": np.zeros(2, dtype=np.float32)}, ValueError, "as long as `items`"),
        ({"session_ids": pl.Series([1])}, ValueError, "one shorter than `offsets`"),
        ({"offsets": np.array([0, 0, 3])}, ValueError, "`offsets` must rise"),
        ({"offsets": np.array([1, 2, 3])}, ValueError, "`offsets` must rise"),
        ({"offsets": np.array([0, 1, 2])}, ValueError, "`offsets` must rise"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_errors(changes, error, message):
    arrays = {
        "items": np.array([1, 2, 3], dtype=np.int32),
        "feedback": np.zeros(3, dtype=np.float32),
        "offsets": np.array([0, 1, 3]),
        "session_ids": pl.Series([1, 2]),
    }
    with pytest.raises(error, match=message):
        SessionStore(**(arrays | changes))


def test_a_batch_of_no_width_is_an_error(make_store):
    with pytest.raises(ValueError, match="`max_length` must be at least 1"):
        make_store([[1, 2, 3]]).gather(np.array([0]), np.array([3]), max_length=0)


def test_a_session_of_two_tracks_cannot_be_split(make_store):
    with pytest.raises(ValueError, match="at least 3 tracks, got one of 2"):
        leave_one_out(make_store([[1, 2, 3], [1, 2]]))


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_an_empty_session_is_found_wherever_it_stands(monkeypatch, block):
    monkeypatch.setattr(store, "_BLOCK", block)
    for place in range(1, 6):
        lengths = np.ones(6, dtype=np.int64)
        lengths[place - 1] = 0
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        with pytest.raises(ValueError, match="`offsets` must rise"):
            SessionStore(
                np.ones(5, dtype=np.int32), np.ones(5, dtype=np.float32), offsets, pl.Series(range(6))
            )
