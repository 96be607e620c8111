import gzip
import sys

import pytest
from mssd_logs import write_mssd_logs

from skipcl_lightning.cli import main
from skipcl_lightning.cli.prepare import SOURCES, make_split
from skipcl_lightning.data import (
    LeaveOneOut,
    SessionDataModule,
    SplitBySession,
    SplitByTime,
    open_store,
    prepare_store,
    read_lfm1k,
    read_mssd,
)


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line as it is typed; gives what it prints, and allows no other message."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["skipcl", *map(str, arguments)])
        main()
        printed, errors = capsys.readouterr()
        assert errors == ""
        return printed

    return run


@pytest.fixture
def logs(tmp_path):
    write_mssd_logs(tmp_path / "logs", num_sessions=120, num_items=80, sessions_per_file=50)
    return tmp_path / "logs"


def test_logs_become_a_store_that_training_opens_and_a_second_run_has_nothing_to_do(run, logs, tmp_path):
    settings = ["prepare", "mssd", str(logs), "--folder", str(tmp_path / "store"), "--label", "graded"]
    settings += ["--rows_in_memory", "500"]
    first = run(*settings)
    assert "Read 1," in first or "Read 2," in first
    assert "sessions without a listened track" in first
    assert "Leave-one-out leaks the future" in first
    assert "Nothing to do: it was prepared before." in run(*settings)
    data = SessionDataModule(tmp_path / "store", batch_size=8)
    assert data.num_items == len(open_store(tmp_path / "store").vocabulary)
    here = prepare_store(read_mssd(logs, label="graded"), tmp_path / "python")
    assert here.drop_report == data.drop_report


def test_every_setting_reaches_the_store(run, logs, tmp_path):
    printed = run(
        "prepare", "mssd", *sorted(logs.iterdir()), "--folder", tmp_path / "store", "--split", "session",
        "--validation_share", 0.2, "--test_share", 0.3, "--targets", "every", "--split_seed", 4,
        "--cold_targets", "drop", "--min_session_length", 12, "--min_item_count", 3, "--require_skip", "true",
        "--skip_threshold", 0.5,
    )  # fmt: skip
    expected = prepare_store(
        read_mssd(logs),
        tmp_path / "python",
        split=SplitBySession(0.2, 0.3, "every", 4),
        cold_targets="drop",
        min_session_length=12,
        min_item_count=3,
        require_skip=True,
        skip_threshold=0.5,
    )
    assert str(expected) in printed
    assert "A split by session leaks the future" in printed
    assert open_store(tmp_path / "store").views["test"].ends.tolist() == expected.views["test"].ends.tolist()


def test_a_plain_history_is_cut_and_labelled_as_its_reader_would(run, tmp_path):
    plays = [
        f"user_{user}\t2009-05-04T{8 + n // 60:02}:{n % 60:02}:{(n * 7) % 20:02}Z\t\tA{n % 5}\t\tT{n % 11}"
        for user in range(3)
        for n in range(0, 300, 1 + user)
        if n % 50 < 20
    ]
    file = tmp_path / "userid-timestamp-artid-artname-traid-traname.tsv"
    file.write_text("\n".join(plays) + "\n")
    run(
        "prepare", "lfm1k", file, "--folder", tmp_path / "store", "--gap_minutes", 15, "--skip_seconds", 55,
        "--rows_in_memory", 100,
    )  # fmt: skip
    reader = read_lfm1k(file, gap_minutes=15, skip_seconds=55)
    expected = SessionDataModule(reader)
    found = open_store(tmp_path / "store")
    assert found.drop_report == expected.drop_report
    assert 0 < found.drop_report.share_skipped < 1
    assert sorted(found.store.ids) == sorted(expected.session_ids)
    assert found.vocabulary == expected.vocabulary


def test_a_split_by_time_takes_dates(run, tmp_path):
    rows = [
        f"{user}\t{item}\t2020-0{month}-01 10:0{item}:00"
        for user in "123"
        for month in (1, 2, 3)
        for item in range(6)
    ]
    (tmp_path / "listening_events.tsv").write_text("\n".join(["user_id\ttrack_id\ttimestamp", *rows]) + "\n")
    printed = run(
        "prepare", "lfm2b", tmp_path, "--folder", tmp_path / "store", "--split", "time",
        "--validation_from", "2020-02-01", "--test_from", "2020-03-01T00:00:00",
    )  # fmt: skip
    assert "Targets: 3 in validation, 3 in test" in printed
    assert "leak" not in printed


@pytest.fixture
def plays(tmp_path):
    rows = [f"u{user}\tt{n % 7}\t{n * 100}\t{n % 3 == 0}" for user in range(9) for n in range(12)]
    (tmp_path / "plays.tsv").write_text("\n".join(["user\ttrack\ttime\tskip", *rows]) + "\n")
    return tmp_path / "plays.tsv"


OF_PLAYS = ("--item", "track", "--session", "user", "--timestamp", "time", "--skipped", "skip")


def test_a_table_of_ones_own_is_prepared_with_a_tab_as_a_shell_hands_it_over(run, plays, tmp_path):
    printed = run("prepare", "table", plays, *OF_PLAYS, "--separator", r"\t", "--folder", tmp_path / "store")
    assert "Read 108 " in printed
    found = open_store(tmp_path / "store").drop_report
    assert found.share_skipped == pytest.approx(4 / 12)
    again = run("prepare", "table", plays, *OF_PLAYS, "--separator", "\t", "--folder", tmp_path / "store")
    assert "Nothing to do: it was prepared before." in again


def test_feedback_that_looks_like_a_flag_is_one_plain_line_of_the_output(run, tmp_path, recwarn):
    rows = [f"u{user},{n % 7},{n},{n % 2}" for user in range(9) for n in range(12)]
    (tmp_path / "plays.csv").write_text("\n".join(["user,track,place,heard", *rows]) + "\n")
    columns = ("--item", "track", "--session", "user", "--position", "place", "--feedback", "heard")
    printed = run("prepare", "table", tmp_path / "plays.csv", *columns, "--folder", tmp_path / "store")
    (line,) = [line for line in printed.splitlines() if line.startswith("Warning: ")]
    assert "'feedback' lies in [0, 1], so it has no skip" in line
    assert not recwarn


def test_a_table_without_a_column_of_skips_is_prepared_with_a_hint(run, plays, tmp_path):
    hint = "No column says what was skipped: name one with `--skipped`, `--feedback`"
    columns = (*OF_PLAYS[:-2], "--separator", r"\t")
    assert hint in run("prepare", "table", plays, *columns, "--folder", tmp_path / "one")
    assert hint not in run("prepare", "table", plays, *columns, *OF_PLAYS[-2:], "--folder", tmp_path / "two")


def test_the_columns_of_a_trained_context_are_read_without_naming_them_again(run, tmp_path):
    rows = [f"u{user},t{n % 7},{n},{'tv' if n % 2 else 'phone'}" for user in range(9) for n in range(12)]
    (tmp_path / "plays.csv").write_text("\n".join(["user,track,place,device", *rows]))
    settings = ["prepare", "table", tmp_path / "plays.csv", "--item", "track", "--session", "user"]
    settings += ["--position", "place"]
    run(*settings, "--context", '["device"]', "--folder", tmp_path / "store")
    run(*settings, "--vocabulary", tmp_path / "store", "--folder", tmp_path / "later")
    assert open_store(tmp_path / "later").context == open_store(tmp_path / "store").context


def test_a_folder_may_be_below_the_home_folder(run, plays, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    printed = run("prepare", "table", plays, *OF_PLAYS, r"--separator=\t", "--folder=~/store")
    assert str(tmp_path / "store") in printed
    assert open_store(tmp_path / "store").drop_report.rows_read == 108


@pytest.mark.parametrize("separator", ["::", ""])
def test_a_separator_that_is_not_one_character_is_said_in_one_line(run, plays, tmp_path, separator):
    with pytest.raises(
        SystemExit, match="skipcl prepare table: `separator` must be one ASCII char"
    ) as raised:
        run("prepare", "table", plays, *OF_PLAYS, "--separator", separator, "--folder", tmp_path / "store")
    assert "\n" not in str(raised.value.code)


def test_the_played_time_of_a_table_is_a_setting_of_the_command(run, tmp_path):
    rows = [f"u{user},t{n % 7},{n},{n * 10_000}" for user in range(9) for n in range(12)]
    (tmp_path / "plays.csv").write_text("\n".join(["user,track,n,ms", *rows]))
    settings = ["--item", "track", "--session", "user", "--position", "n", "--played", "ms"]
    settings += ["--unit", "milliseconds", "--skip_seconds", 20, "--folder", tmp_path / "store"]
    run("prepare", "table", tmp_path / "plays.csv", *settings)
    assert open_store(tmp_path / "store").drop_report.share_skipped == pytest.approx(3 / 12)


def wrong_files(folder):
    header = "session_id,session_position,track_id_clean,skip_1,skip_2,skip_3,not_skipped"
    row = "s,1,t,False,False,False,True"
    for name, content in {
        "semicolons": f"{header}\n{row}\n".replace(",", ";").encode(),
        "no rows": header.encode(),
        "not text": b"\xff\xfe" + header.encode(),
        "cut": gzip.compress((header + f"\n{row}" * 10_000).encode())[:-40],
    }.items():
        file = folder / f"{name}.csv{'.gz' if name == 'cut' else ''}"
        file.write_bytes(content)
        yield file


def test_what_is_wrong_is_said_in_one_line_without_a_traceback(run, tmp_path):
    for file in wrong_files(tmp_path):
        with pytest.raises(SystemExit, match=r"skipcl prepare mssd: `.*` must") as raised:
            run("prepare", "mssd", file, "--folder", tmp_path / "store")
        assert "\n" not in str(raised.value.code)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"files named \*.csv or \*.csv.gz"):
        run("prepare", "mssd", tmp_path / "empty", "--folder", tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--labell", "skip_1"), "labell"),
        (("--split", "space"), "split"),
        (("--rows_in_memory", "many"), "rows_in_memory"),
    ],
)
def test_unknown_and_wrong_settings_are_errors_of_the_command_line(
    run, logs, tmp_path, capsys, arguments, message
):
    with pytest.raises(SystemExit) as raised:
        run("prepare", "mssd", logs, "--folder", tmp_path / "store", *arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_has_help(run, source, capsys):
    with pytest.raises(SystemExit) as raised:
        run("prepare", source, "--help")
    assert raised.value.code == 0
    assert "--folder" in capsys.readouterr().out


def test_a_split_is_made_of_its_own_settings_only():
    assert make_split() == LeaveOneOut()
    assert make_split("session", test_share=0.2).test_share == 0.2
    assert make_split("session", test_share=0.3, split_seed=2) == SplitBySession(test_share=0.3, seed=2)
    by_time = make_split("time", validation_from="1.5s", test_from="20200101")
    assert by_time == SplitByTime(1.5, "20200101")
    with pytest.raises(ValueError, match="`test_from` must be a time as in"):
        make_split("time", validation_from="1s", test_from="2020")
    with pytest.raises(ValueError, match="`test_share` must be left alone with `split` 'time'"):
        make_split("time", test_share=0.3, validation_from="1s", test_from="2s")
    with pytest.raises(ValueError, match="`test_from` must be given"):
        make_split("time", validation_from="1s")
