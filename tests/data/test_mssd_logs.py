import errno
import gzip
import re
import tracemalloc

import mssd_logs
import mssd_marginals
import numpy as np
import polars as pl
import pytest
from mssd_logs import write_mssd_logs

from skipcl_lightning.data import prepare_sessions, read_mssd

# As in the header of the dataset's own logs.
HEADER = [
    "session_id", "session_position", "session_length", "track_id_clean",
    "skip_1", "skip_2", "skip_3", "not_skipped",
    "context_switch", "no_pause_before_play", "short_pause_before_play", "long_pause_before_play",
    "hist_user_behavior_n_seekfwd", "hist_user_behavior_n_seekback", "hist_user_behavior_is_shuffle",
    "hour_of_day", "date", "premium", "context_type",
    "hist_user_behavior_reason_start", "hist_user_behavior_reason_end",
]  # fmt: skip
START, END = HEADER[-2:]
ENDS = ["trackdone", "fwdbtn", "backbtn", "endplay", "logout"]
PAUSES = HEADER[9:12]
SAME = ["session_id", "date"]  # what the cut into files changes

# Shares of rows in the complete excerpt, and how far a simulated log may be off: its own error is below 0.01.
CALIBRATED = {
    "skip_1": (0.343, 0.01), "skip_2": (0.408, 0.01), "skip_3": (0.507, 0.01), "not_skipped": (0.448, 0.01),
    "no flag": (0.045, 0.005), "repeats": (0.114, 0.015),
    "trackdone": (0.448, 0.02), "fwdbtn": (0.393, 0.03), "backbtn": (0.080, 0.03), "endplay": (0.075, 0.01),
    "logout": (0.005, 0.005), "no pause": (0.687, 0.05), "short pause": (0.204, 0.03),
    "context switch": (0.035, 0.01), "shuffle": (0.318, 0.05), "seeks back": (0.025, 0.01),
    "hour goes on": (0.032, 0.01),
}  # fmt: skip


def read(files) -> pl.DataFrame:
    return pl.concat([pl.read_csv(file, try_parse_dates=True) for file in files])


def marginals(log: pl.DataFrame) -> dict[str, float]:
    """Shares of rows, whichever way the excerpts and the simulated logs spell truth and dates."""
    before = pl.struct("session_id", "track_id_clean").is_first_distinct().not_()
    shares = {
        **{name: pl.col(name).mean() for name in HEADER[4:8]},
        "no flag": pl.any_horizontal("skip_3", "not_skipped").not_().mean(),
        "repeats": before.mean(),
        **{reason: (pl.col(END) == reason).mean() for reason in ENDS},
        "no pause": pl.col(PAUSES[0]).mean(),
        "short pause": pl.col(PAUSES[1]).mean(),
        "context switch": pl.col("context_switch").mean(),
        "shuffle": pl.col("hist_user_behavior_is_shuffle").mean(),
        "seeks back": (pl.col("hist_user_behavior_n_seekback") > 0).mean(),
        "hour goes on": (pl.col("hour_of_day").diff().over("session_id") != 0).mean(),
    }
    return log.select(**shares).row(0, named=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_mssd_logs(tmp_path_factory.mktemp("logs"), num_sessions=12_000, sessions_per_file=5000)


@pytest.fixture(scope="module")
def log(files) -> pl.DataFrame:
    return read(files)


def test_the_files_have_the_columns_and_the_names_of_the_dataset(files):
    assert [file.name for file in files] == [
        f"log_{digit}_20180715_000000000000.csv.gz" for digit in range(3)
    ]
    assert sorted(files[0].parent.iterdir()) == files
    for file in files:
        with gzip.open(file, "rt") as stream:
            lines = stream.read().splitlines()
        assert lines[0] == ",".join(HEADER)
        assert lines.count(lines[0]) == 1
        identifier = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
        digit = file.name[4]
        flag = "(true|false)"
        assert re.fullmatch(
            rf"{digit}_{identifier},1,\d\d,t_{identifier},({flag},){{4}}([01],){{4}}(\d,){{2}}{flag},\d+,"
            rf"2018-07-1[45],{flag},\w+,\w+,\w+",
            lines[1],
        )


def test_the_many_logs_of_a_big_set_have_the_days_and_shards_of_the_dataset(tmp_path):
    names = [file.name for file in write_mssd_logs(tmp_path, num_sessions=700, sessions_per_file=1)]
    assert names[10] == "log_0_20180716_000000000000.csv.gz"
    assert names[659] == "log_9_20180918_000000000000.csv.gz"
    assert names[660] == "log_0_20180715_000000000001.csv.gz"
    assert len(set(names)) == 700


@pytest.mark.parametrize("name", CALIBRATED)
def test_the_marginals_are_those_of_the_complete_excerpt(log, name):
    share, tolerance = CALIBRATED[name]
    assert marginals(log)[name] == pytest.approx(share, abs=tolerance)


def test_the_table_of_the_docstring_is_what_a_log_has(log):
    # A doc string has its indentation taken off by Python 3.13.
    stated = dict(re.findall(r"\n *(\S.*\S) +[\d.]+ +[\d.]+ +([\d.]+)(?=\n)", write_mssd_logs.__doc__))
    found = marginals(log)
    for row, name in {
        "a track that the session had before": "repeats", "ended by backbtn": "backbtn",
        "a short pause before": "short pause", "the context switches": "context switch",
        "sought back in": "seeks back", "the hour goes on": "hour goes on", "skip_2": "skip_2",
    }.items():  # fmt: skip
        assert found[name] == pytest.approx(float(stated[row]) / 100, abs=0.006)


@pytest.mark.real_data
def test_the_calibration_is_to_shares_that_the_excerpt_has(real_data):
    excerpt = read([real_data / "mssd" / "log_excerpt_complete.csv"])
    assert marginals(excerpt) == {
        name: pytest.approx(share, abs=6e-4) for name, (share, _) in CALIBRATED.items()
    }


@pytest.mark.real_data
def test_the_lengths_of_sessions_are_those_of_both_excerpts(log, real_data):
    excerpts = [real_data / "mssd" / f"log_excerpt_{name}.csv" for name in ("complete", "prehistory")]
    lengths = np.concatenate(
        [read([file]).group_by("session_id").first()["session_length"] for file in excerpts]
    )
    shares = log.filter(pl.col("session_position") == 1)["session_length"].value_counts(normalize=True)
    for length, share in shares.rows():
        assert share == pytest.approx((lengths == length).mean(), abs=0.015)
    assert set(shares["session_length"]) == set(range(10, 21))


@pytest.mark.real_data
def test_the_log_has_no_word_that_the_excerpts_lack_and_the_columns_of_one(log, real_data):
    excerpts = [read([real_data / "mssd" / f"log_excerpt_{name}.csv"]) for name in ("complete", "prehistory")]
    assert excerpts[0].columns == log.columns == HEADER
    for column in ("context_type", START, END):
        assert set(log[column]) <= {word for excerpt in excerpts for word in excerpt[column]}
    # A start follows from the end before it, unless playing was broken off.
    allowed = set(pl.concat([follow(excerpt) for excerpt in excerpts]).unique().rows())
    assert set(follow(log).unique().rows()) <= allowed


def follow(log: pl.DataFrame) -> pl.DataFrame:
    return log.select(pl.col(END).shift(1).over("session_id").alias("end"), START).drop_nulls()


def test_the_flags_nest(log):
    one, two, three, never = (log[name] for name in HEADER[4:8])
    assert not (one & ~two).any()
    assert not (two & ~three).any()
    assert not (three & never).any()
    assert one.any()
    assert (two & ~one).any()
    assert (three & ~two).any()


def test_positions_run_to_the_length_of_the_session(log):
    sessions = log.group_by("session_id", maintain_order=True).agg(
        pl.col("session_position"), pl.col("session_length").unique()
    )
    assert sessions.height == 12_000
    for positions, length in sessions.select("session_position", "session_length").rows():
        assert [positions] == [list(range(1, n + 1)) for n in length]
    assert sessions["session_length"].explode(empty_as_null=False).mean() == pytest.approx(16.36, abs=0.15)


def test_the_columns_of_a_row_and_of_the_next_agree(log):
    rows = log.with_columns(
        pl.all().exclude("session_id").shift(1).over("session_id").name.prefix("last_"),
        before=pl.col("track_id_clean").shift(2).over("session_id"),
    )
    first, later = (
        rows.filter(test) for test in (pl.col("session_position") == 1, pl.col("session_position") > 1)
    )
    assert not first.select(pl.any_horizontal(*PAUSES, "context_switch").any()).item()
    assert (later[PAUSES[0]] + later[PAUSES[2]] == 1).all()
    assert (later[PAUSES[1]] <= later[PAUSES[2]]).all()
    buttons = later.filter(pl.col("last_" + END).is_in(["trackdone", "fwdbtn", "backbtn"]))
    assert (buttons[START] == buttons["last_" + END]).all()
    assert log.filter(pl.col(END) == "backbtn")["skip_1"].all()
    assert (first[END] != "backbtn").all()
    gone_back = later.filter(pl.col(START) == "backbtn")
    assert (gone_back["track_id_clean"] == gone_back["before"]).all()
    stayed = later.filter(pl.col("context_switch") == 0)
    for column in ("context_type", "hist_user_behavior_is_shuffle"):
        assert (stayed[column] == stayed["last_" + column]).all()
    assert not log.filter(context_type="radio")["hist_user_behavior_is_shuffle"].any()
    assert log.group_by("session_id").agg(pl.col("premium").n_unique())["premium"].max() == 1


def test_the_clock_goes_on_with_the_tracks_played_and_past_midnight(log):
    hours = log.select(
        "session_id",
        clock=(pl.col("date") - pl.date(2018, 7, 15)).dt.total_days() * 24 + pl.col("hour_of_day"),
        played="not_skipped",
    ).with_columns(step=pl.col("clock").diff().over("session_id"))
    assert set(hours["step"].drop_nulls()) == {0, 1}
    assert log["hour_of_day"].is_between(0, 23).all()
    assert set(log["hour_of_day"]) == set(range(24))
    sessions = hours.group_by("session_id").agg(pl.col("played").mean(), pl.col("step").sum())
    quick, slow = (
        sessions.filter(test)["step"].mean() for test in (pl.col("played") < 0.2, pl.col("played") > 0.8)
    )
    assert slow > 2 * quick
    # In the excerpts all that begin after 20 o'clock are of the day before the log's.
    assert sorted(log["date"].unique().dt.day()) == [14, 15]
    assert log.group_by("session_id").agg(pl.col("date").n_unique())["date"].max() == 2


def test_skips_tell_what_comes_next_as_in_the_simulated_sessions(tmp_path):
    """After a listened track its one successor follows often, after an early skip hardly ever."""
    write_mssd_logs(tmp_path, num_sessions=5000, num_items=100)
    log = (
        read(tmp_path.iterdir())
        .with_columns(
            following=pl.col("track_id_clean").shift(-1).over("session_id"),
        )
        .filter(pl.col("following").is_not_null())
    )
    usual = (
        log.filter("not_skipped")
        .group_by("track_id_clean")
        .agg(pl.col("following").mode().first().alias("usual"))
    )
    hits = (
        log.join(usual, on="track_id_clean")
        .group_by("skip_1")
        .agg((pl.col("following") == pl.col("usual")).mean())
    )
    shares = dict(hits.rows())
    assert shares[False] > 0.45
    assert shares[True] < 0.2


def test_popular_tracks_follow_the_exponent(tmp_path):
    def top_share(exponent):
        folder = tmp_path / str(exponent)
        write_mssd_logs(folder, num_sessions=2000, num_items=1000, popularity_exponent=exponent)
        counts = read(folder.iterdir())["track_id_clean"].value_counts(sort=True)["count"]
        return counts[:100].sum() / counts.sum()

    assert top_share(0.0) < 0.2 < top_share(0.88) < top_share(1.5)


def test_two_sessions_share_a_track_as_often_as_the_excerpts_do(log):
    """Counted over the pairs of plays of different sessions in the prehistory: 422 of 595,686."""
    plays = log.unique(["session_id", "track_id_clean"])["track_id_clean"].value_counts()["count"].to_numpy()
    total = plays.sum()
    assert (plays * (plays - 1)).sum() / (total * (total - 1)) == pytest.approx(7.1e-4, abs=1.5e-4)


def test_the_bias_moves_the_rate_of_skips(tmp_path):
    rates = []
    for bias in (-3.0, 0.0, 3.0):
        write_mssd_logs(tmp_path / str(bias), num_sessions=500, num_items=1000, skip_bias=bias)
        rates.append(read((tmp_path / str(bias)).iterdir())["skip_2"].mean())
    assert rates[0] < 0.25 < rates[1] < 0.55 < rates[2]


def test_the_same_seed_gives_the_same_bytes_and_another_another_log(tmp_path):
    def write(name, **settings):
        (file,) = write_mssd_logs(tmp_path / name, num_sessions=60, num_items=200, **settings)
        return file

    first = write("first", seed=3)
    assert first.read_bytes()[4:8] == bytes(4)  # no time of writing
    assert write("second", seed=3).read_bytes() == first.read_bytes()
    other = read([write("other", seed=4)])
    assert not set(other["track_id_clean"]) & set(read([first])["track_id_clean"])


def test_a_longer_log_begins_with_the_shorter_and_the_cut_into_files_changes_no_session(log, tmp_path):
    shorter = read(write_mssd_logs(tmp_path / "a", num_sessions=4500, sessions_per_file=5000))
    assert shorter.equals(log[: shorter.height])
    # 4,096 are made at once: 4,500 sessions in files of 900 fall into two blocks, and a file into both.
    cut = read(write_mssd_logs(tmp_path / "b", num_sessions=4500, sessions_per_file=900))
    assert cut.drop(SAME).equals(shorter.drop(SAME))
    assert cut["session_id"].str.slice(2).equals(shorter["session_id"].str.slice(2))
    assert cut["session_id"].str.head(1).unique().sort().to_list() == list("01234")


def test_a_block_is_made_once_however_many_files_it_fills(tmp_path, monkeypatch):
    make, made = mssd_logs._Blocks.make, []
    monkeypatch.setattr(
        mssd_logs._Blocks, "make", lambda self, number: made.append(number) or make(self, number)
    )
    assert len(write_mssd_logs(tmp_path, num_sessions=5000, sessions_per_file=500, num_items=100)) == 10
    assert made == [0, 1]


@pytest.mark.slow
def test_the_memory_does_not_grow_with_the_log(tmp_path):
    def peak(num_sessions):
        tracemalloc.start()
        try:
            write_mssd_logs(tmp_path / str(num_sessions), num_sessions=num_sessions, num_items=1000)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(40_000) < 1.1 * peak(9000)


def test_the_reader_gives_back_what_was_written(files, log):
    table = read_mssd(files[0].parent).collect()
    assert table["session_id"].equals(log["session_id"])
    assert table["item_id"].equals(log["track_id_clean"].alias("item_id"))
    assert table["position"].equals(log["session_position"].alias("position"))
    feedback = (
        pl.when("skip_2").then(-1.0).when(pl.any_horizontal("skip_3", "not_skipped")).then(1.0).otherwise(0)
    )
    assert table["feedback"].to_list() == log.select(feedback.alias("feedback"))["feedback"].to_list()
    report = prepare_sessions(read_mssd(files[0]))[1]
    assert report.duplicate_rows == report.rows_without_item == 0
    assert report.sessions_kept > 4500


def test_progress_is_told_in_sessions_and_rows(tmp_path):
    told = []
    files = write_mssd_logs(
        tmp_path, num_sessions=5000, sessions_per_file=3000, num_items=100, progress=lambda *x: told.append(x)
    )
    assert [sessions for sessions, _ in told] == [3000, 1096, 904]
    assert sum(rows for _, rows in told) == read(files).height


@pytest.mark.parametrize(
    ("error", "writes"),
    [(OSError(errno.ENOSPC, "No space left"), 0), (KeyboardInterrupt(), 1)],
)
def test_what_was_begun_is_removed_when_it_cannot_be_ended(tmp_path, monkeypatch, error, writes):
    (tmp_path / "notes.txt").write_text("mine")
    write, calls = gzip.GzipFile.write, []

    def fail(stream, data):
        calls.extend([stream.fileobj.name] * bool(data))
        if len(set(calls)) == 3 and calls.count(calls[-1]) > writes:
            # The third file: two have their names already.
            assert len(list(tmp_path.glob("*.csv.gz"))) == 2
            assert len(list(tmp_path.glob(".*.tmp"))) == 1
            raise error
        return write(stream, data)

    # The third file takes from two blocks of 4,096 sessions, and so is written in two pieces.
    settings = {"num_sessions": 9000, "sessions_per_file": 3000, "num_items": 100}
    with monkeypatch.context() as patch:
        patch.setattr(gzip.GzipFile, "write", fail)
        with pytest.raises(type(error)) as raised:
            write_mssd_logs(tmp_path, **settings)
    assert raised.value is error
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert len(write_mssd_logs(tmp_path, **settings)) == 3


@pytest.mark.parametrize("name", ["log.csv", "sub/log.csv.gz"])
def test_a_folder_that_holds_logs_is_refused(tmp_path, name):
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"`folder` must hold no logs yet, got .* delete the old logs"):
        write_mssd_logs(tmp_path, num_sessions=10)


def test_a_folder_is_made_and_a_file_or_anything_else_refused(tmp_path):
    assert len(write_mssd_logs(str(tmp_path / "new" / "folder"), num_sessions=3, num_items=20)) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`folder` must be a folder, got the file"):
        write_mssd_logs(tmp_path / "file", num_sessions=10)
    with pytest.raises(TypeError, match="`folder` must be a string or"):
        write_mssd_logs(3, num_sessions=10)


@pytest.mark.parametrize(
    "setting",
    [
        {"num_sessions": 0}, {"num_items": 19}, {"num_moods": 1}, {"sessions_per_file": 0}, {"seed": -1},
        {"popularity_exponent": -0.1}, {"skip_bias": float("inf")},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_errors_and_make_no_folder(tmp_path, setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}`"):
        write_mssd_logs(tmp_path / "new", **{"num_sessions": 10, **setting})
    assert not (tmp_path / "new").exists()


def test_a_setting_of_another_type_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="`num_sessions` must be an integer"):
        write_mssd_logs(tmp_path, num_sessions=1e6)


def test_the_counts_are_of_the_rows_and_sessions_of_the_excerpts():
    for counts in (
        mssd_marginals._LENGTHS, mssd_marginals._HOURS, mssd_marginals._PREMIUM,
        mssd_marginals._CONTEXT_COUNTS, np.ravel(mssd_marginals._DAY_BEFORE[17:]),
    ):  # fmt: skip
        assert sum(counts) in (180, 67)
    for counts in (mssd_marginals._SEEKS_FORWARD, mssd_marginals._SEEKS_BACK):
        assert sum(counts) == 1381
