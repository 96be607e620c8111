from datetime import UTC, datetime, timedelta
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import (
    label_by_next_play,
    prepare_sessions,
    prepare_store,
    read_lfm1k,
    sessionise,
)
from skipcl_lightning.data.readers.parsing import DamagedLinesWarning

START = datetime(2009, 5, 4, 23, 8, 57, tzinfo=UTC)
DASH = " \N{EN DASH} "


def line(
    seconds: int = 0,
    track_id: str = "",
    track: str = "Track",
    *,
    user: str = "user_000001",
    artist: str = "Artist",
) -> str:
    time = (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{user}\t{time}\tartist-mbid\t{artist}\t{track_id}\t{track}"


def write(folder, *lines, name="log.tsv"):
    file = folder / name
    file.write_text("".join(f"{each}\n" for each in lines), encoding="utf-8", newline="")
    return file


def test_an_item_is_the_mbid_else_artist_and_track_else_null(tmp_path):
    file = write(tmp_path, line(0, "mbid"), line(100), line(200, track=""), line(300, artist=""))
    assert read_lfm1k(file).collect()["item_id"].to_list() == ["mbid", f"Artist{DASH}Track", None, None]


def test_a_track_is_skipped_if_the_same_users_next_one_starts_within_the_limit(tmp_path):
    # As in the file itself, the latest play comes first.
    file = write(
        tmp_path, line(4000, "d"), line(61, "c"), line(30, "b"), line(15, "x", user="v"), line(0, "a")
    )
    table = read_lfm1k(file, skip_seconds=30).collect()
    assert table.schema == {
        "session_id": pl.String,
        "item_id": pl.String,
        "feedback": pl.Float32,
        "timestamp": pl.Datetime("us", "UTC"),
        "user_id": pl.String,
    }
    assert table.select("session_id", "item_id", "feedback").rows() == [
        ("user_000001/0", "a", -1.0),
        ("user_000001/0", "b", 1.0),
        ("user_000001/0", "c", 1.0),
        ("user_000001/1", "d", 0.0),
        ("v/0", "x", 0.0),
    ]
    assert table["timestamp"][0] == START


def test_quotation_marks_and_signs_are_characters_like_any_other(tmp_path):
    file = write(
        tmp_path,
        line(0, track='"Heroes', artist="Art\rist"),
        line(9, track="#1"),
        "",
        line(20, track='a,"b"'),
    )
    assert read_lfm1k(file).collect()["item_id"].to_list() == [
        f'Art\rist{DASH}"Heroes',
        f"Artist{DASH}#1",
        f'Artist{DASH}a,"b"',
    ]


def test_the_plain_history_keeps_the_order_of_the_file_and_can_be_streamed_to_the_same_sessions(tmp_path):
    file = write(tmp_path, line(900, "b"), line(0, "a", user="v"), line(880, "c"), line(9000, "a"))
    history = read_lfm1k(file, gap_minutes=None)
    assert history.collect()["item_id"].to_list() == ["b", "a", "c", "a"]
    history.sink_parquet(tmp_path / "part.parquet", engine="streaming")
    part = pl.scan_parquet(tmp_path / "part.parquet")
    assert part.collect_schema().names() == ["user_id", "item_id", "timestamp"]
    later = sessionise(label_by_next_play(part, skip_seconds=30), gap_minutes=20).collect()
    assert later.select(sorted(later.columns)).equals(
        (at_once := read_lfm1k(file).collect()).select(sorted(at_once.columns))
    )


def test_users_may_be_spread_over_several_files(tmp_path):
    files = [write(tmp_path, line(20, "b"), name="1.tsv"), write(tmp_path, line(0, "a"), name="2.tsv")]
    assert read_lfm1k(files).collect()["feedback"].to_list() == [-1, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (line().replace("\t", "", 1), "6 fields .* in every line"),
        (line() + "\tmore", "6 fields .* in every line"),
        (line().rsplit("\t", 2)[0], "6 fields .* in every line"),
        (line(user=""), "a text in column 'user'.*got ''"),
        (
            line().replace("2009-05-04T", "04/05/2009 "),
            "ISO 8601 in column 'time'.*'04/05/2009 .* in row 2 ",
        ),
        (line().replace("-05-", "-13-"), "column 'time'.*got '2009-13-04"),
    ],
)
def test_a_wrong_line_is_an_error_with_its_file_and_value(tmp_path, wrong, message):
    file = write(tmp_path, line(), wrong)
    with pytest.raises(ValueError, match=rf"(?s){message}.*log\.tsv"):
        read_lfm1k(file, max_damaged=0).collect()


def test_damaged_lines_are_dropped_and_named_in_one_warning(tmp_path):
    lines = [line(200 * n, f"m{n}") for n in range(20)]
    lines.insert(7, line(1, "x") + "\tmore")
    lines.insert(15, "cut in two")
    file = write(tmp_path, *lines)
    with pytest.warns(DamagedLinesWarning, match=r"2 of 22 lines of .*log\.tsv' are damaged.*rows 8, 16\."):
        table = read_lfm1k(file).collect()
    assert table["item_id"].to_list() == [f"m{n}" for n in range(20)]


def test_too_many_damaged_lines_are_one_error_with_their_rows(tmp_path):
    lines = [line(n, f"m{n}") for n in range(30)] + ["cut"] * 11
    message = r"got 11 others among 41 in .*log\.tsv': rows 31, 32, 33, 34, 35, …\. .*`max_damaged`, 0.001"
    with pytest.raises(ValueError, match=message):
        read_lfm1k(write(tmp_path, *lines)).collect()
    with pytest.warns(DamagedLinesWarning, match="11 of 41"):
        assert read_lfm1k(write(tmp_path, *lines), max_damaged=0.3).collect().height == 30
    with pytest.raises(ValueError, match=r"`max_damaged` must be in \[0, 1\)"):
        read_lfm1k(write(tmp_path, *lines), max_damaged=1.0)


def test_a_file_that_runs_newest_first_gives_the_same_sessions(tmp_path):
    heard = [line(0, "a"), line(200, "b"), line(400, "a"), line(400, "b"), line(420, "a")]
    expected, reports = [], []
    for lines in (heard, heard[::-1]):
        file = write(tmp_path, *lines)
        table, report = prepare_sessions(read_lfm1k(file))
        expected.append(table.select("item_id", "feedback").rows())
        reports.append(report)
        folder = tmp_path / f"store{len(reports)}"
        history = read_lfm1k(file, gap_minutes=None)
        stored = prepare_store(history, folder, gap_minutes=20, skip_seconds=30, rows_in_memory=2)
        names = stored.vocabulary.decode(stored.store.items)
        assert list(names) == ["a", "b", "a", "b", "a"]
        assert stored.store.feedback.tolist() == [1, 1, -1, -1, 0]
    assert expected[0] == expected[1] == [("a", 1), ("b", 1), ("a", -1), ("b", -1), ("a", 0)]


def test_placeholders_of_ids_and_names_are_not_known(tmp_path):
    file = write(
        tmp_path, line(0, "None"), line(60, "", "Song", artist="Unknown Artist"), line(120, "", "None")
    )
    assert read_lfm1k(file).collect()["item_id"].to_list() == [
        f"Artist{DASH}Track",
        None,
        f"Artist{DASH}None",
    ]


def test_copies_go_before_labels_are_made(tmp_path):
    plays = [line(200 * n, f"m{n}") for n in range(5)]
    table = read_lfm1k(write(tmp_path, *plays, *plays[2:])).collect()
    assert table["feedback"].to_list() == [1.0, 1.0, 1.0, 1.0, 0.0]


def test_settings_out_of_range_are_errors(tmp_path):
    file = write(tmp_path, line())
    for setting in ({"skip_seconds": 0.0}, {"gap_minutes": 0.0}, {"skip_seconds": -1, "gap_minutes": None}):
        with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must be in"):
            read_lfm1k(file, **setting)


FIELD = st.text(st.sampled_from('aé"\t,\r\x00 '), max_size=3)
WRONG = st.tuples(FIELD, st.sampled_from(["2009-05-04T23:08:57Z", "", "now"]), FIELD, FIELD, FIELD, FIELD)
RIGHT = st.builds(
    line,
    st.integers(0, 3000),
    st.sampled_from(["", "m", "n"]),
    st.text(st.sampled_from("aé\"', "), max_size=2),
    user=st.sampled_from(["u", "v"]),
    artist=st.sampled_from(["", "A", '"']),
)


def read_by_hand(text: str) -> list[tuple[str, str | None, datetime]]:
    rows = []
    for each in text.split("\n"):
        if each.rstrip("\r"):
            user, time, _, artist, track_id, track = each.rstrip("\r").split("\t")
            item = track_id.strip() and track_id
            item = item or (artist + DASH + track if artist.strip() and track.strip() else None)
            rows.append((user, item, datetime.fromisoformat(time)))
    return rows


@given(
    lines=st.lists(RIGHT | WRONG.map("\t".join), max_size=5),
    end=st.sampled_from(["\n", "\r\n"]),
    cut=st.integers(0, 3),
)
def test_any_file_gives_what_plain_python_reads_or_a_value_error(tmp_path_factory, lines, end, cut):
    file = tmp_path_factory.mktemp("fuzz") / "log.tsv"
    text = end.join(lines)
    text = text[: len(text) - cut]
    file.write_bytes(text.encode())
    try:
        history = read_lfm1k(file, gap_minutes=None, max_damaged=0).collect()
        rows = history.select("user_id", "item_id", "timestamp").rows()
    except ValueError:
        return
    assert rows == read_by_hand(text)


@given(lines=st.lists(RIGHT, min_size=1, max_size=12), seconds=st.sampled_from([1.0, 30.0, 600.0]))
def test_any_right_file_becomes_the_sessions_of_a_plain_loop(tmp_path_factory, lines, seconds):
    file = write(tmp_path_factory.mktemp("right"), *lines)
    expected = []
    rows = read_by_hand("\n".join(lines))
    steps = [later[2] - row[2] for row, later in pairwise(rows)]
    falls, rises = (sum(s < timedelta() for s in steps), sum(s > timedelta() for s in steps))
    if falls >= 3 and falls > 9 * rises:
        rows.reverse()  # newest first
    plays = sorted(dict.fromkeys(rows), key=lambda row: (row[0], row[2]))
    number = 0
    for place, (user, item, time) in enumerate(plays):
        before, after = plays[place - 1] if place else None, plays[place + 1 : place + 2]
        if before is None or before[0] != user:
            number = 0
        elif time - before[2] > timedelta(minutes=20):
            number += 1
        if not after or after[0][0] != user:
            feedback = 0.0
        else:
            feedback = -1.0 if (after[0][2] - time).total_seconds() <= seconds else 1.0
        expected.append((f"{user}/{number}", item, feedback, time, user))
    assert read_lfm1k(file, skip_seconds=seconds).collect().rows() == expected


@pytest.mark.filterwarnings("ignore:The column 'feedback' lies in")  # these few plays hold no skip
def test_the_log_is_prepared_and_its_nameless_tracks_are_counted(tmp_path):
    file = write(tmp_path, line(0, "a"), line(180, "b"), line(200, track=""), line(300, "c"))
    _, report = prepare_sessions(read_lfm1k(file))
    assert (report.rows_read, report.rows_without_item) == (4, 1)
