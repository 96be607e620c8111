"""What every reader of a public log does with files that are broken, whatever is in them."""

import gzip
import json
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import (
    prepare_sessions,
    read_30music,
    read_lfm1k,
    read_lfm2b,
    read_listenbrainz,
    read_movielens,
)
from skipcl_lightning.data.readers.parsing import DamagedLinesWarning

# The few plays of these logs hold no skip, which is a warning of the preparation.
pytestmark = pytest.mark.filterwarnings("ignore:The column 'feedback' lies in")


def lfm1k(n):
    return f"u\t2009-05-04T23:{n % 60:02}:57Z\tm\tArtist\tt{n}\tTrack"


def lfm2b(n):
    return f"1\t{n}\t5\t2019-01-01 00:{n % 60:02}:13"


def thirty_music(n):
    track = {"type": "track", "id": n, "playstart": n}
    return "event.session\t7\t1400000000\t{} " + json.dumps(
        {"subjects": [{"type": "user", "id": 1}], "objects": [track]}
    )


def listenbrainz(n):
    return json.dumps({"listened_at": n, "track_metadata": {"artist_name": "A", "track_name": f"T{n}"}})


# The reader, the name it looks for in folders, the header and a row.
READERS = {
    "lfm1k": (read_lfm1k, "userid-timestamp-artid-artname-traid-traname.tsv", "", lfm1k),
    "lfm2b": (read_lfm2b, "listening_events.tsv", "user_id\ttrack_id\talbum_id\ttimestamp\n", lfm2b),
    "ml-100k": (read_movielens, "u.data", "", lambda n: f"1\t{n}\t3\t{n}"),
    "ml-1m": (read_movielens, "ratings.dat", "", lambda n: f"1::{n}::3::{n}"),
    "ml-20m": (
        read_movielens,
        "ratings.csv",
        "userId,movieId,rating,timestamp\n",
        lambda n: f"1,{n},3.5,{n}",
    ),
    "30music": (read_30music, "sessions.idomaar", "", thirty_music),
    "listenbrainz": (read_listenbrainz, "1.jsonl", "", listenbrainz),
}


@pytest.fixture(params=READERS)
def log(request):
    return READERS[request.param]


def text_of(header, row, rows=9):
    return header + "".join(f"{row(n)}\n" for n in range(rows))


@pytest.mark.filterwarnings("ignore::skipcl_lightning.data.prepare.preparation.FeedbackWarning")
def test_a_folder_is_searched_with_its_sub_folders_and_gzipped_files_are_read(log, tmp_path):
    read, name, header, row = log
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / f"{name}.gz").write_bytes(gzip.compress(text_of(header, row).encode()))
    (tmp_path / "notes.txt").write_text("no log")
    (tmp_path / "other.tsv").write_text("no log")
    assert prepare_sessions(read(tmp_path))[1].rows_read == 9


def test_a_mark_of_the_byte_order_is_left_out(log, tmp_path):
    read, name, header, row = log
    (tmp_path / name).write_text(text_of(header, row), encoding="utf-8-sig")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / name).write_text(text_of(header, row))
    assert read(tmp_path / name).collect().equals(read(plain).collect())


def test_several_files_are_one_log_and_empty_lines_at_the_end_do_no_harm_without_a_header(log, tmp_path):
    read, name, header, row = log
    for place in ("a", "b"):
        (tmp_path / f"{place}-{name}").write_text(text_of(header, row) + ("" if header else "\n\n"))
    files = [tmp_path / f"{place}-{name}" for place in ("a", "b")]
    # Readers that make labels from the next play drop copies before.
    labels = name.startswith(("userid-", "listening_events", "1.jsonl"))
    assert read(files).collect().height == (9 if labels else 18)


@given(
    name=st.sampled_from(sorted(READERS)),
    place=st.integers(0, 10**6),
    new=st.sampled_from('0-x"\t,:{\n\r\x00é'),
)
def test_a_file_with_any_one_character_wrong_gives_a_table_or_a_value_error(
    tmp_path_factory, name, place, new
):
    read, title, header, row = READERS[name]
    text = text_of(header, row)
    place %= len(text)
    file = tmp_path_factory.mktemp("fuzz") / title
    file.write_text(text[:place] + new + text[place + 1 :], newline="")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DamagedLinesWarning)
            _, report = prepare_sessions(read(file))
    except ValueError:
        return
    # A line break is one row more at most; one lost joins two, which may make a damaged one.
    assert 7 <= report.rows_read <= 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty files"),
        (b"\n\n", "empty files|header|column"),
        (b"\xff\xfe\x00\x01", "in UTF-8"),
        (b"\x1f\x8bnot gzip", "in UTF-8"),
        (b"BZh91AY&SY\xff\xff", "in UTF-8"),
        (b"a;b;c;d\n1;2;3;4\n", "between|own form"),
    ],
)
def test_a_file_that_is_no_such_log_is_an_error_at_once(log, tmp_path, content, message):
    read, name, _, _ = log
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_bytes_that_are_no_text_far_down_are_told_with_the_file(log, tmp_path):
    read, name, header, row = log
    (tmp_path / name).write_bytes(text_of(header, row).encode() + b"\xff\xfe\n")
    with pytest.raises(ValueError, match=rf"^`paths` must .*{name}"):
        prepare_sessions(read(tmp_path))


def test_a_gzip_file_that_was_cut_short_is_told_at_the_preparation(log, tmp_path):
    read, name, header, row = log
    whole = gzip.compress(text_of(header, row, 20_000).encode())
    (tmp_path / f"{name}.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match="`log` must be readable to its last row, got OSError: unexpected end"
    ):
        prepare_sessions(read(tmp_path))


def test_a_file_that_vanishes_is_told_at_the_preparation(log, tmp_path):
    read, name, header, row = log
    (tmp_path / name).write_text(text_of(header, row))
    table = read(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="`log` must be readable to its last row, got FileNotFoundError"):
        prepare_sessions(table)


def test_paths_that_are_missing_empty_or_no_paths_are_errors(log, tmp_path):
    read = log[0]
    with pytest.raises(ValueError, match="must exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="files named "):
        read(tmp_path)
    with pytest.raises(ValueError, match="at least one file"):
        read([])
    with pytest.raises(TypeError, match="strings or"):
        read([3])
