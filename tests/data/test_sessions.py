import sys
from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import label_by_next_play, sessionise
from skipcl_lightning.data.canonical_table import in_listening_order
from skipcl_lightning.data.prepare.sessions import join_histories, times_fall

START = datetime(2024, 5, 1)
PLAYS = st.lists(
    st.tuples(st.sampled_from(["u", "v"]), st.integers(0, 3000), st.integers(0, 500)), min_size=1, max_size=25
)


def cut_by_hand(plays: list[tuple[str, int, int]], gap_seconds: float, timed: bool) -> list[str]:
    """The session of each play, sorted by user and time, as a plain loop finds it."""
    names = []
    user, number, end = None, 0, 0
    for who, start, length in sorted(plays, key=lambda play: play[:2]):
        if who != user:
            user, number = who, 0
        elif start - end > gap_seconds:
            number += 1
        end = start + length if timed else start
        names.append(f"{user}/{number}")
    return names


@pytest.mark.parametrize(
    "work", [lambda t: sessionise(t, gap_minutes=1), lambda t: label_by_next_play(t, skip_seconds=1)]
)
@pytest.mark.parametrize("users", [1, 3])
def test_plays_at_one_time_stay_in_their_order(work, users):
    rows = [{"user_id": n % users, "timestamp": n % 7, "item_id": n} for n in range(200)]
    expected = sorted(range(200), key=lambda n: (n % users, n % 7))  # Python's sort is stable
    assert work(pl.DataFrame(rows)).collect()["item_id"].to_list() == expected


@given(plays=PLAYS, gap=st.sampled_from([0.5, 1.0, 10.0]), timed=st.booleans(), kind=st.sampled_from("ifd"))
def test_sessions_are_those_of_a_plain_loop_whatever_the_clock(plays, gap, timed, kind):
    convert = {"i": int, "f": float, "d": lambda seconds: START + timedelta(seconds=seconds)}[kind]
    users, starts, lengths = zip(*plays, strict=True)
    frame = pl.DataFrame({"user_id": users, "timestamp": list(map(convert, starts)), "length": lengths})
    cut = sessionise(frame, gap_minutes=gap, duration="length" if timed else None).collect()
    assert cut["session_id"].to_list() == cut_by_hand(plays, gap * 60, timed)


def test_a_pause_of_exactly_the_gap_is_within_a_session():
    frame = pl.DataFrame({"timestamp": [1_700_000_000.1, 1_700_000_060.1, 1_700_000_120.2]})
    assert sessionise(frame, gap_minutes=1).collect()["session_id"].to_list() == [0, 0, 1]


@pytest.mark.parametrize("dtype", [pl.Int16, pl.Int32, pl.UInt32, pl.Int64, pl.Float32, pl.Float64])
def test_lengths_of_any_type_of_number_end_their_plays(dtype):
    lengths = pl.Series([3900, None, 50], dtype=dtype)
    frame = pl.DataFrame({"timestamp": [0, 4000, 4600], "length": lengths})
    cut = sessionise(frame, gap_minutes=5, duration="length").collect()
    assert cut["session_id"].to_list() == [0, 0, 1]


def test_a_length_that_is_nan_counts_as_0():
    frame = pl.DataFrame({"timestamp": [0, 60, 130], "length": [float("nan"), 10.0, None]})
    cut = sessionise(frame, gap_minutes=1, duration="length").collect()
    assert cut["session_id"].to_list() == [0, 0, 0]


@pytest.mark.parametrize("length", [timedelta(seconds=3), "3"])
def test_lengths_that_are_no_numbers_are_an_error(length):
    frame = pl.DataFrame({"timestamp": [0, 4000], "length": [length, length]})
    with pytest.raises(ValueError, match="`duration` must name a column of seconds, got 'length' of "):
        sessionise(frame, gap_minutes=1, duration="length")


def test_equal_times_stay_in_the_order_of_the_rows():
    frame = pl.DataFrame({"timestamp": [5, 5, 0, 5], "item_id": ["z", "a", "first", "m"]})
    assert sessionise(frame, gap_minutes=1).collect()["item_id"].to_list() == ["first", "z", "a", "m"]


def test_the_names_of_earlier_sessions_stay_when_plays_are_added():
    frame = pl.DataFrame({"user_id": [2, 2], "timestamp": [0, 9000]})
    longer = pl.concat([pl.DataFrame({"user_id": [1, 2], "timestamp": [50, 90_000]}), frame])
    before = sessionise(frame, gap_minutes=1).collect()["session_id"].to_list()
    assert before == ["2/0", "2/1"]
    assert set(before) < set(sessionise(longer, gap_minutes=1).collect()["session_id"])


def test_columns_that_are_missing_wrong_or_there_already_are_errors():
    frame = pl.DataFrame({"timestamp": [1], "text": ["x"]})
    with pytest.raises(ValueError, match=r"'timestamp', got text \(String\)"):
        sessionise(frame.drop("timestamp"), gap_minutes=1)
    with pytest.raises(ValueError, match="'length'"):
        sessionise(frame, gap_minutes=1, duration="length")
    with pytest.raises(ValueError, match="must not have a column 'session_id'"):
        sessionise(frame.with_columns(session_id=1), gap_minutes=1)
    with pytest.raises(ValueError, match="`timestamp` must be a Datetime or a number"):
        sessionise(frame.select(pl.col("text").alias("timestamp")), gap_minutes=1)
    with pytest.raises(TypeError, match=r"`frame` must be a polars, pandas or Arrow table .*, got list"):
        sessionise([1], gap_minutes=1)
    with pytest.raises(ValueError, match="`gap_minutes` must be in"):
        sessionise(frame, gap_minutes=0)


@given(
    plays=PLAYS, seconds=st.sampled_from([0.5, 1.0, 100.0]), kind=st.sampled_from("ifd"), users=st.booleans()
)
def test_skips_told_from_the_next_play_are_those_of_a_plain_loop(plays, seconds, kind, users):
    convert = {"i": int, "f": float, "d": lambda start: START + timedelta(seconds=start)}[kind]
    names = [who if users else "u" for who, _, _ in plays]
    frame = pl.DataFrame(
        {"user_id": names, "timestamp": [convert(play[1]) for play in plays], "row": range(len(plays))}
    )
    labelled = label_by_next_play(frame if users else frame.drop("user_id"), skip_seconds=seconds).collect()
    order = sorted(range(len(plays)), key=lambda row: (names[row], plays[row][1]))
    expected = []
    for row, after in zip(order, [*order[1:], None], strict=True):
        if after is None or names[after] != names[row]:
            expected.append(0.0)
        else:
            expected.append(-1.0 if plays[after][1] - plays[row][1] <= seconds else 1.0)
    assert labelled["row"].to_list() == order
    assert labelled["feedback"].to_list() == expected
    assert labelled.schema["feedback"] == pl.Float32


def test_a_track_before_a_long_pause_counts_as_listened_to_and_the_last_one_as_unknown():
    frame = pl.DataFrame({"user_id": [1, 1, 2], "timestamp": [0, 100_000, 100_001]})
    assert label_by_next_play(frame, skip_seconds=30).collect()["feedback"].to_list() == [1, 0, 0]


@pytest.mark.parametrize("longest", [1e300, sys.float_info.max])
def test_no_pause_is_longer_than_the_largest_number(longest):
    plays = pl.DataFrame({"timestamp": [-(10**11), 10**11]})
    assert sessionise(plays, gap_minutes=longest).collect()["session_id"].to_list() == [0, 0]
    assert label_by_next_play(plays, skip_seconds=longest).collect()["feedback"].to_list() == [-1, 0]


@pytest.mark.parametrize(
    "work", [lambda t: sessionise(t, gap_minutes=1), lambda t: label_by_next_play(t, skip_seconds=1)]
)
def test_times_that_are_missing_or_compact_dates_are_errors(work):
    for times in ([0, None, 2], [0.0, float("nan"), 2.0], [0.0, float("inf"), 2.0]):
        with pytest.raises(ValueError, match=r"^`frame` must have a time .*none in 1 of 3 rows\. Drop"):
            work(pl.DataFrame({"timestamp": times})).collect()
    with pytest.raises(ValueError, match=r"^`frame` must have seconds .* dates such as 20240131\. Convert"):
        work(pl.DataFrame({"timestamp": [20240131, 20240201]})).collect()


def test_a_history_that_cannot_be_labelled_is_an_error():
    frame = pl.DataFrame({"user_id": ["u"], "timestamp": [1]})
    with pytest.raises(ValueError, match=r"'timestamp', got user_id \(String\)"):
        label_by_next_play(frame.drop("timestamp"), skip_seconds=1)
    with pytest.raises(ValueError, match="must not have a column 'feedback'"):
        label_by_next_play(frame.with_columns(feedback=1), skip_seconds=1)
    with pytest.raises(ValueError, match="`timestamp` must be a Datetime or a number"):
        label_by_next_play(frame.with_columns(timestamp=pl.lit("now")), skip_seconds=1)
    with pytest.raises(ValueError, match="`skip_seconds` must be in"):
        label_by_next_play(frame, skip_seconds=0)
    with pytest.raises(TypeError, match="`frame` must be a polars"):
        label_by_next_play([1], skip_seconds=1)


def test_parts_of_seconds_are_rounded_and_not_cut_off():
    # 0.29 s is 289999.99… microseconds in binary.
    plays = pl.DataFrame({"item_id": [1, 2], "timestamp": [0.0, 60.29]})
    cut = sessionise(plays, gap_minutes=60.29 / 60)
    assert cut.collect()["session_id"].to_list() == [0, 0]


def test_times_fall_where_nearly_all_neighbours_of_one_owner_do():
    assert times_fall(pl.Series([9, 5, 5, 2, 1]))
    assert not times_fall(pl.Series([9, 5, 8, 2, 1]))
    assert not times_fall(pl.Series([9, 5, 5, 2]))
    assert not times_fall(pl.Series([9, 8, 7, 6]), pl.Series([1, 2, 3, 4]))


def test_equal_times_of_a_file_that_runs_newest_first_are_reversed():
    history = pl.LazyFrame({"item_id": [*"edcba"], "timestamp": [9, 5, 5, 2, 1]})
    joined = join_histories([history])
    assert joined.collect()["tie_order"].to_list() == [0, -1, -2, -3, -4]
    assert "".join(in_listening_order(joined).collect()["item_id"]) == "abcde"


@pytest.mark.parametrize("users", [[None, "u", None], ["", "u", " "], [None, 1, None]])
@pytest.mark.parametrize(
    "work", [lambda t: sessionise(t, gap_minutes=1), lambda t: label_by_next_play(t, skip_seconds=1)]
)
def test_plays_without_a_user_are_refused_and_counted_where_users_are_told_apart(work, users):
    made = work(pl.DataFrame({"user_id": users, "timestamp": [0, 1, 2], "item_id": 7}))
    for lazy in (made, made.filter(pl.col("user_id").is_not_null()), made.select("item_id")):
        with pytest.raises(ValueError, match=r"^`frame` must have a user .*none in 2 of 3 rows\. Drop"):
            lazy.collect()
