import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from skipcl_lightning.data import prepare_sessions, read_streaming_history


def play(
    end: str, played: int = 180_000, uri: str | None = "spotify:track:a", **changes
) -> dict[str, object]:
    return {
        "ts": f"2024-05-01T{end}Z",
        "ms_played": played,
        "spotify_track_uri": uri,
        "reason_end": "trackdone",
        "skipped": False,
    } | changes


def basic(end: str, played: int = 180_000, artist: str | None = "A", track: str = "T") -> dict[str, object]:
    return {"endTime": f"2024-05-01 {end}", "artistName": artist, "trackName": track, "msPlayed": played}


def write(folder: Path, plays: object, name: str = "Streaming_History_Audio_0.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(plays), encoding="utf-8")
    return file


def test_plays_of_unsorted_files_come_in_the_order_of_their_ends(tmp_path):
    write(tmp_path, [play("10:09:00", uri="c"), play("10:03:00", uri="a")])
    write(tmp_path, [play("10:06:00", uri="b")], "endsong_0.json")
    table = read_streaming_history(tmp_path).collect()
    assert table["item_id"].to_list() == ["a", "b", "c"]
    assert table["timestamp"][0] == datetime(2024, 5, 1, 10, 3, tzinfo=UTC)


def test_a_play_too_short_for_the_clock_stays_after_the_one_that_ended_before_it(tmp_path):
    # By their computed starts the second would come first: its length has more digits than the clock.
    write(tmp_path, [play("10:00:10", 0, "first"), play("10:00:15", 5900, "second")])
    assert read_streaming_history(tmp_path).collect()["item_id"].to_list() == ["first", "second"]


def test_plays_that_end_in_the_same_second_are_ordered_by_their_start(tmp_path):
    write(tmp_path, [play("10:00:10", 300, "late"), play("10:00:10", 9000, "early")])
    assert read_streaming_history(tmp_path).collect()["item_id"].to_list() == ["early", "late"]


def test_the_pause_runs_from_the_end_of_a_play_to_the_start_of_the_next(tmp_path):
    # 20 minutes of silence before a play of 3 minutes; 23 minutes from end to end.
    write(tmp_path, [play("10:00:00"), play("10:23:00"), play("10:46:01")])
    assert read_streaming_history(tmp_path).collect()["session_id"].to_list() == [0, 0, 1]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("skipped", [1, -1, 0, -1]), ("fwdbtn", [1, 1, -1, -1]), ("ms_played", [-1, 1, 1, -1])],
)
def test_each_rule_calls_skipped_what_it_says(tmp_path, rule, expected):
    plays = [
        play("10:01:00", 29_999),
        play("10:05:00", 30_000, skipped=True, reason_end="endplay"),
        play("10:09:00", skipped=None, reason_end="fwdbtn"),
        play("10:10:00", 0, skipped=True, reason_end="fwdbtn"),
    ]
    write(tmp_path, plays)
    assert read_streaming_history(tmp_path, skip_rule=rule).collect()["feedback"].to_list() == expected


def test_rows_that_files_share_and_podcasts_are_counted_at_the_preparation(tmp_path):
    plays = [play(f"10:{minute:02}:00", uri=uri) for minute, uri in [(3, "a"), (6, "b"), (9, "c")]]
    write(tmp_path, [*plays, play("10:12:00", uri=None)])
    write(tmp_path, plays[1:], "Streaming_History_Audio_1.json")
    table, report = prepare_sessions(read_streaming_history(tmp_path))
    assert table["item_id"].to_list() == ["a", "b", "c"]
    assert (report.duplicate_rows, report.rows_without_item) == (2, 1)


def test_the_basic_export_is_read_with_artist_and_track_in_the_order_of_the_file(tmp_path):
    plays = [
        basic("10:00", 5_000, track="one"),
        basic("10:00", 58_000, track="two"),
        basic("10:03", artist=None),
    ]
    write(tmp_path, plays, "StreamingHistory0.json")
    write(tmp_path, [{"podcastName": "P"}], "StreamingHistory_podcast_0.json")
    table = read_streaming_history(tmp_path, skip_rule="ms_played").collect()
    assert table["item_id"].to_list() == ["A \N{EN DASH} one", "A \N{EN DASH} two", None]
    assert table["feedback"].to_list() == [-1, 1, 1]


@pytest.mark.parametrize("rule", ["skipped", "fwdbtn"])
def test_a_rule_that_the_basic_export_cannot_serve_is_an_error(tmp_path, rule):
    file = write(tmp_path, [basic("10:00")], "any name.json")
    with pytest.raises(ValueError, match="`skip_rule` must be 'ms_played' for the basic export"):
        read_streaming_history(file, skip_rule=rule)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "JSON files"),
        ("\x00", "JSON files"),
        ('{"ts": 1}', "JSON lists of plays"),
        ("[1]", "JSON lists of plays"),
        ("[]", "at least one play"),
        ('[{"ts": "2024-05-01T10:00:00Z"}]', "'ms_played', 'spotify_track_uri'"),
        (json.dumps([play("10:00:00", skipped="True")]), "own types"),
        (json.dumps([play("10:00:00", "long")]), "own types"),
        (json.dumps([play("10:00:00", None)]), "a length in milliseconds"),
        (json.dumps([play("10:00:00", -1)]), "a length in milliseconds"),
        (json.dumps([play("25:00:00")]), "plays with an end"),
    ],
)
def test_files_that_are_no_history_are_errors_that_say_what_is_wrong(tmp_path, content, message):
    (tmp_path / "endsong_0.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_streaming_history(tmp_path)


def test_both_exports_together_are_an_error(tmp_path):
    write(tmp_path, [play("10:00:00")])
    write(tmp_path, [basic("10:00")], "StreamingHistory0.json")
    with pytest.raises(ValueError, match="one export"):
        read_streaming_history(tmp_path, skip_rule="ms_played")


@pytest.mark.parametrize("setting", [{"skip_seconds": 0.0}, {"gap_minutes": 0.0}, {"skip_rule": "none"}])
def test_settings_out_of_range_are_errors(tmp_path, setting):
    write(tmp_path, [play("10:00:00")])
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}`"):
        read_streaming_history(tmp_path, **setting)


@pytest.mark.real_data
def test_the_real_histories_have_the_counted_sessions_and_skips(real_data):
    folder = real_data / "streaming_history"
    table = read_streaming_history(sorted(folder.glob("Streaming_History_Audio_*.json"))).collect()
    assert (table.height, table["session_id"].n_unique()) == (5064, 529)
    assert (table["feedback"] < 0).mean() == pytest.approx(0.32, abs=0.006)
    lengths = table.group_by("session_id").len()["len"]
    assert (lengths >= 5).sum() == 343
    old = read_streaming_history(folder / "endsong_0.json").collect()
    assert (old["feedback"] == 0).mean() > 0.9
