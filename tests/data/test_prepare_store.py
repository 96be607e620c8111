import errno
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from skipcl_lightning.data import (
    LeaveOneOut,
    SessionDataModule,
    SessionFilter,
    SplitBySession,
    SplitByTime,
    open_store,
    prepare_sessions,
    prepare_store,
    sessionise,
    simulate_sessions,
)
from skipcl_lightning.data.prepare import prepared_data as storage_room
from skipcl_lightning.data.prepare.prepared_data import PreparedData
from skipcl_lightning.data.prepare.sessions import label_by_next_play

ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "aa", "é", "1", "01"]),  # session
        st.sampled_from(["x", "y", "z", None, "7", "07"]),  # item
        st.sampled_from([-1.0, -0.5, 0.0, 1.0, None]),  # feedback
        st.integers(0, 9),  # timestamp
    ),
    min_size=1,
    max_size=60,
)
SCHEMA = {"session_id": pl.String, "item_id": pl.String, "feedback": pl.Float64, "timestamp": pl.Int64}


@pytest.fixture
def log():
    return simulate_sessions(60, num_items=40, num_moods=4)


@pytest.fixture
def csv_log(tmp_path, log):
    """The same in a file, so that a store can tell where it came from."""
    file = tmp_path / "log.csv"
    log.collect().write_csv(file)
    return pl.scan_csv(file, schema_overrides={"feedback": pl.Float32})


def contents(data):
    store = data.store
    arrays = {"items": store.items, "feedback": store.feedback, "offsets": store.offsets}
    if store.explicit_feedback is not None:
        arrays["explicit"] = store.explicit_feedback
    for name, view in data.views.items():
        arrays[name] = np.stack([view.rows, view.ends])
    return {
        **{name: np.asarray(array).tolist() for name, array in arrays.items()},
        "ids": store.ids.to_list(),
        "vocabulary": data.vocabulary.ids,
        "counts": data.item_counts.tolist(),
        "report": data.drop_report,
        "cold": dict(data.num_cold_targets),
        "longest": data.longest_input,
    }


def test_parts_of_a_cluster_are_one_log(tmp_path, log):
    plays = log.collect()
    (tmp_path / "parts").mkdir()
    for number in range(3):
        part = plays.filter(pl.col("session_id").hash() % 3 == number).sort("session_id", descending=True)
        part.write_parquet(tmp_path / "parts" / f"{number}.parquet")
    parts = pl.scan_parquet(tmp_path / "parts" / "*.parquet")
    found = prepare_store(parts, tmp_path / "of_parts")
    expected = prepare_store(plays, tmp_path / "of_one")
    assert contents(found) == contents(expected)


def nothing_beside(folder):
    return [file.name for file in folder.parent.iterdir() if file.name.startswith(".")] == []


@given(
    rows=ROWS,
    rows_in_memory=st.integers(1, 70),
    min_item_count=st.integers(1, 3),
    cold_targets=st.sampled_from(["miss", "drop", "score"]),
    split=st.sampled_from([LeaveOneOut(), SplitBySession(0.3, 0.3, "every"), SplitByTime(3, 6)]),
)
def test_a_store_holds_what_preparation_in_memory_gives_however_little_memory_it_has(
    tmp_path_factory, rows, rows_in_memory, min_item_count, cold_targets, split
):
    log = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    session_filter = SessionFilter(min_item_count=min_item_count)
    folder = tmp_path_factory.mktemp("store") / "store"
    settings = {"split": split, "cold_targets": cold_targets, "min_item_count": min_item_count}
    refused, expected = None, None
    try:
        expected = contents(PreparedData.from_log(log, session_filter, split, cold_targets))
    except ValueError as error:
        refused = str(error)
    if refused is not None:
        with pytest.raises(ValueError, match="must") as raised:
            prepare_store(log, folder, rows_in_memory=rows_in_memory, **settings)
        assert str(raised.value) == refused
        assert not folder.exists()
    else:
        data = prepare_store(log, folder, rows_in_memory=rows_in_memory, **settings)
        assert contents(data) == contents(open_store(folder)) == expected
    assert nothing_beside(folder)


@pytest.mark.filterwarnings("ignore::skipcl_lightning.data.prepare.preparation.FeedbackWarning")
@given(
    plays=st.lists(
        st.tuples(
            st.integers(1, 4), st.sampled_from(["x", "y", None]), st.integers(0, 5000), st.integers(0, 1)
        ),
        min_size=1,
        max_size=50,
    ),
    rows_in_memory=st.integers(1, 60),
)
def test_a_history_is_labelled_and_cut_part_by_part_as_it_is_at_once(tmp_path_factory, plays, rows_in_memory):
    schema = {"user_id": pl.Int64, "item_id": pl.String, "timestamp": pl.Int64, "other": pl.Int64}
    history = pl.DataFrame(plays, schema=schema, orient="row").drop("other")
    log = sessionise(label_by_next_play(history.unique(maintain_order=True), skip_seconds=30), gap_minutes=20)
    folder = tmp_path_factory.mktemp("store") / "store"

    def prepare():
        return prepare_store(history, folder, gap_minutes=20, skip_seconds=30, rows_in_memory=rows_in_memory)

    try:
        table, _ = prepare_sessions(log)
    except ValueError:
        with pytest.raises(ValueError, match="at least one session"):
            prepare()
        return
    try:
        data = prepare()
    except ValueError as error:
        # The only held-out targets may be skips that training never saw.
        if "`split` must leave something for" not in str(error):
            raise
        reject()
    kept = {
        session: (part["item_id"].to_list(), part["feedback"].to_list())
        for (session,), part in table.group_by("session_id", maintain_order=True)
    }
    ids = data.store.ids.to_list()
    assert set(ids) == set(kept)
    for number, session in enumerate(ids):
        tracks = slice(data.store.offsets[number], data.store.offsets[number + 1])
        assert data.vocabulary.decode(data.store.items[tracks]) == kept[session][0]
        assert data.store.feedback[tracks].tolist() == kept[session][1]


def test_batches_from_a_store_are_those_of_the_log_itself(tmp_path, log):
    prepare_store(log, tmp_path / "store", rows_in_memory=100)
    there, here = (
        SessionDataModule(source, batch_size=16, max_length=8, seed=3) for source in (tmp_path / "store", log)
    )
    for name in ("train", "val", "test", "predict"):
        pairs = zip(
            getattr(there, f"{name}_dataloader")(), getattr(here, f"{name}_dataloader")(), strict=True
        )
        for one, other in pairs:
            for field, value in vars(other).items():
                found = getattr(one, field)
                assert (found == value).all() if hasattr(value, "all") else found == value, field
    assert there.vocabulary == here.vocabulary
    assert there.session_ids.to_list() == here.session_ids.to_list()
    assert (there.item_counts == here.item_counts).all()
    assert there.input_length == here.input_length


def test_a_second_run_with_the_same_settings_uses_the_store_and_reads_nothing(tmp_path, csv_log):
    reads = []

    def look(values: pl.Series) -> pl.Series:
        reads.append(len(values))
        return values

    counted = csv_log.with_columns(
        pl.col("feedback").map_batches(look, return_dtype=pl.Float32, is_elementwise=True)
    )
    folder = tmp_path / "store"
    first = contents(prepare_store(counted, folder))
    manifest = (folder / "manifest.json").stat()
    assert reads
    reads.clear()
    # How much is in memory at once does not change the store.
    assert contents(prepare_store(counted, str(folder), rows_in_memory=50)) == first
    assert not reads
    assert (folder / "manifest.json").stat().st_ino == manifest.st_ino
    prepare_store(counted, folder, rebuild=True)
    assert reads


@pytest.mark.parametrize(
    "setting",
    [
        {"min_item_count": 2},
        {"min_session_length": 12},
        {"skip_threshold": 0.1},
        {"require_skip": True},
        {"cold_targets": "drop"},
        {"split": SplitBySession(0.2, 0.2)},
        {"split": SplitBySession(0.2, 0.2, seed=1)},
    ],
)
def test_a_changed_setting_makes_another_store(tmp_path, csv_log, setting):
    folder = tmp_path / "store"
    prepare_store(csv_log, folder)
    before = json.loads((folder / "manifest.json").read_text())
    changed = contents(prepare_store(csv_log, folder, **setting))
    after = json.loads((folder / "manifest.json").read_text())
    assert before["settings"] != after["settings"]
    assert contents(prepare_store(csv_log, tmp_path / "fresh", **setting)) == changed
    assert nothing_beside(folder)


def test_a_changed_file_or_table_makes_another_store(tmp_path, csv_log, log):
    folder = tmp_path / "store"
    sessions = len(prepare_store(csv_log, folder).store)
    lines = (tmp_path / "log.csv").read_text().splitlines(keepends=True)
    (tmp_path / "log.csv").write_text("".join(lines[: len(lines) // 2]))
    fewer = len(prepare_store(csv_log, folder).store)
    assert fewer < sessions
    # A table in memory is told by its rows.
    table = log.collect()
    assert len(prepare_store(table, folder).store) == sessions
    inode = (folder / "manifest.json").stat().st_ino
    prepare_store(table.lazy(), folder)
    assert (folder / "manifest.json").stat().st_ino == inode
    assert len(prepare_store(table.head(300), folder).store) < sessions


def test_a_log_that_cannot_be_told_is_prepared_each_time(tmp_path, csv_log):
    folder = tmp_path / "store"
    several = pl.scan_csv([tmp_path / "log.csv"] * 2, schema_overrides={"feedback": pl.Float32})
    prepare_store(several, folder)
    inode = (folder / "manifest.json").stat().st_ino
    prepare_store(several, folder)
    assert (folder / "manifest.json").stat().st_ino != inode


FILES = [
    "items.npy",
    "feedback.npy",
    "offsets.npy",
    "item_counts.npy",
    "item_id.arrow",
    "session_id.arrow",
    *(
        f"{name}_{part}.npy"
        for name in ("train", "validation", "test", "predict")
        for part in ("rows", "ends")
    ),
]


def test_a_store_is_these_files(tmp_path, log):
    prepare_store(log, tmp_path / "store", rows_in_memory=100)
    assert sorted(file.name for file in (tmp_path / "store").iterdir()) == sorted([*FILES, "manifest.json"])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_file_is_named(tmp_path, log, name, damage):
    prepare_store(log, tmp_path / "store")
    file = tmp_path / "store" / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-7])
    else:
        file.unlink()
    for use in (open_store, lambda folder: SessionDataModule(folder).setup()):
        with pytest.raises(ValueError, match=rf"whole session store.*{name!r} (is missing|has)"):
            use(tmp_path / "store")
    # Preparing it again does not go on with it either, unless it is told to make it anew.
    with pytest.raises(ValueError, match=name):
        prepare_store(log, tmp_path / "store")
    prepare_store(log, tmp_path / "store", rebuild=True)
    open_store(tmp_path / "store")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"longest_input": ', '"longest_input": 1'),
        lambda text: "[]",
        lambda text: "",
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, log, change):
    prepare_store(log, tmp_path / "store")
    manifest = tmp_path / "store" / "manifest.json"
    manifest.write_text(change(manifest.read_text()))
    with pytest.raises(ValueError, match=r"whole session store.*'manifest.json'"):
        open_store(tmp_path / "store")


def test_a_store_of_another_format_says_so(tmp_path, log):
    prepare_store(log, tmp_path / "store")
    manifest = tmp_path / "store" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match=r"of format 1, got .* of format 2"):
        open_store(tmp_path / "store")


def test_what_is_no_store_is_said_at_once(tmp_path, log):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match=r"must be a session store, got .* without a manifest\.json"):
            SessionDataModule(folder)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, log):
    (tmp_path / "thesis.tex").write_text("years of work")
    for rebuild in (False, True):
        with pytest.raises(ValueError, match="with something else in it"):
            prepare_store(log, tmp_path, rebuild=rebuild)
    with pytest.raises(ValueError, match="with something else in it"):
        prepare_store(log, tmp_path / "thesis.tex", rebuild=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_becomes_the_store(tmp_path, log):
    (tmp_path / "store").mkdir()
    expected = contents(prepare_store(log, tmp_path / "store"))
    assert contents(open_store(tmp_path / "store")) == expected


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("any")])
def test_an_interrupted_run_leaves_the_old_store_and_nothing_beside_it(tmp_path, csv_log, error):
    folder = tmp_path / "store"
    before = contents(prepare_store(csv_log, folder))

    def interrupt(step: str, done: int, total: int | None) -> None:
        if step == "Writing sessions" and done == 2:
            raise error

    with pytest.raises(type(error)):
        prepare_store(csv_log, folder, min_item_count=2, rows_in_memory=100, on_progress=interrupt)
    assert contents(open_store(folder)) == before
    assert nothing_beside(folder)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, log, monkeypatch):
    def fail(self, piece):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage_room._ArrayFile, "append", fail)
    with pytest.raises(OSError, match="`folder` must be on a disk with room for the store"):
        prepare_store(log, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_while_rows_are_sorted_is_named_too(tmp_path, log, monkeypatch):
    def fail(self, *arguments, **settings):
        raise pl.exceptions.ComputeError("No space left on device (os error 28)")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", fail)
    with pytest.raises(OSError, match="`folder` must be on a disk with room for the store"):
        prepare_store(log, tmp_path / "store", rows_in_memory=100)
    assert list(tmp_path.iterdir()) == []


AT_ONCE = """
import sys
import polars as pl
from skipcl_lightning.data import prepare_store
log = pl.scan_csv(sys.argv[1], schema_overrides={"feedback": pl.Float32})
print("ready", flush=True)
for mode in map(str.strip, sys.stdin):
    data = prepare_store(log, sys.argv[2] + mode, rows_in_memory=100, rebuild=mode == "rebuild")
    print(len(data.store), int(data.store.items[:].sum()), flush=True)
"""


@pytest.mark.slow
def test_processes_may_prepare_the_same_store_at_once(tmp_path, csv_log):
    expected = prepare_store(csv_log, tmp_path / "expected")
    arguments = [sys.executable, "-c", AT_ONCE, str(tmp_path / "log.csv"), str(tmp_path) + "/"]
    runs = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        for _ in range(3)
    ]
    assert [run.stdout.readline() for run in runs] == ["ready\n"] * 3
    for mode in ("reuse", "rebuild", "rebuild"):
        for run in runs:
            run.stdin.write(f"{mode}\n")
            run.stdin.flush()
        said = {run.stdout.readline() for run in runs}
        assert said == {f"{len(expected.store)} {int(expected.store.items[:].sum())}\n"}
        assert contents(open_store(tmp_path / mode)) == contents(expected)
    for run in runs:
        run.communicate()
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"log.csv", "expected", "reuse", "rebuild"}


def test_a_store_travels_to_another_process_as_a_path_and_not_as_data(tmp_path, log):
    data = prepare_store(log, tmp_path / "store")
    packed = pickle.dumps(data.views)
    assert len(packed) < 2000
    views = pickle.loads(packed)  # noqa: S301 - what was packed just now
    assert views["test"].targets.tolist() == data.views["test"].targets.tolist()
    assert isinstance(views["train"].store.items.base, np.memmap)
    in_memory = pickle.loads(pickle.dumps(PreparedData.from_log(log, SessionFilter(), LeaveOneOut()).views))  # noqa: S301
    assert in_memory["test"].targets.tolist() == data.views["test"].targets.tolist()


def test_workers_give_the_same_batches_from_a_store(tmp_path, log):
    prepare_store(log, tmp_path / "store")
    batches = [
        [
            batch.items.tolist()
            for batch in SessionDataModule(tmp_path / "store", num_workers=n).train_dataloader()
        ]
        for n in (0, 2)
    ]
    assert batches[0] == batches[1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"min_item_count": 2}, "`min_item_count` must be left alone with the store"),
        ({"split": LeaveOneOut()}, "`split` must be left alone with the store"),
        ({"skip_threshold": 0.0}, "`skip_threshold` must be left alone with the store"),
        ({"cold_targets": "miss"}, "`cold_targets` must be left alone with the store"),
    ],
)
def test_what_a_store_has_settled_cannot_be_set_again(tmp_path, log, setting, message):
    prepare_store(log, tmp_path / "store")
    with pytest.raises(ValueError, match=message):
        SessionDataModule(tmp_path / "store", **setting)


def test_the_skip_threshold_comes_from_the_store(tmp_path, log):
    prepare_store(log, tmp_path / "store", skip_threshold=0.6)
    data = SessionDataModule(tmp_path / "store")
    assert data.skip_threshold == next(iter(data.val_dataloader())).skip_threshold == 0.6


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"rows_in_memory": 0}, ValueError, "`rows_in_memory` must be at least 1"),
        ({"cold_targets": "keep"}, ValueError, "`cold_targets` must be one of"),
        ({"min_session_length": 2}, ValueError, "`min_session_length` must be at least 3"),
        ({"skip_seconds": 30}, ValueError, "`skip_seconds` must be None without `gap_minutes`"),
        ({"gap_minutes": 20}, ValueError, "must not have a column 'session_id' yet"),
        ({"gap_minutes": -1}, ValueError, "`gap_minutes` must be"),
        ({"split": "time"}, TypeError, "`split` must be"),
    ],
)
def test_settings_are_checked_before_anything_is_written(tmp_path, log, setting, error, message):
    with pytest.raises(error, match=message):
        prepare_store(log, tmp_path / "store", **setting)
    assert list(tmp_path.iterdir()) == []


def test_feedback_of_its_own_and_a_rule_for_it_are_one_too_many(tmp_path):
    history = pl.DataFrame({"user_id": 1, "item_id": [1, 2, 3], "timestamp": [1, 2, 3], "feedback": 1.0})
    with pytest.raises(ValueError, match="`skip_seconds` must be None where the log has feedback"):
        prepare_store(history, tmp_path / "store", gap_minutes=20, skip_seconds=30)
    for user in (None, " "):
        nobody = history.head(1).with_columns(user_id=pl.lit(user, pl.String))
        log = pl.concat([history.cast({"user_id": pl.String}), nobody])
        with pytest.raises(ValueError, match="must have a user in every row, got null or blank in"):
            prepare_store(log, tmp_path / "store", gap_minutes=20)


def test_ids_that_look_alike_stay_apart(tmp_path):
    log = pl.DataFrame(
        {
            "session_id": ["1"] * 3 + ["01"] * 3 + ["1 "] * 3,
            "item_id": ["7", "07", "7.0", "7 ", "\uff17", "7", "7", "07", "007"],
            "feedback": 1.0,
            "position": [*range(9)],
        }
    )
    data = prepare_store(log, tmp_path / "store", rows_in_memory=2)
    assert data.store.ids.to_list() == ["01", "1", "1 "]
    assert set(data.vocabulary.ids) == {"7", "07", "7.0", "7 ", "\uff17", "007"}


def test_a_session_of_100_000_tracks_is_one_session(tmp_path):
    tracks = 100_000
    log = pl.DataFrame(
        {
            "session_id": [1] * tracks + [2] * 4,
            "item_id": [*(n % 977 for n in range(tracks)), 1, 2, 3, 4],
            "feedback": 1.0,
            "position": range(tracks + 4),
        }
    )
    prepare_store(log, tmp_path / "store", rows_in_memory=1000)
    data = SessionDataModule(tmp_path / "store", max_length=50, batch_size=2)
    (train,) = data.train_dataloader()
    (test,) = data.test_dataloader()
    assert train.items.shape == (2, 51)
    assert (test.items.shape, test.seen_items.shape) == ((2, 50), (2, tracks - 1))
    long = int(test.lengths.argmax())
    names = data.vocabulary.decode(test.items[long])
    assert names == [n % 977 for n in range(tracks - 51, tracks - 1)]


def test_a_wrong_row_far_into_a_log_is_named_and_nothing_is_left(tmp_path, log):
    table = log.collect()
    wrong = table.with_columns(
        pl.when(pl.int_range(pl.len()) == 800).then(7.0).otherwise(pl.col("feedback")).alias("feedback")
    )
    with pytest.raises(ValueError, match=r"a number in \[-1, 1\] in column 'feedback', got 7.0 in session"):
        prepare_store(wrong, tmp_path / "store", rows_in_memory=100)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_vanishes_or_is_no_text_is_an_error_and_nothing_is_left(tmp_path, csv_log):
    text = (tmp_path / "log.csv").read_text()
    for content in (None, text.replace("track", "\udcff", 1)):
        if content is None:
            (tmp_path / "log.csv").rename(tmp_path / "gone.csv")
        else:
            (tmp_path / "log.csv").write_text(content, errors="surrogateescape")
        with pytest.raises(ValueError, match="`log` must be"):
            prepare_store(csv_log, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    assert nothing_beside(tmp_path / "store")


def test_progress_tells_every_step_to_its_end(tmp_path, log):
    told = []
    prepare_store(
        log,
        tmp_path / "store",
        min_item_count=2,
        rows_in_memory=200,
        on_progress=lambda *step: told.append(step),
    )
    steps = list(dict.fromkeys(step for step, _, _ in told))
    assert steps[:3] == ["Reading rows", "Sorting sessions", "Filtering, round 1"]
    assert steps[-2:] == ["Writing sessions", "Taking checksums"]
    last = {step: (done, total) for step, done, total in told}
    assert last.pop("Reading rows") == (log.collect().height, None)
    assert all(done == total for done, total in last.values())
    assert last["Sorting sessions"][1] > 3


def test_explicit_feedback_is_in_the_store_too(tmp_path, log):
    liked = log.with_columns(explicit_feedback=pl.lit(1.0))
    data = prepare_store(liked, tmp_path / "store", rows_in_memory=100)
    assert np.asarray(data.store.explicit_feedback).tolist() == [1.0] * len(data.store.items)
    batch = next(iter(SessionDataModule(tmp_path / "store").train_dataloader()))
    assert (batch.explicit_feedback == batch.valid_mask).all()


def test_the_manifest_says_what_was_read_dropped_and_held_out(tmp_path, log):
    data = prepare_store(log, tmp_path / "store")
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert (
        manifest["counts"]["drop_report"]["rows_read"] == data.drop_report.rows_read == log.collect().height
    )
    assert manifest["counts"]["targets"] == {"validation": len(data.store), "test": len(data.store)}
    assert set(manifest["versions"]) == {"polars", "numpy"}
    assert manifest["files"]["items.npy"]["bytes"] == (tmp_path / "store" / "items.npy").stat().st_size
