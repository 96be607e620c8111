import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import prepare_sessions, read_movielens

FORMS = {
    "u.data": ("\t", None),
    "ratings.dat": ("::", None),
    "ratings.csv": (",", "userId,movieId,rating,timestamp"),
}
ROWS = [("196", "242", "3", "881250949"), ("186", "302", "1", "891717742"), ("196", "377", "5", "881250949")]


def write(folder, name, rows, end="\n"):
    separator, header = FORMS[name]
    lines = [separator.join(row) for row in rows]
    file = folder / name
    file.write_text("".join(line + end for line in ([header] if header else []) + lines), newline="")
    return file


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_form_is_read_in_the_order_of_the_file(tmp_path, name, end):
    write(tmp_path, name, ROWS, end)
    table = read_movielens(tmp_path).collect()
    assert table.schema == {
        "session_id": pl.Int64,
        "item_id": pl.Int64,
        "feedback": pl.Float32,
        "timestamp": pl.Int64,
    }
    assert table.rows() == [
        (196, 242, 0.0, 881250949),
        (186, 302, -1.0, 891717742),
        (196, 377, 1.0, 881250949),
    ]


def test_a_parquet_file_is_read_like_the_text(tmp_path):
    file = tmp_path / "any.parquet"
    names = ["user_id", "item_id", "rating", "timestamp"]
    pl.DataFrame([list(map(int, row)) for row in ROWS], schema=names, orient="row").write_parquet(file)
    assert read_movielens(file).collect().equals(read_movielens(write(tmp_path, "u.data", ROWS)).collect())


def test_the_form_is_told_from_the_first_line_and_forms_may_be_mixed(tmp_path):
    files = [write(tmp_path, name, ROWS) for name in FORMS]
    renamed = [file.rename(tmp_path / f"{place}.txt") for place, file in enumerate(files)]
    assert read_movielens(renamed).collect()["item_id"].to_list() == [242, 302, 377] * 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [-1, -1, -0.5, -0.25, 0, 0.5, 1]),
        ({"label": "binary"}, [-1, -1, -1, -1, -1, 1, 1]),
        ({"label": "binary", "like_from": 2.5}, [-1, -1, -1, 1, 1, 1, 1]),
        ({"label": "watched"}, [1] * 7),
    ],
)
def test_each_label_reads_the_stars_as_stated(tmp_path, settings, expected):
    rows = [("1", str(n), stars, "0") for n, stars in enumerate(["0.5", "1", "2", "2.5", "3.0", "4", "5"])]
    table = read_movielens(write(tmp_path, "ratings.csv", rows), **settings).collect()
    assert table["feedback"].to_list() == expected


def test_equal_times_stay_in_the_order_of_the_file_at_the_preparation(tmp_path):
    rows = [("1", item, "4", "7") for item in ("9", "3", "5", "1")]
    table, _ = prepare_sessions(read_movielens(write(tmp_path, "u.data", rows)))
    assert table["item_id"].to_list() == [9, 3, 5, 1]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("u", "2", "3", "4"), "an integer in column '(user_id|userId)'.*'u'"),
        (("1", "2.5", "3", "4"), "an integer in column '(item_id|movieId)'.*'2.5'"),
        (("1", "2", "6", "4"), r"a number in \[0.5, 5\] in column 'rating'.*'6'"),
        (("1", "2", "nan", "4"), "column 'rating'.*'nan'"),
        (("1", "2", "", "4"), "column 'rating'"),
        (("1", "2", "3", "2000-01-01"), "an integer in column 'timestamp'.*'2000-01-01'"),
        (("1", "2", "3"), "4 fields|column 'timestamp'"),
    ],
)
def test_a_wrong_value_is_an_error_with_its_file_and_column(tmp_path, name, row, message):
    file = write(tmp_path, name, [*ROWS, row])
    with pytest.raises(ValueError, match=rf"(?s){message}.*{name}"):
        read_movielens(file).collect()


@pytest.mark.parametrize("name", FORMS)
def test_blanks_around_numbers_and_whole_numbers_as_floats_are_read(tmp_path, name):
    rows = [("1", "2", "4.0", "964982703 "), (" 1.0", "2.0", " 4.0", "964982703.0")]
    assert read_movielens(write(tmp_path, name, rows)).collect().rows() == [(1, 2, 0.5, 964982703)] * 2
    file = write(tmp_path, name, [*rows, ("1", "2", "4", "964982703.5")])
    row = 3 + (name == "ratings.csv")
    with pytest.raises(
        ValueError, match=rf"an integer in column 'timestamp'.*703\.5' in row {row} of .*{name}"
    ):
        read_movielens(file).collect()


def test_a_row_with_a_field_too_many_is_an_error_with_its_file_and_row(tmp_path):
    for name in FORMS:
        file = write(tmp_path, name, [*ROWS, ("1", "2", "3", "4", "5")])
        row = 4 + (name == "ratings.csv")
        with pytest.raises(ValueError, match=rf"fields.* in row {row} of '[^']*{name}'\. .*again\.$"):
            read_movielens(file).collect()


def test_lines_of_user_and_item_are_read_in_their_order_without_feedback(tmp_path):
    (tmp_path / "ml-1m.txt").write_text("1 30\n1 10\n2 20\n1 20\n")
    (tmp_path / "more.txt").write_text("2 10\n")
    table = read_movielens(tmp_path / "ml-1m.txt").collect()
    assert table.rows() == [(1, 30, 0.0, 0), (1, 10, 0.0, 1), (2, 20, 0.0, 2), (1, 20, 0.0, 3)]
    assert table.schema["position"] == pl.Int64
    files = [tmp_path / "ml-1m.txt", tmp_path / "more.txt"]
    assert read_movielens(files).collect()["position"].to_list() == [0, 1, 2, 3, 4]
    watched = read_movielens(files, label="watched")
    assert watched.collect()["feedback"].to_list() == [1.0] * 5
    prepared = prepare_sessions(watched)[0].filter(pl.col("session_id") == 1)
    assert prepared["item_id"].to_list() == [30, 10, 20]
    (tmp_path / "more.txt").write_text("2 10\n2 x\n")
    with pytest.raises(ValueError, match=r"an integer in column 'item_id'.*'x' in row 2 of .*more\.txt"):
        read_movielens(files).collect()
    write(tmp_path, "u.data", ROWS)
    with pytest.raises(ValueError, match="`paths` must hold ratings or lines of `user item`, got both"):
        read_movielens([*files, tmp_path / "u.data"])


def test_files_of_no_form_are_errors_at_once(tmp_path):
    for content, message in [
        ("1\t2\t3\n", "4 fields"),
        ("1::2::3::4::5\n", "4 fields"),
        ("userId;movieId;rating;timestamp\n1;2;3;4\n", "',' between the columns"),
        ("userId,movieId,rating\n1,2,3\n", "one column 'timestamp'"),
    ]:
        (tmp_path / "ratings.csv").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_movielens(tmp_path)


def test_parquet_columns_that_are_missing_or_of_another_type_are_errors_at_once(tmp_path):
    frame = pl.DataFrame({"user_id": ["1"], "item_id": [2], "rating": [3], "timestamp": [4]})
    file = tmp_path / "ratings.parquet"
    for wrong, message in [
        (frame, r"column 'user_id' of an integer type.*user_id \(String\)"),
        (frame.drop("user_id"), "column 'user_id'"),
        (frame.with_columns(user_id=1, rating=pl.lit("3")), "column 'rating' of a numeric type"),
    ]:
        wrong.write_parquet(file)
        with pytest.raises(ValueError, match=message):
            read_movielens(file)
    frame.with_columns(user_id=1, rating=9).write_parquet(file)
    with pytest.raises(ValueError, match=r"a number in \[0.5, 5\] in column 'rating'.*got 9 in"):
        read_movielens(file).collect()


def test_settings_out_of_range_are_errors(tmp_path):
    file = write(tmp_path, "u.data", ROWS)
    with pytest.raises(ValueError, match="`label` must be one of"):
        read_movielens(file, label="stars")
    with pytest.raises(ValueError, match="`like_from` must be in"):
        read_movielens(file, label="binary", like_from=6)


WORD = st.sampled_from(["", "1", "-2", "9" * 25, "x", "3.5", '"', ",", "\t", "::", " "])
RIGHT = st.tuples(
    st.integers(1, 9).map(str),
    st.integers(1, 2**40).map(str),
    st.integers(1, 10).map(lambda halves: str(halves / 2)),
    st.integers(0, 2**31).map(str),
)


@given(
    name=st.sampled_from(sorted(FORMS)),
    rows=st.lists(RIGHT | st.tuples(WORD, WORD, WORD, WORD), max_size=5),
    cut=st.integers(0, 2),
)
def test_any_file_gives_what_plain_python_reads_or_a_value_error(tmp_path_factory, name, rows, cut):
    separator, header = FORMS[name]
    file = tmp_path_factory.mktemp("fuzz") / name
    text = "\n".join(([header] if header else []) + [separator.join(row) for row in rows])
    text = text[: len(text) - cut]
    file.write_text(text)
    try:
        found = read_movielens(file).collect().rows()
    except (ValueError, pl.exceptions.PolarsError):
        return
    expected = []
    for line in text.split("\n")[1 if header else 0 :]:
        user, item, stars, time = line.split(separator)
        whole = [int(float(text)) for text in (user, item, time)]
        expected.append((whole[0], whole[1], max(-1.0, (float(stars) - 3) / 2), whole[2]))
    assert found == expected


@given(rows=st.lists(RIGHT, min_size=1, max_size=5), name=st.sampled_from(sorted(FORMS)))
def test_any_right_file_is_read(tmp_path_factory, rows, name):
    assert read_movielens(write(tmp_path_factory.mktemp("right"), name, rows)).collect().height == len(rows)


@pytest.mark.real_data
def test_the_real_ratings_have_the_counted_shares(real_data):
    folder = real_data / "ml-100k"
    table, report = prepare_sessions(read_movielens(folder))
    assert (table.height, report.sessions_kept, report.items_kept) == (100_000, 943, 1682)
    assert report.share_skipped == pytest.approx(0.175, abs=0.001)
    by_liking = read_movielens(folder, label="binary").collect()
    assert (by_liking["feedback"] < 0).mean() == pytest.approx(0.446, abs=0.001)
