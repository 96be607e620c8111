"""What histories hold: of the listener's earlier sessions only, never what comes later or crosses a split."""

import pickle

import numpy as np
import polars as pl
import pytest

from skipcl_lightning.data import (
    LeaveOneOut,
    SessionDataModule,
    SplitBySession,
    SplitByTime,
    prepare_store,
)

VALIDATION, TEST = 400, 700
SPLITS = {
    "LeaveOneOut": LeaveOneOut(),
    "SplitBySession": SplitBySession(0.25, 0.25, targets="every"),
    "SplitByTime": SplitByTime(VALIDATION, TEST, targets="every"),
    "SplitByTime, last": SplitByTime(VALIDATION, TEST),
}


def make_log(seed=0, sessions=80):
    """Sessions of some listeners, which overlap; an item's name tells its session and place."""
    random = np.random.default_rng(seed)
    rows = []
    for session in range(sessions):
        user = random.choice(["ada", "bob", "cy", None], p=[0.4, 0.3, 0.2, 0.1])
        time = random.integers(0, 1000)
        for place in range(random.integers(3, 8)):
            feedback = random.choice([-1.0, 0.0, 1.0], 2)
            rows.append((f"s{session:02d}", f"{session:02d}-{place}", user, int(time), *feedback))
            time += random.integers(0, 12)
    names = ["session_id", "item_id", "user_id", "timestamp", "feedback", "explicit_feedback"]
    return pl.DataFrame(rows, schema=names, orient="row")


def rejects(row):
    disliked, skipped, liked = row["explicit_feedback"] < 0, row["feedback"] < 0, row["explicit_feedback"] > 0
    return disliked or (skipped and not liked)


def visible(split, part, session, sets):
    """The number of a session's first items that histories of a part may hold."""
    times, length = [row["timestamp"] for row in session], len(session)
    if part in ("test", "predict"):
        return length
    if split == "LeaveOneOut":
        return length - 2 if part == "train" else length - 1
    if split == "SplitBySession":
        allowed = ("train",) if part == "train" else ("train", "validation")
        return length if sets.get(session[0]["session_id"]) in allowed else 0
    trained = sum(time < VALIDATION for time in times)
    if part == "validation" and any(VALIDATION <= time < TEST for time in times[1:]):
        return sum(time < TEST for time in times)
    return trained if trained >= 2 else 0


def expected_histories(split, part, sessions, sets):
    found = {}
    for own in sessions.values():
        before = [
            other
            for other in sessions.values()
            if own[0]["user_id"] is not None
            and other[0]["user_id"] == own[0]["user_id"]
            and max(row["timestamp"] for row in other) < min(row["timestamp"] for row in own)
        ]
        before.sort(key=lambda other: max(row["timestamp"] for row in other))
        found[own[0]["session_id"]] = [
            row["item_id"]
            for other in before
            for row in other[: visible(split, part, other, sets)]
            if not rejects(row)
        ]
    return found


def loaders(data):
    return {
        "train": data.train_dataloader(),
        "validation": data.val_dataloader(),
        "test": data.test_dataloader(),
        "predict": data.predict_dataloader(),
    }


def found_histories(data, part):
    found = {}
    for batch in loaders(data)[part]:
        for row, items in zip(batch.session_index.tolist(), batch.history.tolist(), strict=True):
            kept = [item for item in items if item]
            assert items == kept + [0] * (len(items) - len(kept))
            found[data.session_ids[row]] = data.vocabulary.decode(kept)
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_a_history_is_what_plain_python_makes_of_the_log(split):
    log = make_log()
    data = SessionDataModule(log, split=SPLITS[split], history_length=1000, batch_size=16)
    sessions = {rows["session_id"][0]: rows.to_dicts() for rows in log.partition_by("session_id")}
    sets = {
        data.session_ids[int(row)]: name
        for name in ("train", "validation", "test")
        for row in data._data.views[name].rows
    }
    known = {}
    for part in ("train", "validation", "test", "predict"):
        expected = expected_histories(split, part, sessions, sets)
        found = found_histories(data, part)
        assert found == {name: expected[name] for name in found}
        known[part] = {item for history in found.values() for item in history}
        assert known[part]
    trained = data.vocabulary.decode(np.arange(1, data._data.num_warm_items + 1))
    assert known["train"] <= set(trained)
    asked = data.vocabulary.decode(data._data.store.items[data._data.views["test"].targets])
    assert not (known["train"] | known["validation"]) & set(asked)
    if split == "LeaveOneOut":
        assert known["test"] & set(asked)  # what came before is known, even if it was a target


def test_a_history_keeps_the_latest():
    log = make_log()
    whole, cut = (
        found_histories(SessionDataModule(log, history_length=length), "test") for length in (1000, 3)
    )
    assert cut == {name: history[-3:] for name, history in whole.items()}
    assert max(map(len, whole.values())) > 3


@pytest.mark.parametrize("rows_in_memory", [40, 10_000])
def test_a_store_has_the_histories_of_its_log(tmp_path, rows_in_memory):
    log, split = make_log(), SplitByTime(VALIDATION, TEST)
    prepare_store(log, tmp_path / "store", split=split, rows_in_memory=rows_in_memory)
    mapped = SessionDataModule(tmp_path / "store", history_length=5)
    in_memory = SessionDataModule(log, split=split, history_length=5)
    for part in loaders(mapped):
        assert found_histories(mapped, part) == found_histories(in_memory, part)
    again = pickle.loads(pickle.dumps(mapped))  # noqa: S301 - our own
    assert found_histories(again, "test") == found_histories(mapped, "test")


def test_nothing_else_of_a_batch_or_of_the_counts_changes():
    log = make_log()
    settings = {"batch_size": 16, "mined_negatives": 2, "mining_min_count": 1}
    plain, with_history = (SessionDataModule(log, history_length=n, **settings) for n in (0, 5))
    for part in loaders(plain):
        for one, other in zip(loaders(plain)[part], loaders(with_history)[part], strict=True):
            assert one.history is None
            assert other.history is not None
            for name in ("items", "feedback", "target", "mined_negatives", "seen_items", "num_tracks"):
                assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert plain.item_counts.equal(with_history.item_counts)
    for one, other in zip(plain.transition_counts(), with_history.transition_counts(), strict=True):
        assert one.equal(other)
    assert all(batch.history is None for batch in with_history.training_sessions())


def test_an_encoder_makes_the_histories_of_the_data():
    data = SessionDataModule(make_log(), history_length=3)
    batch = next(iter(data.predict_dataloader()))
    ids = [data.vocabulary.decode([i for i in row if i]) for row in batch.items.tolist()]
    histories = found_histories(SessionDataModule(make_log(), history_length=1000), "predict")
    names = data.session_ids.gather(batch.session_index.numpy())
    encoded = data.encoder.encode(ids, histories=[histories[name] for name in names])
    assert encoded.history.equal(batch.history)


@pytest.mark.parametrize("column", ["user_id", "timestamp"])
def test_a_log_without_listeners_or_times_is_refused_at_once(tmp_path, column):
    log = make_log().with_columns(position=pl.int_range(pl.len()).over("session_id")).drop(column)
    message = r"`history_length` must be 0 for a log without the columns 'user_id' and 'timestamp'"
    with pytest.raises(ValueError, match=message):
        SessionDataModule(log, history_length=5)
    prepare_store(log, tmp_path / "store")
    with pytest.raises(ValueError, match=message):
        SessionDataModule(tmp_path / "store", history_length=5)
    with pytest.raises(ValueError, match=r"`history_length` must be at least 0, got -1"):
        SessionDataModule(make_log(), history_length=-1)
