import math
from collections import Counter, defaultdict
from datetime import datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import (
    DropReport,
    SessionDataModule,
    SessionFilter,
    prepare_sessions,
    prepare_store,
)
from skipcl_lightning.data.prepare.preparation import FeedbackWarning

ROW = st.tuples(st.integers(0, 5), st.integers(0, 6), st.sampled_from([-1.0, -0.5, 0.0, 1.0]))


def make_log(**changes: object) -> pl.DataFrame:
    columns = {
        "session_id": ["s"] * 3,
        "item_id": ["a", "b", "c"],
        "feedback": [1.0, -1.0, 0.0],
        "position": [1, 2, 3],
    }
    return pl.DataFrame(columns | changes)


def filter_by_hand(
    rows: list[tuple], shortest: int, rarest: int, require_skip: bool, threshold: float
) -> list[tuple]:
    """Drop one offending row or session at a time until none is left."""
    rows = list(rows)
    while True:
        counts = Counter(item for _, item, *_ in rows)
        rare = [row for row in rows if counts[row[1]] < rarest]
        if rare:
            rows.remove(rare[0])
            continue
        sessions = defaultdict(list)
        for session, _, feedback, *_ in rows:
            sessions[session].append(feedback < threshold)
        bad = [
            session
            for session, skips in sessions.items()
            if len(skips) < shortest or all(skips) or (require_skip and not any(skips))
        ]
        if not bad:
            return rows
        rows = [row for row in rows if row[0] != bad[-1]]


@pytest.mark.filterwarnings("ignore::skipcl_lightning.data.prepare.preparation.FeedbackWarning")
@given(
    rows=st.lists(ROW, max_size=60),
    rarest=st.integers(1, 4),
    shortest=st.integers(3, 5),
    require_skip=st.booleans(),
    threshold=st.sampled_from([-0.5, 0.0, 0.5]),
)
def test_filters_keep_what_a_loop_that_drops_one_offender_at_a_time_keeps(
    rows, rarest, shortest, require_skip, threshold
):
    rows = [(*row, place) for place, row in enumerate(rows)]
    schema = {"session_id": pl.Int64, "item_id": pl.Int64, "feedback": pl.Float64, "position": pl.Int64}
    log = pl.DataFrame(rows, schema=schema, orient="row")
    expected = filter_by_hand(rows, shortest, rarest, require_skip, threshold)
    session_filter = SessionFilter(
        min_session_length=shortest,
        min_item_count=rarest,
        require_skip=require_skip,
        skip_threshold=threshold,
    )
    if not expected:
        with pytest.raises(ValueError, match="got none"):
            prepare_sessions(log, session_filter)
        return
    table, report = prepare_sessions(log, session_filter)
    assert table.select(*schema).rows() == sorted(expected, key=lambda row: (row[0], row[3]))
    assert report.rows_read - report.rows_of_rare_items - report.rows_of_dropped_sessions == report.rows_kept
    assert report.sessions_kept == report.sessions_read - (
        report.sessions_too_short + report.sessions_without_listened + report.sessions_without_skip
    )


def test_rows_are_sorted_by_position_even_where_a_time_says_otherwise():
    log = make_log(position=[3, 1, 2], timestamp=[1, 2, 3])
    assert prepare_sessions(log)[0]["item_id"].to_list() == ["b", "c", "a"]


def test_equal_times_keep_the_order_of_the_rows():
    log = make_log(item_id=["z", "a", "m"], timestamp=[datetime(2024, 5, 1)] * 3).drop("position")
    assert prepare_sessions(log)[0]["item_id"].to_list() == ["z", "a", "m"]


def test_an_identical_row_is_dropped_and_counted_and_a_repeat_at_another_place_is_not():
    log = pl.concat([make_log(item_id=["a", "a", "c"]), make_log()[2:]])
    table, report = prepare_sessions(log)
    assert (table["item_id"].to_list(), report.duplicate_rows) == (["a", "a", "c"], 1)


def test_each_reason_is_counted_once():
    lists = {
        "kept": (["a", "a", "a"], [1, -1, 0]),
        "listened": (["a", "b", "a"], [1, 1, 1]),
        "skipped": (["a", "b", "a"], [-1, -1, -1]),
        "short": (["a", "b", None], [1, -1, 1]),
        "rare": (["a", "b", "once"], [1, -1, 1]),
        "empty": ([None, None, None], [1, 1, 1]),
    }
    log = pl.concat(
        make_log(
            session_id=[name] * 3,
            item_id=pl.Series(items, dtype=pl.String),
            feedback=[float(f) for f in signal],
        )
        for name, (items, signal) in lists.items()
    )
    table, report = prepare_sessions(log, SessionFilter(min_item_count=2, require_skip=True))
    assert table["session_id"].unique().to_list() == ["kept"]
    assert report == DropReport(
        rows_read=18,
        sessions_read=6,
        rows_without_item=4,
        duplicate_rows=0,
        rows_of_rare_items=1,
        rows_of_dropped_sessions=10,
        sessions_too_short=3,
        sessions_without_listened=1,
        sessions_without_skip=1,
        rows_kept=3,
        sessions_kept=1,
        items_kept=1,
        share_skipped=1 / 3,
        share_unknown=1 / 3,
    )
    assert "4 rows without an item, 1 row of rare items" in str(report)


def test_a_report_without_drops_says_so():
    assert "Dropped nothing." in str(prepare_sessions(make_log())[1])


@pytest.mark.parametrize("value", [1.5, -1.0001, math.nan, math.inf])
def test_feedback_that_is_no_number_in_range_is_an_error_that_names_it(value):
    with pytest.raises(ValueError, match=rf"column 'feedback', got {value} in session 's'"):
        prepare_sessions(make_log(feedback=[0.0, value, 1.0]))


def test_feedback_that_is_null_is_unknown():
    assert prepare_sessions(make_log(feedback=[None, 1, -1]))[0]["feedback"].to_list() == [0, 1, -1]


def test_a_null_session_is_an_error():
    with pytest.raises(ValueError, match="null or blank in at least 1"):
        prepare_sessions(make_log(session_id=["s", None, "s"]))


@pytest.mark.parametrize(
    ("column", "values"),
    [("position", [1, None, 3]), ("timestamp", [1, None, 3]), ("timestamp", [1.0, math.nan, 3.0])],
)
def test_a_row_without_its_place_in_time_is_an_error(column, values):
    with pytest.raises(ValueError, match=f"column {column!r}, got .* in session 's'"):
        prepare_sessions(make_log(**{column: values}))


def test_two_different_rows_at_one_position_are_an_error():
    with pytest.raises(ValueError, match="column 'position', got 2 in session 's'"):
        prepare_sessions(make_log(position=[1, 2, 2]))


def test_a_session_of_two_users_is_an_error():
    with pytest.raises(ValueError, match="unique over users"):
        prepare_sessions(make_log(user_id=[1, 1, 2]))


def test_nothing_left_is_an_error_that_says_which_filter_took_what():
    with pytest.raises(ValueError, match="1 session without a listened track"):
        prepare_sessions(make_log(feedback=[-1.0] * 3))


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (make_log().drop("item_id"), "the column 'item_id'"),
        (make_log().drop("position"), "'position' or 'timestamp'"),
        (make_log(position=[1.0, 2.0, 3.0]), "an integer type in column 'position', got Float64"),
        (make_log(timestamp=["a", "b", "c"]), "Datetime or a number of seconds in column 'timestamp'"),
        (make_log(item_id=[0.5, 1.5, 2.5]), "String or an integer type in column 'item_id'"),
        (make_log(feedback=[True, False, True]), "a number in"),
        (make_log(item_id=["a", "b", "c"], user_id=[[1], [2], [3]]), "column 'user_id'"),
        (make_log().lazy().select(pl.col("nowhere")), "whose columns can be read"),
    ],
)
def test_tables_of_another_form_are_errors(log, message):
    with pytest.raises(ValueError, match=message):
        prepare_sessions(log)


def test_a_table_that_is_no_polars_frame_is_an_error():
    with pytest.raises(TypeError, match=r"`log` must be a polars, pandas or Arrow table .*, got dict"):
        prepare_sessions({"session_id": [1]})


@pytest.mark.parametrize(
    "setting",
    [
        {"min_session_length": 1},
        {"min_item_count": 0},
        {"skip_threshold": -1.0},
        {"skip_threshold": math.nan},
    ],
)
def test_filter_settings_out_of_range_are_errors(setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must be"):
        SessionFilter(**setting)


def test_a_number_of_skips_is_no_answer_to_whether_one_is_required():
    with pytest.raises(TypeError, match="`require_skip` must be True or False, got 2"):
        SessionFilter(require_skip=2)


def test_a_time_that_never_comes_is_an_error():
    log = make_log().drop("position").with_columns(timestamp=pl.Series([0.0, math.inf, 1.0]))
    with pytest.raises(ValueError, match="a finite value in column 'timestamp', got inf"):
        prepare_sessions(log)


@pytest.mark.parametrize("dtype", [pl.Int64, pl.Float64])
@pytest.mark.parametrize("prepare", [prepare_sessions, lambda log: SessionDataModule(log).vocabulary])
def test_compact_dates_are_no_seconds(prepare, dtype):
    days = pl.Series([20240131, 20240201, 20240202], dtype=dtype)
    log = make_log().drop("position").with_columns(timestamp=days)
    with pytest.raises(ValueError, match=r"`log` must have seconds .* 20240131\. Convert .*to_datetime"):
        prepare(log)
    times = pl.col("timestamp").cast(pl.Int64).cast(pl.String).str.to_datetime("%Y%m%d")
    assert prepare_sessions(log.with_columns(times))[1].rows_kept == 3


def test_a_user_who_is_unknown_in_a_part_of_a_session_is_another_one():
    with pytest.raises(ValueError, match="one value in a session in column 'user_id'"):
        prepare_sessions(make_log(user_id=[1, None, 1]))


@pytest.mark.parametrize("feedback", [[0.0, 1.0, 1.0], [0.2, 0.9, 1.0], [None, 1.0, 1.0], [1, 0, 1]])
def test_feedback_that_varies_within_0_and_1_is_warned_of_once_with_the_cure(feedback, tmp_path):
    log = make_log(feedback=pl.Series(feedback, dtype=pl.Float64))
    cure = r"no skip: only feedback below 0 is one\. .*skipped=.*played=.*`2 \* x - 1`"
    with pytest.warns(FeedbackWarning, match=cure) as caught:
        prepare_sessions(log)
    assert len(caught) == 1
    with pytest.warns(FeedbackWarning, match=cure) as caught:
        prepare_store(log, tmp_path / "store", rows_in_memory=1)
    assert len(caught) == 1


@pytest.mark.parametrize("feedback", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, -0.1]])
def test_constant_feedback_and_feedback_with_a_skip_are_not_warned_of(feedback):
    prepare_sessions(make_log(feedback=feedback))  # pytest makes every warning an error


def test_feedback_below_a_threshold_above_0_is_a_skip_and_not_warned_of():
    _, report = prepare_sessions(make_log(feedback=[0.0, 1.0, 1.0]), SessionFilter(skip_threshold=0.5))
    assert report.share_skipped == pytest.approx(1 / 3)
