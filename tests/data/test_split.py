from datetime import datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import LeaveOneOut, SessionDataModule, SessionFilter, SplitBySession, SplitByTime
from skipcl_lightning.data.prepare.prepared_data import PreparedData
from skipcl_lightning.data.splits import SessionBlock

TIMES = st.lists(st.lists(st.integers(0, 30), min_size=2, max_size=6), min_size=1, max_size=8)


def log_of(times, **columns):
    """A session a list of times, its items numbered anew in each so that a place tells the item."""
    sessions = [
        (s, f"item-{s}-{place}", time) for s, row in enumerate(times) for place, time in enumerate(row)
    ]
    return pl.DataFrame(sessions, schema=["session_id", "item_id", "timestamp"], orient="row").with_columns(
        feedback=1.0, **columns
    )


def pairs(cut, name):
    rows, ends = cut[name]
    return list(zip(rows.tolist(), ends.tolist(), strict=True))


@given(times=TIMES, targets=st.sampled_from(["last", "every"]), first_row=st.integers(0, 5))
def test_a_split_by_time_is_what_plain_python_makes_of_it(times, targets, first_row):
    times = [sorted(row) for row in times]
    flat = np.array([time for row in times for time in row]) * 1_000_000
    block = SessionBlock(np.array([len(row) for row in times]), first_row, 100, flat)
    cut = SplitByTime(validation_from=10, test_from=20, targets=targets).cut(block)
    expected = {"train": [], "validation": [], "test": []}
    for session, row in enumerate(times, start=first_row):
        seen = sum(time < 10 for time in row)
        if seen >= 2:
            expected["train"].append((session, seen))
        for name, low, high in (("validation", 10, 20), ("test", 20, 99)):
            asked = [place for place, time in enumerate(row) if low <= time < high and place > 0]
            expected[name] += [(session, place) for place in (asked if targets == "every" else asked[-1:])]
    assert {name: pairs(cut, name) for name in cut} == expected


def test_no_track_that_is_learned_from_came_after_one_that_is_asked_for():
    times = np.random.default_rng(0).integers(0, 1000, (200, 8)).tolist()
    log = log_of([sorted(row) for row in times])
    data = PreparedData.from_log(log, SessionFilter(), SplitByTime(400, 700, targets="every"))
    clock = log.sort("session_id", "timestamp", maintain_order=True)["timestamp"].to_numpy()
    train = data.views["train"]
    starts = data.store.offsets[train.rows]
    learned = np.concatenate([clock[a : a + n] for a, n in zip(starts, train.ends, strict=True)])
    assert learned.max() < 400 <= clock[data.views["validation"].targets].min()
    assert clock[data.views["validation"].targets].max() < 700 <= clock[data.views["test"].targets].min()


def test_where_positions_rule_a_track_behind_a_late_one_is_late_too():
    block = SessionBlock(np.array([4]), 0, 1, np.array([5, 25, 6, 12]) * 1_000_000)
    cut = SplitByTime(10, 20, targets="every").cut(block)
    assert (pairs(cut, "train"), pairs(cut, "validation"), pairs(cut, "test")) == (
        [], [], [(0, 1), (0, 2), (0, 3)],
    )  # fmt: skip


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1970, 1, 1, 0, 0, 10),
        datetime(1970, 1, 1, 1, 0, 10, tzinfo=timezone(timedelta(hours=1))),
        "1970-01-01T00:00:10",
        "1970-01-01 01:00:10+01:00",
        10,
        10.0,
    ],
)
def test_a_moment_may_be_a_time_a_text_or_seconds(moment):
    block = SessionBlock(np.array([3]), 0, 1, np.array([9_000_000, 9_999_999, 10_000_000]))
    assert pairs(SplitByTime(moment, 1e9).cut(block), "train") == [(0, 2)]


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ((20, 10), ValueError, "`test_from` must be after"),
        ((10, 10), ValueError, "`test_from` must be after"),
        (("last July", 10), ValueError, "`validation_from` must be a time as in"),
        ((10, None), TypeError, "`test_from` must be a number"),
        ((10, float("nan")), ValueError, "`test_from` must be"),
        ((10, 20, "first"), ValueError, "`targets` must be one of"),
    ],
)
def test_wrong_moments_are_errors(bounds, error, message):
    with pytest.raises(error, match=message):
        SplitByTime(*bounds)


def test_a_split_by_time_without_a_time_says_so():
    log = pl.DataFrame({"session_id": 1, "item_id": [1, 2, 3], "feedback": 1.0, "position": [1, 2, 3]})
    with pytest.raises(ValueError, match="must have a column 'timestamp' for SplitByTime"):
        SessionDataModule(log, split=SplitByTime(1, 2)).setup()


@given(
    sessions=st.integers(10, 200),
    validation=st.floats(0.1, 0.4),
    test=st.floats(0.1, 0.4),
    seed=st.integers(0, 9),
    at=st.integers(1, 9),
)
def test_sessions_are_held_out_whole_in_the_asked_shares_whatever_the_blocks(
    sessions, validation, test, seed, at
):
    split = SplitBySession(validation, test, targets="every", seed=seed)
    lengths = np.random.default_rng(seed).integers(2, 6, sessions)
    whole = split.cut(SessionBlock(lengths, 0, sessions))
    parts = [
        split.cut(SessionBlock(lengths[:at], 0, sessions)),
        split.cut(SessionBlock(lengths[at:], at, sessions)),
    ]
    owners = {}
    for name in whole:
        joined = [np.concatenate([part[name][n] for part in parts]) for n in range(2)]
        assert [one.tolist() for one in joined] == [one.tolist() for one in whole[name]]
        owners[name] = set(whole[name][0].tolist())
    assert sorted(row for rows in owners.values() for row in rows) == list(range(sessions))
    assert len(owners["validation"]) == round(sessions * validation)
    assert len(owners["test"]) == round(sessions * test)
    for session in owners["test"]:
        rows, ends = whole["test"]
        assert ends[rows == session].tolist() == list(range(1, lengths[session]))


def test_the_last_position_alone_may_be_asked_for():
    cut = SplitBySession(0.5, 0.4).cut(SessionBlock(np.arange(2, 12), 0, 10))
    for name in ("validation", "test"):
        rows, ends = cut[name]
        assert (ends == np.arange(2, 12)[rows] - 1).all()


@pytest.mark.parametrize(
    "setting",
    [
        {"validation_share": -0.1},
        {"test_share": 1.1},
        {"validation_share": 0.5, "test_share": 0.6},
        {"seed": -1},
        {"targets": "all"},
    ],
)
def test_shares_out_of_range_are_errors(setting):
    with pytest.raises(ValueError, match="must be"):
        SplitBySession(**setting)


def test_sessions_too_short_for_a_split_are_refused_before_anything_is_read():
    log = log_of([[1, 2, 3]])
    with pytest.raises(ValueError, match="`min_session_length` must be at least 3, got 2"):
        SessionDataModule(log, min_session_length=2)
    SessionDataModule(log, min_session_length=2, split=SplitBySession())
    with pytest.raises(TypeError, match="`split` must be LeaveOneOut"):
        SessionDataModule(log, split="time")


def test_a_part_that_is_left_empty_is_named():
    with pytest.raises(ValueError, match="`split` must leave something for validation, got nothing"):
        SessionDataModule(log_of([[1, 2, 3], [1, 2, 40]]), split=SplitByTime(10, 20)).setup()


@pytest.mark.parametrize(
    ("split", "told"),
    [(LeaveOneOut(), "Leave-one-out leaks"), (SplitBySession(0.2, 0.2), "A split by session leaks")],
)
def test_what_a_split_leaks_is_told(split, told):
    assert told in str(PreparedData.from_log(log_of([[1, 2, 3]] * 10), SessionFilter(), split))


def test_no_leak_is_told_of_a_split_by_time():
    data = PreparedData.from_log(log_of([[1, 2, 13, 25]] * 3), SessionFilter(), SplitByTime(10, 20))
    assert "leak" not in str(data)


def test_a_moment_is_told_to_the_microsecond():
    block = SessionBlock(np.array([3]), 0, 1, np.array([0, 1, 2]))
    moment = datetime(1970, 1, 1, 0, 0, 0, 2)
    assert pairs(SplitByTime(moment, 1).cut(block), "train") == [(0, 2)]
