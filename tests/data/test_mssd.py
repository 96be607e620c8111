import gzip
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import prepare_sessions, prepare_store, read_mssd

HEADER = "session_id,session_position,session_length,track_id_clean,skip_1,skip_2,skip_3,not_skipped,premium"
FLAGS = {
    "at once": "True,True,True,False",
    "early": "False,True,True,False",
    "late": "False,False,True,False",
    "never": "False,False,False,True",
    "unknown": "False,False,False,False",
}


def write(file: Path, rows: list[str], header: str = HEADER) -> Path:
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


def row(position: int, flags: str, session: str = "s") -> str:
    return f"{session},{position},5,track_{position},{flags},True"


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("skip_1", [-1, 1, 1, 1, 0]),
        ("skip_2", [-1, -1, 1, 1, 0]),
        ("skip_3", [-1, -1, -1, 1, 0]),
        ("graded", [-1, -2 / 3, -1 / 3, 1, 0]),
    ],
)
def test_each_label_reads_the_flags_as_stated(tmp_path, label, expected):
    file = write(tmp_path / "log.csv", [row(n, flags) for n, flags in enumerate(FLAGS.values(), start=1)])
    table = read_mssd(file, label=label).collect()
    assert table["feedback"].to_list() == pytest.approx(expected)
    assert table.schema == {
        "session_id": pl.String,
        "item_id": pl.String,
        "feedback": pl.Float32,
        "position": pl.Int64,
    }


def test_a_folder_is_read_in_the_order_of_names_with_sub_folders_gzip_and_both_spellings(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "b.csv", [row(1, FLAGS["never"].lower(), "b")])
    with gzip.open(tmp_path / "a.csv.gz", "wt") as stream:
        stream.write(f"{HEADER}\n{row(1, FLAGS['never'], 'a')}\n")
    write(tmp_path / "sub" / "c.csv", [row(1, FLAGS["at once"], "c")])
    (tmp_path / "notes.txt").write_text("no log")
    table = read_mssd(tmp_path).collect()
    assert table["session_id"].to_list() == ["a", "b", "c"]
    assert table["feedback"].to_list() == [1, 1, -1]


def test_files_may_have_their_columns_in_different_orders(tmp_path):
    write(tmp_path / "a.csv", [row(1, FLAGS["never"])])
    header = "not_skipped,skip_3,skip_2,skip_1,track_id_clean,session_position,session_id"
    write(tmp_path / "b.csv", ["True,False,False,False,t,2,s"], header)
    assert read_mssd(tmp_path).collect()["item_id"].to_list() == ["track_1", "t"]


def test_names_with_wildcard_letters_are_files_and_not_patterns(tmp_path):
    file = write(tmp_path / "log[1]*.csv", [row(1, FLAGS["never"])])
    assert read_mssd(file).collect().height == 1


@pytest.mark.parametrize(
    ("value", "named"), [("yes", "'yes'"), ("2", "'2'"), ("", "None"), ("null", "'null'")]
)
def test_any_other_word_for_a_flag_is_an_error_that_names_column_value_and_file(tmp_path, value, named):
    file = write(tmp_path / "log.csv", [row(1, f"False,{value},False,True")])
    with pytest.raises(ValueError, match=rf"'skip_2'.*got {named} in row 2 of .*log\.csv"):
        read_mssd(file).collect()


@pytest.mark.parametrize(
    ("false", "true"), [("FALSE", "TRUE"), ("0", "1"), ("false", "True"), (" 0.0", "1.0 ")]
)
def test_flags_of_logs_that_were_saved_again_are_read(tmp_path, false, true):
    flags = [f"{false},{true},{true},{false}", f"{false},{false},{false},{true}"]
    file = write(tmp_path / "log.csv", [f"s,{n}.0,5,t{n},{each},True" for n, each in enumerate(flags)])
    assert read_mssd(file).collect().rows() == [("s", "t0", -1.0, 0), ("s", "t1", 1.0, 1)]


@pytest.mark.parametrize("last", [4, 9000])
def test_a_row_with_a_field_too_many_is_an_error_with_its_file_and_row(tmp_path, last):
    for name in "abc":
        rows = [row(n, FLAGS["never"]) for n in range(last)]
        write(tmp_path / f"{name}.csv", [*rows, row(last, FLAGS["never"]) + (",x" if name == "b" else "")])
    wrong = rf"a field more, 'x', in row {last + 2} of '[^']*b\.csv'\. Correct or remove that row, .*again\.$"
    with pytest.raises(ValueError, match=wrong):
        read_mssd(tmp_path).collect()
    with pytest.raises(ValueError, match=wrong):
        read_mssd(tmp_path).collect(engine="streaming")
    with pytest.raises(ValueError, match=wrong):
        prepare_sessions(read_mssd(tmp_path))
    with pytest.raises(ValueError, match=wrong):
        prepare_store(read_mssd(tmp_path), tmp_path / "store", rows_in_memory=100)


def test_an_empty_field_after_the_last_column_is_left_out(tmp_path):
    file = write(tmp_path / "log.csv", [row(1, FLAGS["never"]) + ","])
    assert read_mssd(file).collect().height == 1


def test_a_flag_that_the_label_does_not_use_is_checked_all_the_same(tmp_path):
    file = write(tmp_path / "log.csv", [row(1, "False,False,maybe,True")])
    with pytest.raises(ValueError, match=r"'skip_3'.*'maybe'"):
        read_mssd(file, label="skip_1").collect()


def test_a_position_that_is_no_integer_is_an_error(tmp_path):
    file = write(tmp_path / "log.csv", [f"s,2.5,5,t,{FLAGS['never']},True"])
    with pytest.raises(ValueError, match=r"an integer in column 'session_position'.*'2.5'"):
        read_mssd(file).collect()


def test_missing_columns_are_named_with_the_file_and_what_there_is(tmp_path):
    file = write(tmp_path / "log.csv", ["s,1"], "session_id,session_position")
    with pytest.raises(
        ValueError, match=r"'track_id_clean', 'skip_1'.*log\.csv.*session_id, session_position"
    ):
        read_mssd(file)


def test_a_column_that_comes_twice_is_an_error(tmp_path):
    file = write(tmp_path / "log.csv", [row(1, FLAGS["never"]) + ",s"], HEADER + ",session_id")
    with pytest.raises(ValueError, match=r"one column 'session_id' .* more than once: .*Rename or remove"):
        read_mssd(file)


@pytest.mark.parametrize(
    ("columns", "error"), [("premium", TypeError), (["premium", "premium"], ValueError)], ids=repr
)
def test_columns_are_a_list_of_different_names(tmp_path, columns, error):
    file = write(tmp_path / "log.csv", [row(1, FLAGS["never"])])
    with pytest.raises(error, match=r"`columns` must (be a list of names|name each column once)"):
        read_mssd(file, columns=columns)


def test_another_separator_is_an_error_at_once(tmp_path):
    file = write(tmp_path / "log.csv", [row(1, FLAGS["never"]).replace(",", ";")], HEADER.replace(",", ";"))
    with pytest.raises(ValueError, match="',' between the columns"):
        read_mssd(file)


@pytest.mark.parametrize(("content", "message"), [(b"", "empty files"), (HEADER.encode(), "header only")])
def test_a_file_without_rows_is_an_error_at_once(tmp_path, content, message):
    file = tmp_path / "log.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_mssd(file)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x1f\x8bnot gzip", b'"' + b"x" * 200_000])
def test_bytes_that_are_no_csv_are_an_error_at_once(tmp_path, content):
    file = tmp_path / "log.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="readable CSV files in UTF-8"):
        read_mssd(file)


def test_paths_that_are_missing_empty_or_no_paths_are_errors(tmp_path):
    with pytest.raises(ValueError, match="must exist"):
        read_mssd(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match=r"files named \*.csv or \*.csv.gz"):
        read_mssd(tmp_path)
    with pytest.raises(ValueError, match="at least one file"):
        read_mssd([])
    with pytest.raises(TypeError, match="strings or"):
        read_mssd([3])
    with pytest.raises(ValueError, match="`label` must be one of"):
        read_mssd(tmp_path, label="skip_4")


def test_a_gzip_file_that_was_cut_short_is_told_at_the_preparation(tmp_path):
    whole = gzip.compress("\n".join([HEADER, *(row(n, FLAGS["never"]) for n in range(20_000))]).encode())
    (tmp_path / "log.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match="must be readable to its last row, got OSError: unexpected end of file"
    ):
        prepare_sessions(read_mssd(tmp_path))


WORD = st.sampled_from(["True", "False", "TRUE", "false", "", "1", "yes", '"', "a,b"])
LINE = st.tuples(
    st.sampled_from(["s", "t", "", "é"]),
    st.sampled_from(["1", "2", "3", "-1", "x", "", "9" * 30]),
    st.sampled_from(["a", "b", "", '"q"']),
    WORD, WORD, WORD, WORD,
)  # fmt: skip
RIGHT_LINE = st.tuples(
    st.sampled_from(["s", "t"]),
    st.integers(1, 9).map(str),
    st.sampled_from(["a", "b"]),
    *[st.sampled_from(["True", "False", "true", "false"])] * 4,
)
COLUMNS = "session_id,session_position,track_id_clean,skip_1,skip_2,skip_3,not_skipped"


@given(
    lines=st.lists(RIGHT_LINE | LINE, max_size=6), end=st.sampled_from(["\n", "\r\n"]), cut=st.integers(0, 3)
)
def test_any_file_gives_a_right_table_or_a_value_error(tmp_path_factory, lines, end, cut):
    file = tmp_path_factory.mktemp("fuzz") / "log.csv"
    text = end.join([COLUMNS, *map(",".join, lines)])
    file.write_bytes(text[: len(text) - cut].encode())
    try:
        table, report = prepare_sessions(read_mssd(file))
    except ValueError:
        return
    assert report.rows_read == len(lines)
    assert table["feedback"].is_in([-1.0, 0.0, 1.0]).all()
    expected = {(line[0], int(line[1])): line[2] for line in lines}
    for session, position, item in table.select("session_id", "position", "item_id").rows():
        assert expected[session, position].strip('"') == item


@given(lines=st.lists(RIGHT_LINE, min_size=1, max_size=8))
def test_any_right_file_is_read_row_by_row_as_plain_python_reads_it(tmp_path_factory, lines):
    file = write(tmp_path_factory.mktemp("right") / "log.csv", [",".join(line) for line in lines], COLUMNS)
    expected = []
    for session, position, item, *flags in lines:
        told = [flag.lower() == "true" for flag in flags]
        feedback = -1.0 if told[1] else 1.0 if any(told) else 0.0
        expected.append((session, item, feedback, int(position)))
    assert read_mssd(file).collect().rows() == expected


@pytest.mark.real_data
def test_the_excerpts_have_the_counted_shares_of_skips(real_data):
    for name, rows, sessions, shares in [
        ("log_excerpt_complete.csv", 201, 11, {"skip_1": 0.34, "skip_2": 0.41, "skip_3": 0.51}),
        ("log_excerpt_prehistory.csv", 1180, 169, {"skip_1": 0.36, "skip_2": 0.49, "skip_3": 0.65}),
    ]:
        for label, share in shares.items():
            table = read_mssd(real_data / "mssd" / name, label=label).collect()
            assert (table.height, table["session_id"].n_unique()) == (rows, sessions)
            assert (table["feedback"] < 0).mean() == pytest.approx(share, abs=0.006)
        graded = read_mssd(real_data / "mssd" / name, label="graded").collect()
        assert (graded["feedback"] > 0).mean() == pytest.approx(0.45 if rows == 201 else 0.34, abs=0.006)


@pytest.mark.real_data
def test_the_excerpt_is_prepared_without_loss(real_data):
    table, report = prepare_sessions(read_mssd(real_data / "mssd" / "log_excerpt_complete.csv"))
    assert (table.height, report.sessions_kept, report.items_kept) == (201, 11, 175)
