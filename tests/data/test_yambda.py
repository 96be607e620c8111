import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import prepare_sessions, read_yambda

TYPES = {"uid": pl.UInt32, "item_id": pl.UInt32, "timestamp": pl.UInt32}
UNDONE = {"like": "unlike", "dislike": "undislike"}


def write_plays(folder, rows, name="listens.parquet"):
    """Rows of user, track, time and percent."""
    schema = TYPES | {"played_ratio_pct": pl.UInt16}
    table = pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        is_organic=pl.lit(1, pl.UInt8), track_length_seconds=pl.lit(200, pl.UInt32)
    )
    table.write_parquet(folder / name)
    return folder / name


def write_opinions(folder, name, rows):
    pl.DataFrame(rows, schema=TYPES, orient="row").write_parquet(folder / f"{name}.parquet")
    return folder / f"{name}.parquet"


def write_events(folder, rows):
    """Rows of user, track, time, event and percent."""
    kinds = pl.Enum(["listen", "like", "dislike", "unlike", "undislike"])
    schema = TYPES | {"event_type": kinds, "played_ratio_pct": pl.UInt16}
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "multi_event.parquet")
    return folder / "multi_event.parquet"


def test_plays_become_sessions_of_a_user(tmp_path):
    write_plays(tmp_path, [(1, 7, 0, 100), (1, 8, 1200, 50), (1, 9, 2405, 51), (2, 7, 5, 159)])
    table = read_yambda(tmp_path).collect()
    assert table.schema == {
        "session_id": pl.String,
        "item_id": pl.Int64,
        "feedback": pl.Float32,
        "timestamp": pl.Int64,
        "user_id": pl.Int64,
        "copy_key": pl.Float64,
    }
    assert table.drop("copy_key").rows() == [
        ("1/0", 7, 1.0, 0, 1),
        ("1/0", 8, -1.0, 1200, 1),
        ("1/1", 9, 1.0, 2405, 1),
        ("2/0", 7, 1.0, 5, 2),
    ]


def test_plays_without_a_user_are_refused(tmp_path):
    write_plays(tmp_path, [(None, 7, 0, 100), (1, 8, 5, 100)])
    with pytest.raises(ValueError, match=r"^`listens` must .* user .* in 1 of 2 rows.*`gap_minutes=None`"):
        read_yambda(tmp_path).collect()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [-1, -1, 1, 1, 1, 0]),
        ({"skip_ratio": 0.8}, [-1, -1, -1, 1, 1, 0]),
        ({"label": "ratio"}, [-1, 0, 0.5, 1, 1, 0]),
        ({"label": "ratio", "skip_ratio": 0.75}, [-1, -1 / 3, 0, 1, 1, 0]),
    ],
)
def test_each_label_reads_the_part_that_was_played_as_stated(tmp_path, settings, expected):
    rows = [(1, n, n, percent) for n, percent in enumerate([0, 50, 75, 100, 159, None])]
    table = read_yambda(write_plays(tmp_path, rows), **settings).collect()
    assert table["feedback"].to_list() == pytest.approx(expected)


def test_plays_of_one_step_of_the_clock_are_copies_only_if_as_much_was_played(tmp_path):
    rows = [(1, 7, 0, 3), (1, 7, 0, 3), (1, 7, 0, 5), (1, 8, 5, 90), (1, 9, 300, 90)]
    table, report = prepare_sessions(read_yambda(write_plays(tmp_path, rows)))
    assert (table.height, report.duplicate_rows) == (4, 1)


def test_the_plain_history_keeps_the_order_of_the_file_and_streams(tmp_path):
    file = write_plays(tmp_path, [(2, 7, 100, 90), (1, 8, 50, 10), (2, 7, 5, 90)])
    likes = write_opinions(tmp_path, "likes", [(2, 7, 50)])
    plain = read_yambda(file, gap_minutes=None).collect(engine="streaming")
    assert plain.columns == ["user_id", "item_id", "timestamp", "feedback", "copy_key"]
    assert plain.rows() == [(2, 7, 100, 1.0, 90), (1, 8, 50, -1.0, 10), (2, 7, 5, 1.0, 90)]
    told = read_yambda(file, likes=likes, gap_minutes=None).collect(engine="streaming")
    assert told.columns == [*plain.columns, "explicit_feedback"]
    assert told["explicit_feedback"].to_list() == [1, 0, 0]
    assert told.drop("explicit_feedback").equals(plain)


def test_an_opinion_counts_from_the_play_that_it_was_given_in_and_never_before(tmp_path):
    file = write_plays(tmp_path, [(1, 7, time, 100) for time in (0, 5, 10, 15, 20)])
    likes = write_opinions(tmp_path, "likes", [(1, 7, 5), (2, 7, 0), (1, 8, 0)])
    unlikes = write_opinions(tmp_path, "unlikes", [(1, 7, 15)])
    table = read_yambda(file, likes=likes, unlikes=unlikes).collect()
    assert table["explicit_feedback"].to_list() == [0, 1, 1, 0, 0]


def test_of_a_like_and_a_dislike_the_later_holds_and_the_other_comes_back_when_it_is_undone(tmp_path):
    file = write_plays(tmp_path, [(1, 7, time, 100) for time in range(0, 45, 10)])
    folders = {
        "likes": [(1, 7, 5)],
        "dislikes": [(1, 7, 15)],
        "undislikes": [(1, 7, 25)],
        "unlikes": [(1, 7, 35)],
    }
    given_files = {name: write_opinions(tmp_path, name, rows) for name, rows in folders.items()}
    table = read_yambda(file, **given_files).collect()
    assert table["explicit_feedback"].to_list() == [0, 1, -1, 1, 0]


def test_what_is_undone_in_the_same_step_is_undone(tmp_path):
    file = write_plays(tmp_path, [(1, 7, 10, 100)])
    likes = write_opinions(tmp_path, "likes", [(1, 7, 5)])
    unlikes = write_opinions(tmp_path, "unlikes", [(1, 7, 5)])
    table = read_yambda(file, likes=likes, unlikes=unlikes).collect()
    assert table["explicit_feedback"].to_list() == [0]


EVENTS = st.lists(
    st.tuples(
        st.integers(1, 2),
        st.integers(1, 2),
        st.integers(0, 6).map(lambda step: 5 * step),
        st.sampled_from(["listen", "listen", "like", "dislike", "unlike", "undislike"]),
    ),
    max_size=25,
)


@given(events=EVENTS)
def test_opinions_of_all_events_in_one_file_are_those_of_a_plain_loop(tmp_path_factory, events):
    rows = [(*event, 80 if event[3] == "listen" else None) for event in events]
    file = write_events(tmp_path_factory.mktemp("events"), rows)
    expected = []
    for user, item, time, kind in events:
        if kind != "listen":
            continue
        liked = disliked = False
        last = 0.0
        known = [each for each in events if each[:2] == (user, item) and each[2] <= time]
        for *_, event in sorted(known, key=lambda each: each[2]):
            liked = {"like": True, "unlike": False}.get(event, liked)
            disliked = {"dislike": True, "undislike": False}.get(event, disliked)
            last = {"like": 1.0, "dislike": -1.0}.get(event, last)
        opinion = last if liked and disliked else 1.0 if liked else -1.0 if disliked else 0.0
        expected.append((user, item, time, 1.0, opinion))
    history = read_yambda(file, gap_minutes=None).drop("copy_key")
    assert history.collect().rows() == expected
    assert history.collect(engine="streaming").rows() == expected


@given(events=EVENTS, time=st.integers(0, 6).map(lambda step: 5 * step))
def test_events_that_come_later_change_nothing(tmp_path_factory, events, time):
    folder = tmp_path_factory.mktemp("events")
    rows = [(*event, 80 if event[3] == "listen" else None) for event in events]
    whole = read_yambda(write_events(folder, rows), gap_minutes=None).filter(pl.col("timestamp") <= time)
    before = whole.collect()
    early = read_yambda(write_events(folder, [row for row in rows if row[2] <= time]), gap_minutes=None)
    assert early.collect().equals(before)


def test_the_log_with_opinions_is_prepared(tmp_path):
    write_plays(tmp_path, [(1, item, 60 * item, 100) for item in range(5)])
    write_opinions(tmp_path, "likes", [(1, 3, 0)])
    table, report = prepare_sessions(read_yambda(tmp_path, likes=tmp_path))
    assert report.rows_kept == 5
    assert table["explicit_feedback"].to_list() == [0, 0, 0, 1, 0]


def test_files_that_do_not_go_together_are_errors(tmp_path):
    plays = write_plays(tmp_path, [(1, 7, 0, 100)])
    likes = write_opinions(tmp_path, "likes", [(1, 7, 5)])
    events = write_events(tmp_path, [(1, 7, 0, "listen", 100)])
    with pytest.raises(ValueError, match="`unlikes` must come with `likes`"):
        read_yambda(plays, unlikes=likes)
    with pytest.raises(ValueError, match="`undislikes` must come with `dislikes`"):
        read_yambda(plays, likes=likes, undislikes=likes)
    with pytest.raises(ValueError, match="got others beside it"):
        read_yambda(events, likes=likes)
    with pytest.raises(ValueError, match="got files with and without"):
        read_yambda([plays, events])


def test_columns_that_are_missing_or_of_another_type_are_errors_with_their_argument(tmp_path):
    plays = write_plays(tmp_path, [(1, 7, 0, 100)])
    likes = write_opinions(tmp_path, "likes", [(1, 7, 5)])
    with pytest.raises(ValueError, match=r"`listens` .*'played_ratio_pct' of a numeric type.*likes\.parquet"):
        read_yambda(likes)
    pl.read_parquet(likes).with_columns(pl.col("uid").cast(pl.String)).write_parquet(likes)
    with pytest.raises(ValueError, match=r"`likes` .*'uid' of an integer type.*uid \(String\)"):
        read_yambda(plays, likes=likes)
    likes.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="`likes` must be a table whose columns can be read"):
        read_yambda(plays, likes=likes)
    with pytest.raises(ValueError, match="`dislikes` must exist"):
        read_yambda(plays, dislikes=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"`listens` must hold files named listens\.parquet"):
        read_yambda(tmp_path / "empty")


def test_an_event_that_is_unknown_is_an_error(tmp_path):
    file = tmp_path / "multi_event.parquet"
    row = {"uid": 1, "item_id": 2, "timestamp": 3, "played_ratio_pct": 4, "event_type": "share"}
    pl.DataFrame([row]).write_parquet(file)
    with pytest.raises(ValueError, match=r"`listens` .*'event_type'.*got 'share' in .*multi_event"):
        read_yambda(file).collect()


def test_a_file_that_vanishes_or_was_cut_short_is_an_error(tmp_path):
    file = write_plays(tmp_path, [(1, 7, 0, 100)])
    whole = file.read_bytes()
    table = read_yambda(file)
    file.unlink()
    with pytest.raises(ValueError, match="`log` must be readable to its last row, got FileNotFoundError"):
        prepare_sessions(table)
    file.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="`listens` must be a table whose columns can be read"):
        read_yambda(file)


@pytest.mark.parametrize(
    "setting", [{"label": "graded"}, {"skip_ratio": 0.0}, {"skip_ratio": 1.0}, {"gap_minutes": 0.0}]
)
def test_settings_out_of_range_are_errors(tmp_path, setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must be"):
        read_yambda(write_plays(tmp_path, [(1, 7, 0, 100)]), **setting)
