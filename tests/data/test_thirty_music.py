import gzip
import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import prepare_sessions, read_30music


def track(item, playstart=0, **more):
    return {"type": "track", "id": item, "playstart": playstart, "playtime": 9, "action": "play"} | more


def line(session, tracks, *, start=1_400_000_000, user=3, between=" ", event="event.session"):
    counted = {"numtracks": len(tracks), "playtime": 99}
    told = {"subjects": [{"type": "user", "id": user}], "objects": tracks}
    return f"{event}\t{session}\t{start}\t{json.dumps(counted)}{between}{json.dumps(told)}"


def write(folder, *lines):
    file = folder / "sessions.idomaar"
    file.write_text("".join(f"{each}\n" for each in lines), encoding="utf-8")
    return file


@pytest.mark.parametrize("between", [" ", "\t", ""])
@pytest.mark.parametrize("event", ["event.session", "event.play_session"])
def test_each_track_of_a_line_is_a_row_at_its_own_time(tmp_path, between, event):
    tracks = [track(5, 0, playratio=1.0), track(6, 200, playratio=0.1)]
    write(tmp_path, line(8, tracks, between=between, event=event), "", line(9, [track(5, 7)], user=4))
    table = read_30music(tmp_path).collect()
    assert table.schema == {
        "session_id": pl.Int64,
        "item_id": pl.Int64,
        "feedback": pl.Float32,
        "timestamp": pl.Int64,
        "user_id": pl.Int64,
        "copy_key": pl.Float64,
    }
    assert table.drop("copy_key").rows() == [
        (8, 5, 1.0, 1_400_000_000, 3),
        (8, 6, -1.0, 1_400_000_200, 3),
        (9, 5, 0.0, 1_400_000_007, 4),
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [-1, -1, 1, 1, 0, 0, 0]),
        ({"skip_ratio": 0.9}, [-1, -1, -1, 1, 0, 0, 0]),
        ({"label": "ratio"}, [-1, 0, 0.5, 1, 0, 0, 0]),
    ],
)
def test_a_ratio_is_read_as_stated_and_a_missing_one_is_unknown(tmp_path, settings, expected):
    ratios = [{"playratio": ratio} for ratio in (0, 0.5, 0.75, 1.2, None, -1)] + [{}]
    tracks = [track(n, n, **ratio) for n, ratio in enumerate(ratios)]
    table = read_30music(write(tmp_path, line(8, tracks)), **settings).collect()
    assert table["feedback"].to_list() == expected


def test_what_is_no_track_is_left_out(tmp_path):
    file = write(tmp_path, line(8, [{"type": "playlist", "id": 1}, track(5)]))
    assert read_30music(file).collect()["item_id"].to_list() == [5]


def test_a_ratio_that_is_no_finite_number_is_unknown(tmp_path):
    ids = pl.Series([1, 1, 1, 1])
    columns = dict.fromkeys(["session_id", "item_id", "timestamp", "user_id"], ids)
    file = tmp_path / "any.parquet"
    ratios = [float("nan"), float("inf"), -0.5, None]
    pl.DataFrame(columns | {"play_ratio": ratios}).write_parquet(file)
    for label in ("binary", "ratio"):
        assert read_30music(file, label=label).collect()["feedback"].to_list() == [0] * 4


def test_a_session_without_tracks_has_no_row_and_gzip_and_the_streaming_engine_change_nothing(tmp_path):
    text = "\n".join([line(1, []), line(2, [track(5), track(6, 9)]), line(3, [])])
    (tmp_path / "sessions.idomaar.gz").write_bytes(gzip.compress(text.encode()))
    log = read_30music(tmp_path)
    assert log.collect()["item_id"].to_list() == [5, 6]
    assert log.collect(engine="streaming").equals(log.collect())


def test_a_parquet_file_is_read_like_the_lines(tmp_path):
    lines = write(tmp_path, line(8, [track(5, playratio=0.2), track(6, 60, playratio=None)]))
    frame = pl.DataFrame(
        {
            "session_id": [8, 8],
            "item_id": [5, 6],
            "timestamp": [1_400_000_000, 1_400_000_060],
            "user_id": [3, 3],
            "play_ratio": [0.2, None],
        }
    )
    file = tmp_path / "any.parquet"
    frame.write_parquet(file)
    assert read_30music(file).collect().equals(read_30music(lines).collect())
    frame.rename({"play_ratio": "ratio"}).write_parquet(file)
    with pytest.raises(ValueError, match="column 'play_ratio' of a numeric type"):
        read_30music(file)
    frame.with_columns(pl.col("item_id").cast(pl.String)).write_parquet(file)
    with pytest.raises(ValueError, match=r"'item_id' of an integer type.*item_id \(String\)"):
        read_30music(file)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("event.like\t1\t2\t{} {}", "does not start with 'event.session'"),
        ("event.session 8 9 {} {}", "does not start with 'event.session'"),
        (line("x", [track(5)]), "invalid literal"),
        (line(8, [track(5)], start="noon"), "invalid literal"),
        (line(8, [track(5)], user=None), "None is no integer"),
        (line(8, [track(True)]), "True is no integer"),
        (line(8, [track(5.5)]), "5.5 is no integer"),
        (line(8, [track(2**62)]), "is no integer"),
        (line(8, [track(float("inf"))]), "infinity"),
        (line(8, [track(5, None)]), "None is no integer"),
        (line(8, [track(5, playratio="0.5")]), "the ratio '0.5' is no number"),
        (line(8, [track(5, playratio=float("nan"))]), "the ratio nan is no number"),
        (line(8, [{"type": "track", "playstart": 0}]), "a track has no 'id'"),
        (line(8, ["5"]), "no list of 'objects'"),
        (line(8, [track(5)])[:-1], "Expecting"),
        (line(8, [track(5)]) + "{}", "Extra data"),
        ('event.session\t1\t2\t{} {"subjects": [], "objects": []}', "names 0 users"),
        ("event.session\t1\t2\t{} []", "no list of 'subjects'"),
        ("event.session\t1\t2\t{}", "Expecting value"),
        ("event.session\t1\t2\t" + "[" * 100_000, "recursion"),
    ],
)
def test_a_wrong_line_is_an_error_with_its_file_and_what_is_wrong(tmp_path, wrong, message):
    file = write(tmp_path, line(8, [track(5)]), wrong)
    with pytest.raises(ValueError, match=rf"(?s)`paths` .*sessions\.idomaar'.*{message}"):
        read_30music(file, max_damaged=0).collect()


PLAY = st.tuples(st.integers(0, 9), st.integers(0, 999), st.none() | st.floats(-1, 2, width=32))


@given(sessions=st.lists(st.lists(PLAY, max_size=4), min_size=1, max_size=4), cut=st.integers(0, 3))
def test_any_file_gives_what_was_written_or_a_value_error(tmp_path_factory, sessions, cut):
    lines = [
        line(number, [track(item, after, playratio=ratio) for item, after, ratio in plays])
        for number, plays in enumerate(sessions)
    ]
    file = tmp_path_factory.mktemp("fuzz") / "sessions.idomaar"
    text = "\n".join(lines)
    file.write_text(text[: len(text) - cut])
    expected = [
        (
            number,
            item,
            0.0 if ratio is None or ratio < 0 else -1.0 if ratio <= 0.5 else 1.0,
            1_400_000_000 + after,
            3,
        )
        for number, plays in enumerate(sessions)
        for item, after, ratio in plays
    ]
    if cut:
        with pytest.raises(ValueError, match="must hold lines"):
            read_30music(file, max_damaged=0).collect()
    else:
        assert read_30music(file, max_damaged=0).drop("copy_key").collect().rows() == expected


@pytest.mark.parametrize("setting", [{"label": "graded"}, {"skip_ratio": 1.5}, {"max_damaged": 1.0}])
def test_settings_out_of_range_are_errors(tmp_path, setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must be"):
        read_30music(write(tmp_path, line(8, [track(5)])), **setting)


@pytest.mark.real_data
def test_the_real_excerpt_has_the_counted_plays(real_data):
    table = read_30music(real_data / "30music", skip_ratio=0.9).collect()
    assert table.height == 86_468
    assert (table["feedback"] < 0).mean() == pytest.approx(0.007, abs=0.001)
    assert prepare_sessions(read_30music(real_data / "30music"))[1].rows_read == 86_468
