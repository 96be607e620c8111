import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from skipcl_lightning.data import MinedItems, SessionDataset, SessionView, keep_batch, leave_one_out

SESSIONS = [[1, 2, 3, 91, 92], [4, 5, 91, 92], [6, 91, 92], [7, 8, 9, 1, 91, 92]]


def load(make_store, split: str, **options) -> list:
    dataset = SessionDataset(leave_one_out(make_store(SESSIONS))[split], max_length=50)
    return list(DataLoader(dataset, batch_size=3, collate_fn=keep_batch, **options))


@given(
    sessions=st.lists(st.lists(st.integers(1, 5), min_size=3, max_size=9), min_size=1, max_size=6),
    max_length=st.integers(1, 9),
)
def test_held_out_positions_never_reach_a_training_batch(make_store, sessions, max_length):
    # The markers: items 98 and 99, and the feedback that only stands at their places.
    planted = [[*session[:-2], 98, 99] for session in sessions]
    store = make_store(planted)
    held_out = {float(store.feedback[end - back]) for end in store.offsets[1:] for back in (1, 2)}
    dataset = SessionDataset(leave_one_out(store)["train"], max_length=max_length)
    batch = dataset.__getitems__(list(range(len(dataset))))
    assert not (batch.items >= 98).any()
    assert held_out.isdisjoint(batch.feedback[batch.valid_mask].tolist())
    assert batch.target is None


def test_each_split_sees_its_prefix_and_holds_out_the_next_track(make_store):
    for split, cut in [("validation", 2), ("test", 1)]:
        for batch in load(make_store, split):
            for row, session_index in enumerate(batch.session_index.tolist()):
                session = SESSIONS[session_index]
                assert batch.items[row][batch.valid_mask[row]].tolist() == session[:-cut]
                assert batch.target[row] == session[len(session) - cut]


def test_the_target_brings_the_feedback_that_it_got(make_store):
    store = make_store(SESSIONS)
    batch = SessionDataset(leave_one_out(store)["test"], max_length=2).__getitems__([3, 0])
    assert batch.target_feedback.tolist() == [store.feedback[-1], store.feedback[4]]
    assert batch.session_index.tolist() == [3, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_ordinary_loader_gets_every_session_once_in_whole_batches(make_store, workers):
    batches = load(make_store, "test", shuffle=True, num_workers=workers)
    assert [len(batch) for batch in batches] == [3, 1]
    assert sorted(torch.cat([batch.session_index for batch in batches]).tolist()) == [0, 1, 2, 3]


def test_a_view_of_some_sessions_tells_their_place_in_the_store(make_store):
    view = SessionView(make_store(SESSIONS), np.array([3, 1]), np.array([2, 1]), with_target=True)
    assert view in {view}  # compared as an object, because arrays have no hash
    batch = SessionDataset(view, max_length=50).__getitems__([1, 0])
    assert batch.session_index.tolist() == [1, 3]
    assert batch.items.tolist() == [[4, 0], [7, 8]]
    assert batch.target.tolist() == [5, 9]


def test_a_batch_costs_one_gather(make_store, monkeypatch):
    calls = []
    gather = type(make_store(SESSIONS)).gather

    def counted(self, rows, ends, *, max_length):
        calls.append(len(rows))
        return gather(self, rows, ends, max_length=max_length)

    monkeypatch.setattr("skipcl_lightning.data.store.session_store.SessionStore.gather", counted)
    load(make_store, "train")
    assert calls == [3, 1]


def test_one_row_is_a_batch_of_one_and_the_end_ends_a_loop(make_store):
    dataset = SessionDataset(leave_one_out(make_store(SESSIONS))["train"], max_length=50)
    assert [batch.items.tolist() for batch in dataset] == [[[1, 2, 3]], [[4, 5]], [[6]], [[7, 8, 9, 1]]]
    with pytest.raises(IndexError, match="must be below 4"):
        dataset[4]


def test_the_threshold_reaches_the_batch(make_store):
    dataset = SessionDataset(leave_one_out(make_store(SESSIONS))["train"], max_length=50, skip_threshold=0.5)
    assert dataset[0].skip_threshold == 0.5


def test_a_dataset_survives_the_way_to_a_worker(make_store):
    dataset = SessionDataset(leave_one_out(make_store(SESSIONS))["test"], max_length=50)
    twin = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - made one line above
    assert torch.equal(twin[1].items, dataset[1].items)


@pytest.mark.parametrize(
    ("rows", "ends", "with_target"),
    [([0], [5], True), ([0], [0], False), ([4], [1], False), ([0, 1], [1], False)],
)
def test_a_view_beyond_its_sessions_is_an_error(make_store, rows, ends, with_target):
    with pytest.raises(ValueError, match="point at tracks of the store"):
        SessionView(make_store(SESSIONS), np.array(rows), np.array(ends), with_target=with_target)


def test_what_is_drawn_depends_on_the_seed_and_on_the_rows(make_store):
    view = leave_one_out(make_store([[n, n + 1, n + 2, n + 3, n + 4] for n in range(1, 40)]))["train"]
    table = np.tile(np.arange(1, 9, dtype=np.int32), (60, 1))
    mined = MinedItems(skipped_after=table, listened_after=table)

    def draw(rows, seed):
        dataset = SessionDataset(view, max_length=5, mined=mined, mined_negatives=3, seed=seed)
        return dataset.__getitems__(rows).mined_negatives.tolist()

    assert draw([1, 2, 3], 0) == draw([1, 2, 3], 0)
    draws = [draw([1, 2, 3], 0), draw([1, 2, 3], 1), draw([1, 2, 3], 2**32 - 1), draw([4, 5, 6], 0)]
    assert len({str(one) for one in draws}) == 4


@pytest.mark.parametrize(
    "setting",
    [
        {"max_length": 0}, {"mined_negatives": -1}, {"mined_positives": -1}, {"history_length": -1},
        {"skip_threshold": -1.0}, {"seed": -1}, {"seed": 2**32},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_errors(make_store, setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must be"):
        SessionDataset(leave_one_out(make_store(SESSIONS))["train"], **{"max_length": 5} | setting)
