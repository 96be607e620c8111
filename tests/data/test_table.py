import gzip
from datetime import datetime

import polars as pl
import pytest

from skipcl_lightning.data import prepare_sessions, read_table


def test_columns_are_mapped_to_their_canonical_names_and_the_rest_is_left_out():
    log = pl.DataFrame(
        {"s": [1], "t": ["a"], "liked": [0.5], "n": [4], "who": ["u"], "when": [9.5], "extra": [0]}
    )
    table = read_table(
        log, item="t", session="s", feedback="liked", position="n", user="who", timestamp="when"
    ).collect()
    assert table.columns == ["session_id", "item_id", "feedback", "position", "timestamp", "user_id"]
    assert table.row(0) == (1, "a", 0.5, 4, 9.5, "u")
    assert table.schema["feedback"] == pl.Float32


def test_feedback_that_is_null_or_absent_is_unknown():
    log = pl.DataFrame({"s": [1, 1], "t": ["a", "b"], "f": [None, -1.0], "n": [1, 2]})
    assert read_table(log, item="t", session="s", feedback="f", position="n").collect()[
        "feedback"
    ].to_list() == [0, -1]
    assert read_table(log, item="t", session="s", position="n").collect()["feedback"].to_list() == [0, 0]


def test_one_column_may_serve_twice():
    log = pl.DataFrame({"user": ["u"], "t": ["a"], "n": [1]})
    table = read_table(log, item="t", session="user", user="user", position="n").collect()
    assert table.row(0, named=True)["session_id"] == table.row(0, named=True)["user_id"] == "u"


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_csv_files_keep_ids_as_strings_and_parse_dates(tmp_path, suffix):
    text = b"track\tsession\twhen\n007\t01\t2024-05-01T10:00:00\n8\t01\t2024-05-01T10:03:00\n"
    (tmp_path / f"log{suffix}").write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    table = read_table(tmp_path, item="track", session="session", timestamp="when", separator="\t").collect()
    assert table["item_id"].to_list() == ["007", "8"]
    assert table["session_id"].to_list() == ["01", "01"]
    assert table["timestamp"].to_list() == [datetime(2024, 5, 1, 10), datetime(2024, 5, 1, 10, 3)]


def test_parquet_files_are_read_one_after_the_other(tmp_path):
    for name, item in [("b", 2), ("a", 1)]:
        pl.DataFrame({"t": [item], "s": [1], "n": [item]}).write_parquet(tmp_path / f"{name}.parquet")
    assert read_table(tmp_path, item="t", session="s", position="n").collect()["item_id"].to_list() == [1, 2]


def test_sessions_are_cut_within_users_where_none_are_given():
    log = pl.DataFrame({"t": ["a", "b", "c", "d"], "u": ["x", "y", "x", "x"], "when": [0, 1, 60, 4000]})
    table = read_table(log, item="t", user="u", timestamp="when", gap_minutes=30).collect()
    assert dict(zip(table["item_id"], table["session_id"], strict=True)) == {
        "a": "x/0", "c": "x/0", "d": "x/1", "b": "y/0",
    }  # fmt: skip


def test_a_missing_column_is_an_error_that_lists_those_there_are(tmp_path):
    log = pl.DataFrame({"s": [1], "t": ["a"]})
    with pytest.raises(ValueError, match=r"'n'.*s \(Int64\), t \(String\)"):
        read_table(log, item="t", session="s", position="n")
    (tmp_path / "log.csv").write_text("s,t\n1,a\n")
    with pytest.raises(ValueError, match=r"'n'.*with s, t"):
        read_table(tmp_path, item="t", session="s", position="n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`session` must name a column"),
        ({"timestamp": "n"}, "`session` must name a column"),
        ({"gap_minutes": 3.0, "position": "n"}, "`session` must name a column"),
        ({"session": "s"}, "`timestamp` or `position` must name a column"),
        ({"session": "s", "timestamp": "n", "gap_minutes": 3.0}, "`gap_minutes` must be None"),
        ({"timestamp": "n", "gap_minutes": -3.0}, "`gap_minutes` must be in"),
        ({"timestamp": "t", "gap_minutes": 3.0}, "`timestamp` must be a Datetime or a number"),
    ],
)
def test_settings_that_leave_sessions_or_order_open_are_errors(settings, message):
    log = pl.DataFrame({"s": [1], "t": ["a"], "n": [1]})
    with pytest.raises(ValueError, match=message):
        read_table(log, item="t", **settings)


def test_sources_that_are_no_tables_are_errors(tmp_path):
    with pytest.raises(TypeError, match="`source` must be paths or a polars frame"):
        read_table(3, item="t", session="s", position="n")
    (tmp_path / "log.csv").write_text("s,t,n\n1,a,1\n")
    (tmp_path / "log.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="CSV or Parquet files, got both"):
        read_table(tmp_path, item="t", session="s", position="n")
    with pytest.raises(ValueError, match="`source` must be a table whose columns can be read"):
        read_table(tmp_path / "log.parquet", item="t", session="s", position="n")


def test_a_value_that_breaks_the_guessed_type_is_told_at_the_preparation(tmp_path):
    rows = [f"1,a,{n}" for n in range(10_001)]
    (tmp_path / "log.csv").write_text("\n".join(["s,t,n", *rows, "1,a,late"]))
    with pytest.raises(ValueError, match="to its last row"):
        prepare_sessions(read_table(tmp_path, item="t", session="s", position="n"))


@pytest.mark.real_data
def test_real_parquet_logs_become_sessions(real_data):
    plays = real_data / "30music" / "sessions.parquet"
    log = read_table(plays, item="item_id", session="session_id", timestamp="timestamp", user="user_id")
    assert prepare_sessions(log)[1].rows_read == 86_468
    ratings = pl.scan_parquet(real_data / "ml-100k" / "ratings.parquet").with_columns(
        ((pl.col("rating") - 3) / 2).alias("liking")
    )
    log = read_table(ratings, item="item_id", session="user_id", timestamp="timestamp", feedback="liking")
    table, report = prepare_sessions(log)
    assert (report.rows_read, report.sessions_kept, report.items_kept) == (100_000, 943, 1682)
    assert report.share_skipped == pytest.approx(0.175, abs=0.001)
    assert table.height == 100_000
