from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import read_lfm2b

HEADER = "user_id\ttrack_id\talbum_id\ttimestamp"


def write(folder, *lines, header=HEADER):
    file = folder / "listening_events.tsv"
    file.write_text("".join(f"{each}\n" for each in [header, *lines]), encoding="utf-8", newline="")
    return file


def test_events_become_sessions_with_skips_told_from_the_next_start(tmp_path):
    rows = ["1\t10\t5\t2019-01-01 00:00:00", "2\t11\t5\t2019-01-01 00:00:05"]
    write(tmp_path, *rows, "1\t12\t5\t2019-01-01 00:00:30", "1\t10\t5\t2019-01-01 00:20:31")
    table = read_lfm2b(tmp_path).collect()
    assert table.schema == {
        "session_id": pl.String,
        "item_id": pl.Int64,
        "feedback": pl.Float32,
        "timestamp": pl.Datetime("us", "UTC"),
        "user_id": pl.Int64,
    }
    assert table.drop("timestamp").rows() == [
        ("1/0", 10, -1.0, 1),
        ("1/0", 12, 1.0, 1),
        ("1/1", 10, 0.0, 1),
        ("2/0", 11, 0.0, 2),
    ]


def test_the_plain_history_keeps_the_order_of_the_file_and_streams(tmp_path):
    file = write(tmp_path, "2\t11\t5\t2019-01-01 00:00:05", "1\t10\t5\t2019-01-01 00:00:00")
    history = read_lfm2b(file, gap_minutes=None).collect(engine="streaming")
    assert history.rows() == [
        (2, 11, datetime(2019, 1, 1, 0, 0, 5, tzinfo=UTC)),
        (1, 10, datetime(2019, 1, 1, tzinfo=UTC)),
    ]
    assert history.columns == ["user_id", "item_id", "timestamp"]


def test_columns_may_be_more_and_in_another_order(tmp_path):
    header = "timestamp\tuser_id\tcountry\ttrack_id"
    file = write(tmp_path, "2019-01-01 00:00:05\t2\tAT\t11", header=header)
    assert read_lfm2b(file, gap_minutes=None).collect().row(0)[:2] == (2, 11)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("u1\t10\t5\t2019-01-01 00:00:00", "an integer in column 'user_id'.*got 'u1'"),
        ("1\t10.5\t5\t2019-01-01 00:00:00", "an integer in column 'track_id'.*got '10.5'"),
        ("1\t\t5\t2019-01-01 00:00:00", "an integer in column 'track_id'.*got None"),
        ("1\t10\t5\t01/02/2019 00:00:00", "a time in ISO 8601 in column 'timestamp'.* in row "),
        ("1\t10\t5\t2019-02-30 00:00:00", "column 'timestamp'.*got '2019-02-30"),
        ("1\t10\t5", "column 'timestamp'.*got None"),
    ],
)
def test_a_wrong_value_is_an_error_with_its_file_and_column(tmp_path, row, message):
    file = write(tmp_path, "1\t10\t5\t2019-01-01 00:00:00", row)
    with pytest.raises(ValueError, match=rf"{message}.*listening_events\.tsv"):
        read_lfm2b(file).collect()


def test_a_column_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="one column 'track_id'"):
        read_lfm2b(write(tmp_path, "1\t2\t3", header="user_id\talbum_id\ttimestamp"))


WORD = st.sampled_from(["", "1", "-2", "9" * 25, "x", "2019-01-01 00:00:05", '"', "1.0", " 1"])
RIGHT = st.tuples(
    st.integers(-9, 9).map(str),
    st.integers(0, 2**40).map(str),
    st.just("3"),
    st.datetimes(datetime(2005, 1, 1), datetime(2021, 1, 1)).map(lambda time: time.strftime("%F %T")),
)


@given(lines=st.lists(RIGHT | st.tuples(WORD, WORD, WORD, WORD), max_size=5), cut=st.integers(0, 2))
def test_any_file_gives_what_plain_python_reads_or_a_value_error(tmp_path_factory, lines, cut):
    file = tmp_path_factory.mktemp("fuzz") / "listening_events.tsv"
    text = "\n".join([HEADER, *map("\t".join, lines)])
    text = text[: len(text) - cut]
    file.write_bytes(text.encode())
    try:
        history = read_lfm2b(file, gap_minutes=None).collect()
        rows = history.select("user_id", "item_id", "timestamp").rows()
    except ValueError:
        return
    expected = []
    for line in text.split("\n")[1:]:
        user, item, _, time = line.split("\t")
        expected.append(
            (int(user), int(item), datetime.strptime(time, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC))
        )
    assert rows == expected


@given(lines=st.lists(RIGHT, min_size=1, max_size=8))
def test_any_right_file_is_read(tmp_path_factory, lines):
    file = write(tmp_path_factory.mktemp("right"), *map("\t".join, lines))
    assert read_lfm2b(file).collect().height == len(set(lines))


def test_quoted_fields_are_read(tmp_path):
    header = '"user_id"\t"track_id"\t"timestamp"'
    file = write(tmp_path, '1\t2\t"2019-01-01 00:00:13"', header=header)
    assert read_lfm2b(file).collect()["item_id"].to_list() == [2]
