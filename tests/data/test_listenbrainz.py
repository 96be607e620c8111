import json
import zipfile
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import prepare_sessions, read_listenbrainz
from skipcl_lightning.data.readers.parsing import DamagedLinesWarning

NOON = 1_714_560_000
DASH = " \N{EN DASH} "


def listen(time=NOON, artist="Artist", track="Track", *, mapped=None, submitted=None, **more):
    metadata = {
        "artist_name": artist,
        "track_name": track,
        "additional_info": {"recording_mbid": submitted, "duration_ms": 200_000},
        "mbid_mapping": mapped and {"recording_mbid": mapped, "artists": []},
    }
    return {"listened_at": time, "inserted_at": 1.5, "track_metadata": metadata} | more


def write(folder, *listens, name="listens/2024/5.jsonl"):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(each) + "\n" for each in listens), encoding="utf-8")
    return file


def test_an_export_becomes_one_listeners_sessions(tmp_path):
    write(tmp_path, listen(NOON + 4000, track="d"), name="listens/2024/10.jsonl")
    # Whole seconds with a decimal point, as the export writes them.
    write(
        tmp_path, listen(float(NOON), track="a"), listen(NOON + 30, track="b"), listen(NOON + 61, track="c")
    )
    for name in ("user.json", "feedback.jsonl", "pinned_recording.jsonl"):
        (tmp_path / name).write_text('{"recording_mbid": null}\n')
    table = read_listenbrainz(tmp_path).collect()
    assert table.schema == {
        "session_id": pl.Int64,
        "item_id": pl.String,
        "feedback": pl.Float32,
        "timestamp": pl.Datetime("us", "UTC"),
    }
    assert table.rows() == [
        (0, f"Artist{DASH}a", -1.0, datetime.fromtimestamp(NOON, UTC)),
        (0, f"Artist{DASH}b", 1.0, datetime.fromtimestamp(NOON + 30, UTC)),
        (0, f"Artist{DASH}c", 1.0, datetime.fromtimestamp(NOON + 61, UTC)),
        (1, f"Artist{DASH}d", 0.0, datetime.fromtimestamp(NOON + 4000, UTC)),
    ]


def test_an_item_is_the_mapped_recording_else_the_submitted_one_else_the_names(tmp_path):
    bare = {"listened_at": NOON + 3, "track_metadata": {"artist_name": "A", "track_name": "T"}}
    file = write(
        tmp_path,
        listen(NOON, mapped="mapped", submitted="submitted"),
        listen(NOON + 1, submitted="submitted"),
        listen(NOON + 2, submitted=""),
        bare,
        listen(NOON + 4, track=None),
        listen(NOON + 5, artist=""),
    )
    names = [f"Artist{DASH}Track", f"A{DASH}T"]
    table = read_listenbrainz(file).collect()
    assert table["item_id"].to_list() == ["mapped", "submitted", *names, None, None]


def test_a_dump_keeps_its_listeners_apart(tmp_path):
    write(
        tmp_path,
        listen(NOON, user_name="v", user_id=7),
        listen(NOON + 5, user_name="u"),
        listen(NOON + 10, user_name="v"),
        name="2005/1.listens",
    )
    table = read_listenbrainz(tmp_path).collect()
    assert table.select("session_id", "feedback", "user_id").rows() == [
        ("u/0", 0.0, "u"),
        ("v/0", -1.0, "v"),
        ("v/0", 0.0, "v"),
    ]


def test_the_plain_history_keeps_the_order_of_the_file_and_streams(tmp_path):
    file = write(tmp_path, listen(NOON + 9, mapped="b"), listen(NOON, mapped="a"))
    history = read_listenbrainz(file, gap_minutes=None).collect(engine="streaming")
    assert history.columns == ["item_id", "timestamp"]
    assert history["item_id"].to_list() == ["b", "a"]
    file = write(tmp_path, listen(NOON + 9, user_name="u"))
    assert read_listenbrainz(file, gap_minutes=None).collect().columns == ["user_id", "item_id", "timestamp"]


def test_by_default_a_pause_of_more_than_20_minutes_starts_a_session(tmp_path):
    times = [NOON, NOON + 1200, NOON + 2401]
    file = write(tmp_path, *(listen(time) for time in times))
    assert read_listenbrainz(file).collect()["session_id"].to_list() == [0, 0, 1]


def test_files_with_and_without_users_do_not_go_together(tmp_path):
    write(tmp_path, listen(user_name="u"), name="1.jsonl")
    write(tmp_path, listen(), name="2.jsonl")
    with pytest.raises(ValueError, match=r"1\.jsonl' with a 'user_name' and '.*2\.jsonl' without"):
        read_listenbrainz(tmp_path)


WRONG = [
    ("[1]", "'track_metadata'"),
    ("null", "'track_metadata'"),
    (json.dumps({"listened_at": NOON}), "'track_metadata'"),
    (json.dumps(listen(None)), "'listened_at' is None"),
    (json.dumps(listen(str(NOON))), "'listened_at' is '1714560000' and no number"),
    (json.dumps(listen(True)), "'listened_at' is True"),
    (json.dumps(listen(float("nan"))), "'listened_at' is nan"),
    (json.dumps(listen(NOON * 1000)), "not in seconds since 1970"),
    (json.dumps(listen(-1)), "not in seconds since 1970"),
    (json.dumps(listen(10**400)), "int too large"),
    (json.dumps(listen(artist="\ud800")), "surrogates not allowed"),
    (json.dumps(listen(artist=3)), "'artist_name' is 3 and no text"),
    (json.dumps(listen(mapped=[3])), r"'recording_mbid' is \[3\] and no text"),
    ('{"listened_at": 1, "track_metadata": {"mbid_mapping": "m"}}', "'mbid_mapping' is no JSON object"),
    ("[" * 100_000, "recursion"),
]


def test_lines_that_are_no_json_are_dropped_and_named_in_one_warning(tmp_path):
    listens = [json.dumps(listen(NOON + 60 * n, track=f"T{n}")) for n in range(4)]
    listens.insert(2, listens[1][:50])
    (tmp_path / "1.jsonl").write_text("\n".join(listens))
    with pytest.warns(DamagedLinesWarning, match=r"1 of \d lines of .*1\.jsonl' are damaged.*rows 3\."):
        assert read_listenbrainz(tmp_path).collect().height == 4
    with pytest.raises(ValueError, match=r"must hold lines.* in row 3 of .*1\.jsonl.*Unterminated"):
        read_listenbrainz(tmp_path, max_damaged=0).collect()
    # More than ten damaged lines are too many in a short file.
    (tmp_path / "1.jsonl").write_text("\n".join([listens[0], *["{"] * 11, *listens[:2] * 10]))
    with pytest.raises(ValueError, match=r"raise `max_damaged`, 0\.001 now"):
        read_listenbrainz(tmp_path).collect()
    (tmp_path / "1.jsonl").write_text("{\n" + listens[0])
    with pytest.raises(ValueError, match=r"must hold lines.* in row 1 of .*1\.jsonl.*Expecting"):
        read_listenbrainz(tmp_path)


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_a_wrong_line_is_an_error_at_once_if_it_is_the_first_and_else_once_collected(
    tmp_path, wrong, message
):
    (tmp_path / "1.jsonl").write_text(wrong + "\n")
    with pytest.raises(ValueError, match=rf"(?s)must hold lines.*1\.jsonl.*({message})"):
        read_listenbrainz(tmp_path)
    (tmp_path / "1.jsonl").write_text(f"{json.dumps(listen())}\n{wrong}\n")
    log = read_listenbrainz(tmp_path)
    with pytest.raises(ValueError, match=rf"(?s)must hold lines.*1\.jsonl.*({message})"):
        log.collect()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"user_name": "u"}, {}),
        ({}, {"user_name": "u"}),
        *[({"user_name": "u"}, {"user_name": n}) for n in ("", None, 3)],
    ],
)
def test_a_listen_that_names_its_user_otherwise_than_the_first_is_an_error(tmp_path, first, second):
    file = write(tmp_path, listen(**first), listen(**second))
    with pytest.raises(ValueError, match="'user_name'"):
        read_listenbrainz(file).collect()


NAME = st.none() | st.text(st.sampled_from('aé"\t\n\\ '), max_size=2)
LISTENS = st.lists(
    st.builds(listen, st.integers(NOON, NOON + 3000), NAME, NAME, mapped=NAME, submitted=NAME),
    min_size=1,
    max_size=8,
)


@given(listens=LISTENS, cut=st.integers(0, 2))
def test_any_file_gives_what_plain_python_reads_or_a_value_error(tmp_path_factory, listens, cut):
    file = write(tmp_path_factory.mktemp("fuzz"), *listens)
    text = file.read_text()
    file.write_text(text[: len(text) - cut])
    if cut == 2:
        with pytest.raises(ValueError, match="must hold lines"):
            read_listenbrainz(file, max_damaged=0).collect()
        return
    expected = []
    for each in listens:
        told = each["track_metadata"]
        mapped = (told["mbid_mapping"] or {}).get("recording_mbid")
        names = [told["artist_name"], told["track_name"]]
        submitted = told["additional_info"]["recording_mbid"]
        known = [value and value.strip() and value for value in (mapped, submitted)]
        named = all(name and name.strip() for name in names)
        item = known[0] or known[1] or (DASH.join(names) if named else None)
        expected.append((item, datetime.fromtimestamp(each["listened_at"], UTC)))
    history = read_listenbrainz(file, gap_minutes=None).collect()
    assert history.select("item_id", "timestamp").rows() == expected
    assert read_listenbrainz(file).collect().height == len(set(expected))


def test_a_placeholder_in_place_of_an_id_falls_back_on_the_names(tmp_path):
    file = write(tmp_path, *[listen(NOON + 60 * n, track=f"T{n}", submitted="None") for n in range(3)])
    items = read_listenbrainz(file).collect()["item_id"].to_list()
    assert items == [f"Artist{DASH}T{n}" for n in range(3)]


def test_listens_of_two_exports_that_overlap_count_once_and_are_no_skips(tmp_path):
    may = [listen(NOON + 240 * n, track=f"T{n}") for n in range(10)]
    june = [listen(NOON + 240 * n, track=f"T{n}") for n in range(5, 15)]
    files = [write(tmp_path, *may, name="may/1.jsonl"), write(tmp_path, *june, name="june/1.jsonl")]
    table = read_listenbrainz(files).collect()
    assert table.height == 15
    assert table["feedback"].to_list() == [1.0] * 14 + [0.0]


def test_an_export_may_stay_in_its_archive(tmp_path):
    lines = "".join(json.dumps(listen(NOON + 60 * n, track=f"T{n}")) + "\n" for n in range(3))
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.writestr("user.json", "{}")
        archive.writestr("feedback.jsonl", "{}")
        archive.writestr("listens/2024/5.jsonl", lines)
    assert read_listenbrainz(tmp_path / "export.zip").collect().height == 3
    (tmp_path / "wrong.zip").write_bytes((tmp_path / "export.zip").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"wrong\.zip"):
        read_listenbrainz(tmp_path / "wrong.zip")


def test_nameless_tracks_are_counted_at_the_preparation(tmp_path):
    listens = [listen(NOON + 60 * n, mapped=f"m{n}") for n in range(4)]
    write(tmp_path, *listens, listen(NOON + 400, track=None))
    assert prepare_sessions(read_listenbrainz(tmp_path))[1].rows_without_item == 1


def test_settings_out_of_range_are_errors(tmp_path):
    file = write(tmp_path, listen())
    for setting in ({"skip_seconds": 0.0}, {"gap_minutes": 0.0}, {"max_damaged": 1.0}):
        with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must be in"):
            read_listenbrainz(file, **setting)
