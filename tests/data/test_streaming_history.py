import gzip
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from skipcl_lightning.data import prepare_sessions, read_mssd, read_streaming_history


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


@pytest.mark.parametrize(("columns", "error"), [("shuffle", TypeError), (["shuffle"] * 2, ValueError)])
def test_columns_are_a_list_of_different_names(tmp_path, columns, error):
    write(tmp_path, [play("10:00:00")])
    with pytest.raises(error, match=r"`columns` must (be a list of names|name each column once)"):
        read_streaming_history(tmp_path, columns=columns)


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


def offline(end, played, uri, began):
    return play(end, played, uri, offline=True, offline_timestamp=began)


NOON = 1_714_564_800  # 2024-05-01T12:00:00Z


@pytest.mark.parametrize("scale", [1, 1000])
def test_an_offline_play_is_placed_where_it_began(tmp_path, scale):
    synced = [offline("18:00:00", 180_000, f"o{n}", (NOON + 180 * n) * scale) for n in range(3)]
    write(tmp_path, [*synced, play("17:58:00", 60_000, "online")])
    table = read_streaming_history(tmp_path).collect()
    assert table["item_id"].to_list() == ["o0", "o1", "o2", "online"]
    assert table["timestamp"][0] == datetime(2024, 5, 1, 12, 3, tzinfo=UTC)
    assert table["session_id"].to_list() == [0, 0, 0, 1]


@pytest.mark.parametrize("began", [0, None, 3, NOON + 10**6, True, "soon", -NOON])
def test_an_implausible_start_of_an_offline_play_is_ignored(tmp_path, began):
    write(tmp_path, [offline("18:00:00", 180_000, "a", began)])
    assert read_streaming_history(tmp_path).collect()["timestamp"][0] == datetime(2024, 5, 1, 18, tzinfo=UTC)


def test_the_time_of_an_online_play_is_its_clock(tmp_path):
    write(tmp_path, [play("18:00:00", uri="a", offline=False, offline_timestamp=NOON)])
    assert read_streaming_history(tmp_path).collect()["timestamp"][0] == datetime(2024, 5, 1, 18, tzinfo=UTC)


def test_plays_that_differ_in_any_field_are_no_copies(tmp_path):
    starts = [basic("10:05", played, track="Hook") for played in (1_200, 4_900, 800)]
    plays = [basic("10:00", track="One"), *starts, basic("10:09", track="Three")]
    write(tmp_path, plays, "StreamingHistory_music_0.json")
    write(tmp_path, plays[2:], "StreamingHistory_music_1.json")
    table, report = prepare_sessions(read_streaming_history(tmp_path, skip_rule="ms_played"))
    assert report.duplicate_rows == 3
    assert table.height == 5
    assert "copy_key" not in table.columns
    extended = [play("10:00:00", uri="a", reason_start="fwdbtn"), play("10:00:00", uri="a", reason_start="x")]
    again = [play("10:00:00", uri="a", reason_start="x", platform="other"), play("10:03:00", 9, uri="b")]
    folder = tmp_path / "extended"
    folder.mkdir()
    write(folder, [*extended, play("10:02:00", 9, uri="c", skipped=True)])
    write(folder, again, "endsong_0.json")
    assert prepare_sessions(read_streaming_history(folder))[1].duplicate_rows == 1


def test_within_a_minute_long_plays_come_before_short_ones(tmp_path):
    lengths = {"short": 5_000, "shorter": 2_000, "long": 60_000}
    plays = [basic("10:05", played, track=track) for track, played in lengths.items()]
    write(tmp_path, plays, "StreamingHistory_music_0.json")
    items = read_streaming_history(tmp_path, skip_rule="ms_played").collect()["item_id"].to_list()
    assert [item.split()[-1] for item in items] == ["long", "short", "shorter"]


def test_a_file_that_runs_newest_first_keeps_the_order_of_listening(tmp_path):
    heard = [*(play(f"10:0{n}:00", uri=f"p{n}") for n in range(4)), play("10:03:00", uri="p4")]
    write(tmp_path, heard[::-1])
    items = read_streaming_history(tmp_path).collect()["item_id"].to_list()
    assert items == ["p0", "p1", "p2", "p3", "p4"]


def test_numbered_files_come_in_the_order_of_their_numbers(tmp_path):
    for n in range(12):
        write(tmp_path, [basic("10:00", 1_000, track=f"T{n:02}")], f"StreamingHistory{n}.json")
    items = read_streaming_history(tmp_path, skip_rule="ms_played").collect()["item_id"].to_list()
    assert items == sorted(items)


def test_names_that_are_not_known_are_null(tmp_path):
    names = [("", ""), ("Unknown Artist", "Unknown Track"), ("A", " "), ("A", "None")]
    plays = [basic(f"10:0{n}", 1_000 + n, artist, track) for n, (artist, track) in enumerate(names)]
    write(tmp_path, plays, "StreamingHistory0.json")
    items = read_streaming_history(tmp_path, skip_rule="ms_played").collect()["item_id"].to_list()
    assert items[:3] == [None] * 3
    assert items[3].endswith("None")


def test_only_the_fields_of_the_rule_are_needed(tmp_path):
    bare = {"ts": "2024-05-01T10:00:00Z", "ms_played": 5, "spotify_track_uri": "a"}
    write(tmp_path, [bare])
    assert read_streaming_history(tmp_path, skip_rule="ms_played").collect()["feedback"].to_list() == [-1]
    for rule, field in (("skipped", "skipped"), ("fwdbtn", "reason_end")):
        with pytest.raises(ValueError, match=f"must hold plays with '{field}'"):
            read_streaming_history(tmp_path, skip_rule=rule)


def test_exports_are_read_from_archives_and_gzip_files(tmp_path):
    plays = [play(f"10:0{n}:00", uri=f"p{n}") for n in range(3)]
    text = json.dumps(plays)
    for place in ("zip", "gz", "folder"):
        (tmp_path / place).mkdir()
    with zipfile.ZipFile(tmp_path / "zip" / "my_spotify_data.zip", "w") as archive:
        archive.writestr("Spotify Extended Streaming History/ReadMe.pdf", b"no json")
        archive.writestr("Spotify Extended Streaming History/Streaming_History_Audio_0.json", text)
        # Read in memory alone: a name that would leave the folder is only a name.
        archive.writestr("../../endsong_0.json", text)
    (tmp_path / "gz" / "endsong_0.json.gz").write_bytes(gzip.compress(text.encode()))
    write(tmp_path / "folder", plays)
    for source, copies in (("zip/my_spotify_data.zip", 2), ("zip", 2), ("gz", 1), ("folder", 1)):
        table = read_streaming_history(tmp_path / source).collect()
        assert table["item_id"].unique(maintain_order=True).to_list() == ["p0", "p1", "p2"]
        assert table.height == 3 * copies


def test_archives_without_plays_too_large_or_damaged_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "data.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("endsong_0.json", b" " * 10_000)
    monkeypatch.setattr("skipcl_lightning.data.readers.parsing._MOST_UNPACKED", 9_999)
    with pytest.raises(ValueError, match=r"`folder_or_paths` must unpack to at most .*data\.zip"):
        read_streaming_history(file)
    (tmp_path / "endsong_1.json.gz").write_bytes(gzip.compress(b" " * 10_000))
    with pytest.raises(ValueError, match=r"must unpack to at most .*endsong_1"):
        read_streaming_history(tmp_path / "endsong_1.json.gz")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("other.txt", b"x")
    with pytest.raises(ValueError, match=r"`folder_or_paths` must hold files named .* got the archive"):
        read_streaming_history(file)
    with pytest.raises(ValueError, match=r"`paths` must hold the files themselves, got the ZIP archive"):
        read_mssd(file)


def test_half_a_character_in_a_name_is_an_error_of_ours(tmp_path):
    file = tmp_path / "StreamingHistory0.json"
    file.write_text(json.dumps([basic("10:00", track="\ud800")]))
    with pytest.raises(ValueError, match="`folder_or_paths` must hold plays of the export's own types"):
        read_streaming_history(file, skip_rule="ms_played")


def test_an_empty_folder_is_named_by_the_argument(tmp_path):
    with pytest.raises(ValueError, match=r"^`folder_or_paths` must hold files named"):
        read_streaming_history(tmp_path)


@pytest.mark.parametrize("played", [1.5, "5000", True])
def test_a_length_of_another_type_is_an_error_of_ours(tmp_path, played):
    write(tmp_path, [play("10:00:00", played)])
    with pytest.raises(
        ValueError, match="`folder_or_paths` must hold plays of the export's own types"
    ) as error:
        read_streaming_history(tmp_path)
    assert "This error occurred" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("played", [-1, 10**16, 10**18])
def test_a_length_that_no_play_has_is_an_error(tmp_path, played):
    write(tmp_path, [play("10:00:00", played)])
    with pytest.raises(ValueError, match=f"a length in milliseconds, got .* and {played}"):
        read_streaming_history(tmp_path)
