import gzip
import json
import re
from datetime import UTC, date, datetime
from functools import partial

import polars as pl
import pyarrow as pa
import pytest

from skipcl_lightning.data import prepare_sessions, prepare_store, read_table

utc = partial(datetime, tzinfo=UTC)


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


def test_plays_without_a_user_do_not_become_sessions_of_one(tmp_path):
    plays = pl.DataFrame({"t": "a", "who": ["u", None, " ", "u"], "when": [0, 1, 2, 3], "s": 1})
    plays.write_parquet(tmp_path / "log.parquet")
    plays.write_csv(tmp_path / "log.csv")
    for source in (plays, tmp_path / "log.parquet", tmp_path / "log.csv"):
        settings = {"item": "t", "user": "who", "timestamp": "when"}
        cut = read_table(source, gap_minutes=30, **settings)
        message = "`source` must have a user in every row .* in 2 of 4 rows.* column of sessions as `session`"
        with pytest.raises(ValueError, match=message):
            cut.collect()
        with pytest.raises(ValueError, match=message):
            prepare_sessions(cut)
        assert read_table(source, session="s", **settings).collect()["user_id"].null_count() == 2


def test_any_table_is_read(tmp_path):
    rows = [{"s": "1", "t": "a", "n": 4}, {"s": "1", "t": "", "n": 5}]
    expected = read_table(pl.DataFrame(rows), item="t", session="s", position="n").collect()
    assert expected["item_id"].to_list() == ["a", None]
    for source in (rows, pa.table(pl.DataFrame(rows).to_dict(as_series=False)), pl.LazyFrame(rows)):
        assert read_table(source, item="t", session="s", position="n").collect().equals(expected)
    with pytest.raises(ValueError, match="at least one file"):
        read_table([], item="t", session="s", position="n")


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
    assert table["timestamp"].to_list() == [utc(2024, 5, 1, 10), utc(2024, 5, 1, 10, 3)]


def test_parquet_files_are_read_one_after_the_other(tmp_path):
    for name, item in [("b", 2), ("a", 1)]:
        pl.DataFrame({"t": [item], "s": [1], "n": [item]}).write_parquet(tmp_path / f"{name}.parquet")
    assert read_table(tmp_path, item="t", session="s", position="n").collect()["item_id"].to_list() == [1, 2]
    with pytest.raises(ValueError, match=r"`source` must have the column 'when', got .* in '.*parquet'"):
        read_table(tmp_path, item="t", session="s", position="when")


def test_parquet_files_of_other_types_are_an_error_that_names_column_and_files(tmp_path):
    for name, zone in [("a", "UTC"), ("b", "Europe/Berlin")]:
        frame = pl.DataFrame({"t": [1], "s": [1], "when": [datetime(2024, 5, 1)]})
        zoned = frame.with_columns(pl.col("when").dt.replace_time_zone(zone))
        zoned.write_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"one type in column 'when', got .*UTC.*a\.parquet.*Berlin.*b\.par"):
        read_table(tmp_path, item="t", session="s", timestamp="when")


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


def test_a_text_in_place_of_names_is_no_list_of_its_letters():
    log = pl.DataFrame({"s": [1], "t": ["a"], "n": [1], "k": [2], "d": [3]})
    with pytest.raises(TypeError, match="`columns` must be a list of names, got 'kd'"):
        read_table(log, item="t", session="s", position="n", columns="kd")


@pytest.mark.parametrize("form", ["frame", "parquet"])
def test_positions_in_text_are_an_error_since_10_would_come_before_9(tmp_path, form):
    log = source = pl.DataFrame({"s": 1, "t": ["a", "b"], "n": ["10", "9"]})
    if form == "parquet":
        source = tmp_path / "log.parquet"
        log.write_parquet(source)
    with pytest.raises(
        ValueError, match=r"`position` must name a column of numbers, got 'n' of String.*Int64"
    ):
        read_table(source, item="t", session="s", position="n")


@pytest.mark.parametrize("form", ["csv", "frame", "floats"])
def test_plays_without_a_time_do_not_join_the_first_session(tmp_path, form):
    log = source = pl.DataFrame({"u": "x", "t": ["a", "b", "c"], "n": [0, None, 60]})
    if form == "csv":
        source = tmp_path / "log.csv"
        log.write_csv(source)
    elif form == "floats":
        source = log.with_columns(pl.col("n").cast(pl.Float64).fill_null(float("nan")))
    cut = read_table(source, item="t", user="u", timestamp="n", gap_minutes=30)
    with pytest.raises(ValueError, match=r"`source` must have a time in every row .* none in 1 of 3 rows"):
        cut.collect()


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_bytes_that_are_no_text_are_an_error_with_the_file_wherever_they_stand(tmp_path, engine):
    file = tmp_path / "log.csv"
    rows = "".join(f"s,a{n},{n}\n" for n in range(60_000))
    settings = {"item": "t", "session": "s", "position": "n"}
    file.write_bytes(f"s,t,n\n{rows}s,caf\N{REPLACEMENT CHARACTER},60000\n".encode())
    assert read_table(file, **settings).collect(engine=engine).height == 60_001
    file.write_bytes(f"s,t,n\n{rows}".encode() + b"s,caf\xe9,60000\n")
    with pytest.raises(ValueError, match=r"^`source` must hold readable text files in UTF-8, got .*log\.csv"):
        read_table(file, **settings).collect(engine=engine)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`session` must name a column"),
        ({"timestamp": "n"}, "`session` must name a column"),
        ({"gap_minutes": 3.0, "position": "n"}, "`session` must name a column"),
        ({"session": "s"}, "`timestamp` or `position` must name a column"),
        ({"session": "s", "timestamp": "n", "gap_minutes": 3.0}, "`gap_minutes` must be None"),
        ({"timestamp": "n", "gap_minutes": -3.0}, "`gap_minutes` must be in"),
        ({"timestamp": "b", "gap_minutes": 3.0}, "`timestamp` must be a Datetime or a number"),
        ({"session": "s", "position": "n", "time_format": "%Y"}, "`time_format` must be None without"),
        ({"session": "s", "timestamp": "t", "time_format": "Y"}, "`time_format` must be a format"),
        (
            {"session": "s", "timestamp": "t", "time_format": "%Y%m%d%H"},
            "`time_format` must be a format that",
        ),
        ({"session": "s", "position": "n", "columns": ["b", "b"]}, "`columns` must name each column once"),
        (
            {"session": "s", "timestamp": "n", "time_format": "%Y"},
            "`time_format` must be None where column 'n'",
        ),
    ],
)
def test_settings_that_leave_sessions_or_order_open_are_errors(settings, message):
    log = pl.DataFrame({"s": [1], "t": ["a"], "n": [1], "b": [True]})
    with pytest.raises(ValueError, match=message):
        read_table(log, item="t", **settings)


def test_sources_that_are_no_tables_are_errors(tmp_path):
    with pytest.raises(TypeError, match="`source` must be a polars, pandas or Arrow table"):
        read_table(3, item="t", session="s", position="n")
    (tmp_path / "log.csv").write_text("s,t,n\n1,a,1\n")
    (tmp_path / "log.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="CSV or Parquet files, got both"):
        read_table(tmp_path, item="t", session="s", position="n")
    with pytest.raises(ValueError, match="`source` must be a table whose columns can be read"):
        read_table(tmp_path / "log.parquet", item="t", session="s", position="n")


@pytest.mark.parametrize("user", ["u", None])
@pytest.mark.parametrize("form", ["csv", "frame", "parquet"])
def test_rows_of_one_time_come_in_the_order_of_listening_whichever_way_the_log_runs(tmp_path, form, user):
    heard = [
        ("v", "x", 70),
        ("v", "y", 70),
        ("v", "z", 80),
        ("u", "a", 10),
        ("u", "b", 40),
        ("u", "c", 40),
        ("u", "d", 60),
    ]
    oldest = pl.DataFrame(heard, schema=["u", "t", "when"], orient="row")
    found = []
    for log in (oldest, oldest.reverse()):
        source = log
        if form != "frame":
            source = tmp_path / f"log.{form}"
            getattr(log, f"write_{form}")(source)
        table = read_table(source, item="t", session="u", user=user, timestamp="when")
        found.append(prepare_sessions(table)[0]["item_id"].to_list())
    assert found == [["a", "b", "c", "d", "x", "y", "z"]] * 2


def test_an_unsorted_log_and_one_with_positions_keep_the_order_of_their_rows():
    log = pl.DataFrame({"u": 1, "t": list("abcd"), "when": [40, 10, 40, 10], "n": [4, 3, 3, 1]})
    unsorted = read_table(log, item="t", session="u", timestamp="when")
    assert prepare_sessions(unsorted)[0]["item_id"].to_list() == ["b", "d", "a", "c"]
    assert (
        read_table(log[:2], item="t", session="u", timestamp="when", position="n").collect()["item_id"][0]
        == "a"
    )


def write_rows(folder, rows, header="s,t,n,x"):
    (folder / "log.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "log.csv"


@pytest.mark.parametrize(
    ("role", "late", "value"),
    [("timestamp", "90.5", 90.5), ("feedback", "0.5", 0.5), ("position", " 90.0", 90)],
)
def test_numbers_are_read_whatever_the_first_rows_look_like(tmp_path, role, late, value):
    rows = [f"s,a,{n},{n % 2}" for n in range(10_001)]
    file = write_rows(tmp_path, [*rows, f"s,a,5,{late}"])
    settings = {"position": "n"} | {role: "x"}
    table = read_table(file, item="t", session="s", **settings).collect()
    assert table[role][-1] == value
    assert table[role].is_null().sum() == 0


@pytest.mark.parametrize("wrong", ["late", "nan", "inf", "True", "2024-05-01"])
@pytest.mark.parametrize(
    "role", ["position", "timestamp", "feedback", "explicit_feedback", "played", "duration"]
)
def test_a_wrong_number_is_an_error_with_its_file_row_and_column(tmp_path, role, wrong):
    file = write_rows(tmp_path, [f"s,a,{n},1" for n in range(10_001)] + [f"s,b,1,{wrong}"])
    settings = {"position": "n"} | ({"played": "n"} if role == "duration" else {}) | {role: "x"}
    log = read_table(file, item="t", session="s", **settings)
    message = rf"in column 'x' of every row, got '{wrong}' in row 10003 of '[^']*log\.csv'\. [^\n]*\.$"
    with pytest.raises(ValueError, match=message):
        log.collect()
    with pytest.raises(ValueError, match=message):
        prepare_store(log, tmp_path / "store", rows_in_memory=500)


def test_a_row_with_a_field_too_many_is_an_error_with_its_row(tmp_path):
    file = write_rows(tmp_path, ["s,a,1,1", "s,b,2,1,oops"])
    with pytest.raises(ValueError, match=r"a field more, 'oops', in row 3 of '[^']*log\.csv'"):
        read_table(file, item="t", session="s", position="n").collect()


@pytest.mark.parametrize("form", ["csv", "frame"])
def test_blank_ids_are_null_and_dropped_and_counted(tmp_path, form):
    ids = ["", "  ", "a", "b", "c"]
    frame = pl.DataFrame({"s": ["s"] * 5, "t": ids, "n": range(5), "x": [1.0] * 5})
    source = (
        frame
        if form == "frame"
        else write_rows(tmp_path, [f's,"{item}",{n},1' for n, item in enumerate(ids)])
    )
    log = read_table(source, item="t", session="s", position="n", feedback="x")
    assert log.collect()["item_id"].to_list() == [None, None, "a", "b", "c"]
    table, report = prepare_sessions(log)
    assert table["item_id"].to_list() == ["a", "b", "c"]
    assert report.rows_read == 5


@pytest.mark.parametrize(
    "values",
    [
        [True, False],
        ["True", "False"],
        ["0", "1"],
        ["0.5", "-1"],
        [[1.0], [0.0]],
        [{"a": 1}, {"a": 0}],
        [date.min] * 2,
    ],
)
@pytest.mark.parametrize("role", ["feedback", "explicit_feedback"])
def test_feedback_that_is_no_number_is_an_error_with_the_cure(values, role):
    log = pl.DataFrame({"t": ["a", "b"], "s": [1, 1], "n": [1, 2], "x": values})
    cures = [r"pl\.when\(\.\.\.\)\.then\(1\.0\)\.otherwise\(-1\.0\)"] + ["`skipped`.*`played`"] * (
        role == "feedback"
    )
    for cure in cures:
        with pytest.raises(ValueError, match=rf"`{role}` must name a column of numbers in \[-1, 1\].*{cure}"):
            read_table(log, item="t", session="s", position="n", **{role: "x"})


@pytest.mark.parametrize("word", ["True", "false"])
def test_flags_in_a_feedback_column_of_a_file_are_an_error_with_the_cure(tmp_path, word):
    file = write_rows(tmp_path, [f"s,a,1,{word}"])
    with pytest.raises(ValueError, match=r"`skipped`.*`played`.*pl\.when"):
        read_table(file, item="t", session="s", position="n", feedback="x").collect()


FLAGS = [
    ["True", "False", ""],
    ["TRUE", "FALSE", ""],
    ["true", "false", ""],
    ["1", "0", ""],
    ["1.0", "0.0", " "],
]


@pytest.mark.parametrize(
    "flags", [*FLAGS, [True, False, None], [1, 0, None], [1.0, 0.0, None]], ids=json.dumps
)
def test_a_flag_of_skips_becomes_feedback(tmp_path, flags):
    log = pl.DataFrame({"t": ["a", "b", "c"], "s": [1] * 3, "n": [1, 2, 3], "x": flags})
    sources = [log]
    if flags in FLAGS:
        sources.append(write_rows(tmp_path, [f"s,a,{n},{flag}" for n, flag in enumerate(flags)]))
    for source in sources:
        table = read_table(source, item="t", session="s", position="n", skipped="x").collect()
        assert table["feedback"].to_list() == [-1, 1, 0]


@pytest.mark.parametrize("flag", ["2", "yes"])
def test_any_other_flag_of_skips_is_an_error(tmp_path, flag):
    log = pl.DataFrame({"t": ["a"], "s": [1], "n": [1], "x": [flag]})
    for source in (log, write_rows(tmp_path, [f"s,a,1,{flag}"])):
        with pytest.raises(ValueError, match=rf"true or false.* column 'x'.*got '{flag}' in row [12]"):
            read_table(source, item="t", session="s", position="n", skipped="x").collect()
    with pytest.raises(ValueError, match="`skipped` must name a column of true and false, got 'x' of List"):
        read_table(log.with_columns(x=[True]), item="t", session="s", position="n", skipped="x")


def graded_by_hand(played, length, skip_ratio):
    if played is None or length is None or played < 0 or length <= 0:
        return 0.0
    part = played / length
    if part <= skip_ratio:
        return -1 + part / skip_ratio
    return min(1.0, (part - skip_ratio) / (1 - skip_ratio))


@pytest.mark.parametrize("skip_ratio", [None, 0.25])
@pytest.mark.parametrize("form", ["csv", "frame"])
def test_the_played_part_of_a_track_becomes_graded_feedback(tmp_path, form, skip_ratio):
    played = [0, 50, 100, 150, 200, 300, None, 100, -5, 7]
    lengths = [200] * 7 + [None, 200, 0]
    log = pl.DataFrame({"t": "a", "s": 1, "n": range(10), "p": played, "d": lengths})
    source = log
    if form == "csv":
        source = tmp_path / "log.csv"
        log.write_csv(source)
    table = read_table(
        source, item="t", session="s", position="n", played="p", duration="d", skip_ratio=skip_ratio
    ).collect()
    expected = [graded_by_hand(*pair, skip_ratio or 0.5) for pair in zip(played, lengths, strict=True)]
    assert table["feedback"].to_list() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [-1, -1, 1, 1, 0, 0]),
        ({"skip_seconds": 10}, [-1, 1, 1, 1, 0, 0]),
        ({"unit": "seconds"}, [-1, -1, 1, 1, 0, 0]),
        ({"unit": "milliseconds"}, [-1, -1, -1, 1, 0, 0]),
        ({"unit": "milliseconds", "skip_seconds": 0.03}, [-1, -1, 1, 1, 0, 0]),
    ],
)
def test_the_played_time_alone_becomes_feedback_by_a_threshold(settings, expected):
    log = pl.DataFrame({"t": "a", "s": 1, "n": range(6), "p": [0, 30, 31, 30_001, None, -1]})
    table = read_table(log, item="t", session="s", position="n", played="p", **settings).collect()
    assert table["feedback"].to_list() == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feedback": "n", "skipped": "n"}, "got 'feedback' and 'skipped'"),
        ({"feedback": "n", "played": "n"}, "got 'feedback' and 'played'"),
        ({"skipped": "n", "played": "n"}, "got 'skipped' and 'played'"),
        ({"duration": "n"}, "`duration` must only be given with `played`"),
        ({"skipped": "n", "unit": "seconds"}, "`unit` must only be given with `played`"),
        ({"played": "n", "skip_ratio": 0.5}, "`skip_ratio` must only be given with `duration`"),
        ({"skip_seconds": 3}, "`skip_seconds` must only be given with `played` without `duration`"),
        ({"played": "n", "duration": "n", "skip_seconds": 3}, "`skip_seconds` must only be given"),
        ({"played": "n", "skip_seconds": 0}, "`skip_seconds` must be in"),
        ({"played": "n", "duration": "n", "skip_ratio": 1}, "`skip_ratio` must be in"),
        ({"played": "n", "unit": "hours"}, "`unit` must be one of"),
        ({"played": "t"}, "`played` must name a column of numbers, got 't' of String"),
    ],
)
def test_settings_of_feedback_that_exclude_each_other_or_are_unused_are_errors(settings, message):
    log = pl.DataFrame({"t": ["a"], "s": [1], "n": [1]})
    with pytest.raises(ValueError, match=message):
        read_table(log, item="t", session="s", position="n", **settings)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2024-02-01", utc(2024, 2, 1)),
        ("2024-02-01T10:04", utc(2024, 2, 1, 10, 4)),
        ("2024-02-01 10:04:05", utc(2024, 2, 1, 10, 4, 5)),
        ("2024-02-01T10:04:05.25", utc(2024, 2, 1, 10, 4, 5, 250_000)),
        ("2024-02-01T10:04:05,123456789Z", utc(2024, 2, 1, 10, 4, 5, 123_456)),
        ("2024-02-01 10:04:05 UTC", utc(2024, 2, 1, 10, 4, 5)),
        ("2024-02-01T10:04:05+02:30", utc(2024, 2, 1, 7, 34, 5)),
        ("2024-02-01T10:04:05-0230", utc(2024, 2, 1, 12, 34, 5)),
        ("2024-02-01T10:04:05+01", utc(2024, 2, 1, 9, 4, 5)),
        (" 2024-02-01T10:04:05 ", utc(2024, 2, 1, 10, 4, 5)),
    ],
)
def test_times_in_iso_8601_are_in_utc(tmp_path, text, time):
    rows = [f's,a,"{text}",1', "s,b,2025-02-01T00:00:00Z,1", "s,c,,1"]
    frame = pl.DataFrame({"s": [1] * 3, "t": ["a"] * 3, "n": [text, "2025-02-01T00:00:00Z", None]})
    for source in (write_rows(tmp_path, rows), frame):
        table = read_table(source, item="t", session="s", timestamp="n").collect()
        assert table["timestamp"].to_list() == [time, utc(2025, 2, 1), None]


@pytest.mark.parametrize(
    "text", ["01/02/2024 10:00:00", "2024-13-01", "2024-02-01T25:00:00", "1. Feb. 2024", "x"]
)
def test_any_other_time_is_an_error_that_shows_how_to_give_its_format(tmp_path, text):
    file = write_rows(tmp_path, [f"s,a,{text},1"])
    log = read_table(file, item="t", session="s", timestamp="n")
    with pytest.raises(ValueError, match=r'ISO 8601 .*in row 2 of .* `time_format="%d/%m/%Y %H:%M:%S"`'):
        log.collect()


def test_times_are_read_in_a_stated_format(tmp_path):
    file = write_rows(tmp_path, ["s,a,01/02/2024 10:00:00,1"])
    for time_format, time in [
        ("%d/%m/%Y %H:%M:%S", utc(2024, 2, 1, 10)),
        ("%m/%d/%Y %H:%M:%S", utc(2024, 1, 2, 10)),
    ]:
        table = read_table(file, item="t", session="s", timestamp="n", time_format=time_format).collect()
        assert table["timestamp"].to_list() == [time]
    file = write_rows(tmp_path, ["s,a,01.02.2024 10:00 +0200,1"])
    table = read_table(file, item="t", session="s", timestamp="n", time_format="%d.%m.%Y %H:%M %z").collect()
    assert table["timestamp"].to_list() == [utc(2024, 2, 1, 8)]
    with pytest.raises(
        ValueError, match=r"a time in the format '%d/%m/%Y %H:%M:%S'.*'01\.02\.2024 10:00 \+0200'"
    ):
        read_table(file, item="t", session="s", timestamp="n", time_format="%d/%m/%Y %H:%M:%S").collect()


@pytest.mark.parametrize("form", ["csv", "integers", "floats"])
def test_compact_dates_are_no_seconds(tmp_path, form):
    days = [20240101, 20240131, None, 20231224]
    source = pl.DataFrame({"t": "a", "s": 1, "n": days}, schema_overrides={"n": pl.Int64})
    if form == "csv":
        source.write_csv(tmp_path / "log.csv")
        source = tmp_path / "log.csv"
    elif form == "floats":
        source = source.cast({"n": pl.Float64})
    settings = {"item": "t", "session": "s", "timestamp": "n"}
    with pytest.raises(ValueError, match=r"'n' of dates such as 20240101\. Pass `time_format=\"%Y%m%d\"`"):
        read_table(source, **settings)
    if form != "floats":
        source = source if form == "csv" else source.cast({"n": pl.String})
        times = read_table(source, time_format="%Y%m%d", **settings).collect()["timestamp"].to_list()
        assert times == [utc(2024, 1, 1), utc(2024, 1, 31), None, utc(2023, 12, 24)]


@pytest.mark.parametrize("seconds", [[20240101, 20240132], [20240101.5], [5, 60], [1714560000], [None]])
def test_numbers_that_are_no_compact_dates_stay_seconds(seconds):
    log = pl.DataFrame({"t": "a", "s": 1, "n": seconds}, schema_overrides={"n": pl.Float64})
    table = read_table(log, item="t", session="s", timestamp="n").collect()
    assert table["timestamp"].to_list() == seconds


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
def test_another_separator_is_named_with_the_setting_for_it(tmp_path, separator):
    file = tmp_path / "log.csv"
    file.write_text("s,t,n\n1,a,1\n".replace(",", separator))
    shown = separator.replace("\t", "\\t")
    given = ";" if separator == "," else ","
    message = rf"^`source` .* `separator=\"{re.escape(shown)}\"` \(`--separator \"{re.escape(shown)}\"` on"
    settings = {"item": "t", "session": "s", "position": "n"}
    with pytest.raises(ValueError, match=message):
        read_table(file, separator=given, **settings)
    assert read_table(file, separator=shown, **settings).collect().height == 1


@pytest.mark.parametrize(
    ("setting", "values", "cure"),
    [
        ("played", ['"178,0"', '"3,5"'], "Convert the whole column to numbers with a decimal point"),
        ("feedback", ['"0,5"', "1"], "decimal point, such as 0.5. Name a flag of skips as `skipped`"),
        ("skipped", ["yes", "no"], "Convert the whole column to true and false, or to 1 and 0."),
        ("skipped", ["", "yes"], "Convert the whole column to true and false"),
        ("position", ["I", "II"], "Convert the whole column to integers."),
        ("played", ["1", "x", "x"], "Correct or remove that row"),
        ("played", ["178,0", "3,5"], "quotation marks around a field that holds the separator"),
    ],
)
def test_a_column_in_another_form_is_to_be_converted_and_a_single_value_corrected(
    tmp_path, setting, values, cure
):
    file = tmp_path / "log.csv"
    rows = [f"1,a,{place},{value}" for place, value in enumerate(values)]
    file.write_text("\n".join(["s,t,n,x", *rows]))
    settings = {"item": "t", "session": "s", "position": "n"} | {setting: "x"}
    with pytest.raises(ValueError, match=rf"^`source` must hold .* {re.escape(cure)}"):
        read_table(file, **settings).collect()


@pytest.mark.parametrize("form", ["csv", "frame"])
def test_a_mistyped_column_is_met_with_the_closest_and_a_few_others(tmp_path, form):
    columns = ["track_id", "Session", *(f"extra{n}" for n in range(500)), "x" * 500]
    source = pl.DataFrame({name: [1] for name in columns})
    if form == "csv":
        source.write_csv(tmp_path / "log.csv")
        source = tmp_path / "log.csv"
    message = r"^`source` must .*'session', 'trackid'.*483 more.* Did you mean 'Session' and 'track_id'\?"
    with pytest.raises(ValueError, match=message) as raised:
        read_table(source, item="trackid", session="session", position="extra3")
    assert len(str(raised.value)) < 800


@pytest.mark.parametrize("compressed", [False, True])
def test_lines_that_end_with_a_carriage_return_alone_are_named_in_a_short_message(tmp_path, compressed):
    text = b"s,t,n\r" + b"1,a,1\r" * 5000
    file = tmp_path / ("log.csv.gz" if compressed else "log.csv")
    file.write_bytes(gzip.compress(text) if compressed else text)
    with pytest.raises(ValueError, match=r"^`source` must .* lines end with a line feed, got") as raised:
        read_table(file, item="t", session="s", position="n")
    assert len(str(raised.value)) < 300


def test_dates_of_a_frame_are_times():
    log = pl.DataFrame({"s": [1], "t": ["a"], "n": [date(2024, 2, 1)]})
    table = read_table(log, item="t", session="s", timestamp="n").collect()
    assert table["timestamp"].to_list() == [datetime(2024, 2, 1)]


def test_a_tab_may_be_written_as_the_shell_hands_it_over(tmp_path):
    (tmp_path / "log.csv").write_text("s\tt\tn\n1\ta\t1\n")
    assert read_table(tmp_path, item="t", session="s", position="n", separator="\\t").collect().height == 1


@pytest.mark.parametrize("separator", ["", "::", "\n", '"', "ä"])
def test_a_separator_that_is_not_one_character_is_an_error(tmp_path, separator):
    with pytest.raises(ValueError, match="`separator` must be one ASCII character"):
        read_table(
            write_rows(tmp_path, ["s,a,1,1"]), item="t", session="s", position="n", separator=separator
        )


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
