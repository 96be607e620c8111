"""What a store must never do: destroy something else, or pass for another one."""

import json
import os
import pickle
import sys
import threading
from pathlib import Path

import polars as pl
import pytest
import torch
from lightning.pytorch import Trainer
from mssd_logs import write_mssd_logs

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import (
    LeaveOneOut,
    SessionDataModule,
    open_store,
    prepare_store,
    read_mssd,
    simulate_sessions,
)
from skipcl_lightning.data.prepare import on_disk as store_room
from skipcl_lightning.data.store import folder as manifest_room
from skipcl_lightning.data.store.folder import Manifest, fingerprint_log


@pytest.fixture
def log():
    return simulate_sessions(40, num_items=30, num_moods=3)


@pytest.fixture
def csv(tmp_path, log):
    file = tmp_path / "log.csv"
    log.collect().write_csv(file)
    return file


def scan(file, **settings):
    return pl.scan_csv(file, **{"schema_overrides": {"feedback": pl.Float32}, **settings})


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_folder_with_a_manifest_of_something_else_is_left_alone(tmp_path, log, rebuild):
    folder = tmp_path / "extension"
    folder.mkdir()
    for others in ([], ["code.js"]):
        for name in ["manifest.json", *others]:
            (folder / name).write_text("{}")
        with pytest.raises(ValueError, match="with something else in it"):
            prepare_store(log, folder, rebuild=rebuild)
        assert (folder / "manifest.json").read_text() == "{}"


def test_what_somebody_has_put_into_a_store_is_not_deleted_with_it(tmp_path, log):
    folder = tmp_path / "store"
    prepare_store(log, folder)
    (folder / "runs").mkdir()
    (folder / "runs" / "last.ckpt").write_text("weights")
    with pytest.raises(ValueError, match="with something else in it"):
        prepare_store(log, folder, min_item_count=2, rebuild=True)
    assert (folder / "runs" / "last.ckpt").read_text() == "weights"


def test_an_interruption_while_a_store_is_replaced_leaves_the_old_one(tmp_path, log, monkeypatch):
    folder = tmp_path / "store"
    prepare_store(log, folder)
    before = (folder / "manifest.json").read_text()
    monkeypatch.setattr(manifest_room, "_exchange", lambda *_: False)  # as on other systems
    rename, calls = Path.rename, []

    def break_off(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", break_off)
    with pytest.raises(KeyboardInterrupt):
        prepare_store(log, folder, min_item_count=2)
    assert (folder / "manifest.json").read_text() == before
    assert not list(tmp_path.glob(".*"))


def test_the_next_opening_recovers_the_old_store_after_a_kill_between_the_renames(tmp_path, log, monkeypatch):
    folder = tmp_path / "store [1]"  # also a pattern
    prepare_store(log, folder)
    before = (folder / "manifest.json").read_text()
    monkeypatch.setattr(manifest_room, "_exchange", lambda *_: False)  # as on other systems
    rename, calls = Path.rename, []

    def killed(self, target):
        calls.append(target)
        if len(calls) > 1:
            raise OSError
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(OSError):  # noqa: PT011 - ours
            prepare_store(log, folder, min_item_count=2)
    assert not folder.exists()
    assert SessionDataModule(folder, batch_size=4).num_items == 30
    assert (folder / "manifest.json").read_text() == before
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="`folder` must be a session store"):
        open_store(folder)


def test_another_query_over_the_same_file_is_another_log(csv):
    lazy = scan(csv)
    told = fingerprint_log(lazy)
    assert told == fingerprint_log(scan(csv))
    items = [f"track-{n}" for n in range(30)]
    others = [
        scan(csv, null_values=["1.0"]),
        scan(csv, schema_overrides={"feedback": pl.Float64}),
        lazy.filter(pl.col("item_id").is_in(items)),
        lazy.filter(pl.col("item_id").is_in(items[:14] + items[15:] + ["other"])),
        lazy.join(pl.LazyFrame({"item_id": ["track-1"]}), on="item_id"),
        lazy.join(pl.LazyFrame({"item_id": ["track-2"]}), on="item_id"),
    ]
    digests = [fingerprint_log(other) for other in others]
    assert None not in digests
    assert len({told, *digests}) == 1 + len(others)


def test_a_file_of_the_same_size_and_another_time_is_another_log(csv):
    before = fingerprint_log(scan(csv))
    os.utime(csv, ns=(1, 1))
    assert fingerprint_log(scan(csv)) != before


def test_tables_are_told_by_types_and_order_too():
    table = pl.DataFrame({"item_id": [1, 2]})
    digests = {
        fingerprint_log(other)
        for other in (table, table.reverse(), table.cast(pl.Int32), table.rename({"item_id": "track"}))
    }
    assert len(digests) == 4


def test_a_reader_is_told_by_its_settings(tmp_path):
    write_mssd_logs(tmp_path / "logs", num_sessions=20, num_items=30)
    told = {fingerprint_log(read_mssd(tmp_path / "logs", label=label)) for label in ("skip_1", "skip_2")}
    assert len(told) == 2
    assert None not in told
    assert fingerprint_log(read_mssd(tmp_path / "logs")) in told


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"gap_minutes": 20}, {"gap_minutes": 40}),
        ({"gap_minutes": 20}, {"gap_minutes": 20, "skip_seconds": 9}),
    ],
)
def test_how_a_history_is_cut_makes_another_store(tmp_path, one, other):
    rows = {
        "user_id": [1] * 40,
        "item_id": [n % 7 for n in range(40)],
        "timestamp": [n * 400 for n in range(39)] + [38 * 400 + 5],
    }
    history = pl.DataFrame(rows)
    prepare_store(history, tmp_path / "store", **one)
    before = (tmp_path / "store" / "manifest.json").read_text()
    prepare_store(history, tmp_path / "store", **other)
    assert (tmp_path / "store" / "manifest.json").read_text() != before


def test_a_history_of_one_listener_needs_no_user(tmp_path):
    rows = {"item_id": [n % 7 for n in range(40)], "timestamp": [n * 60 for n in range(40)]}
    data = prepare_store(pl.DataFrame(rows), tmp_path / "store", gap_minutes=20, rows_in_memory=5)
    assert (len(data.store), data.drop_report.rows_kept) == (1, 40)


def test_another_version_of_the_package_makes_another_store(tmp_path, log, monkeypatch):
    prepare_store(log, tmp_path / "store")
    before = (tmp_path / "store" / "manifest.json").stat().st_ino
    prepare_store(log, tmp_path / "store")
    assert (tmp_path / "store" / "manifest.json").stat().st_ino == before
    monkeypatch.setattr(store_room, "version", lambda name: "99")
    prepare_store(log, tmp_path / "store")
    assert (tmp_path / "store" / "manifest.json").stat().st_ino != before


@pytest.mark.parametrize("name", ["a[1]", "lr=[1,2]", "a*b", "a?b", "{x}", "with space", "ünï"])
def test_names_of_folders_are_no_patterns(tmp_path, log, name):
    # `a*b` would match this one, too.
    prepare_store(simulate_sessions(30, num_items=20), tmp_path / "axb" / "s")
    data = prepare_store(log, tmp_path / name / "s", rows_in_memory=100)
    expected = prepare_store(log, tmp_path / "plain")
    assert data.vocabulary == expected.vocabulary
    assert data.store.ids.to_list() == expected.store.ids.to_list()


def test_a_store_in_the_home_folder_is_found_by_its_tilde(tmp_path, log, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare_store(log, "~/store")
    assert SessionDataModule("~/store").num_items == len(open_store("~/store").vocabulary)


def test_a_link_stays_a_link(tmp_path, log):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    prepare_store(log, tmp_path / "link")
    prepare_store(log, tmp_path / "link", min_item_count=2)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "manifest.json").is_file()


def test_a_relative_folder_may_be_left_by_the_process(tmp_path, log, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare_store(log, "store")
    data = SessionDataModule("store")
    views = pickle.dumps(open_store("store").views)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert data.num_items == 30
    assert len(pickle.loads(views)["test"]) > 0  # noqa: S301 - what was packed just now


def test_a_store_that_was_replaced_does_not_pass_for_the_old_one(tmp_path, log):
    data = prepare_store(log, tmp_path / "store")
    views = pickle.dumps(data.views)
    prepare_store(log, tmp_path / "store", skip_threshold=0.5)  # of the same sessions
    with pytest.raises(ValueError, match="must hold the store that was opened"):
        _ = data.store.ids
    with pytest.raises(ValueError, match="must hold the store that was opened"):
        pickle.loads(views)  # noqa: S301 - what was packed just now


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_store_may_be_opened_while_another_takes_its_place(tmp_path, log, monkeypatch, exchanges):
    folder = tmp_path / "store"
    if not exchanges:
        monkeypatch.setattr(manifest_room, "_exchange", lambda *_: False)
    lengths = {len(prepare_store(log, folder, min_session_length=n).store) for n in (15, 3)}
    stop, errors, found = threading.Event(), [], set()

    def read():
        while not stop.is_set():
            try:
                found.add(len(open_store(folder).store))
            except Exception as error:
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for n in (15, 3) * 6:
        prepare_store(log, folder, min_session_length=n)
    stop.set()
    reader.join()
    if not exchanges or sys.platform != "linux":
        # Between two renames the folder is missing for a moment.
        errors = [error for error in errors if "without a manifest" not in str(error)]
    assert errors == []
    assert found <= lengths
    assert not list(tmp_path.glob(".*"))


def test_contents_are_read_only_where_they_are_to_be_verified(tmp_path, log, monkeypatch):
    prepare_store(log, tmp_path / "store")
    read = []
    digest = manifest_room.digest_file
    monkeypatch.setattr(manifest_room, "digest_file", lambda file: read.append(file) or digest(file))
    open_store(tmp_path / "store", verify=False)
    assert read == []
    open_store(tmp_path / "store")
    assert len(read) == 14


def test_an_older_format_is_refused_as_well(tmp_path, log):
    prepare_store(log, tmp_path / "store")
    file = tmp_path / "store" / "manifest.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"format": 0}))
    with pytest.raises(ValueError, match=r"of format 1, got .* of format 0"):
        Manifest.read(tmp_path / "store")


def test_the_checksum_of_a_manifest_does_not_depend_on_the_order_of_its_keys(tmp_path, log):
    prepare_store(log, tmp_path / "store")
    file = tmp_path / "store" / "manifest.json"
    written = Manifest.read(tmp_path / "store")
    file.write_text(json.dumps(dict(reversed(json.loads(file.read_text()).items()))))
    assert Manifest.read(tmp_path / "store") == written


@pytest.mark.parametrize("folder", [".", "", "file/store"])
def test_where_no_store_can_be_is_said_before_anything_is_read(tmp_path, log, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")

    def fail(*arguments, **settings):
        raise AssertionError

    monkeypatch.setattr(store_room, "prepare_into", fail)
    with pytest.raises(ValueError, match="`folder` must"):
        prepare_store(log, folder)
    with pytest.raises(TypeError, match="`folder` must be a string"):
        prepare_store(log, None)


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"rebuild": "no"}, TypeError, "`rebuild` must be True or False"),
        ({"split": LeaveOneOut}, TypeError, "`split`"),
        ({"gap_minutes": 1, "skip_seconds": 0}, ValueError, r"`skip_seconds` must be in \(0, inf\)"),
        ({"rows_in_memory": 0}, ValueError, "`rows_in_memory` must be at least 1"),
    ],
)
def test_settings_of_another_kind_are_errors(tmp_path, log, setting, error, message):
    with pytest.raises(error, match=message):
        prepare_store(log, tmp_path / "store", **setting)


def test_a_file_in_place_of_a_store_is_said_to_be_none(csv):
    with pytest.raises(ValueError, match=r"must be a session store, got .*log\.csv"):
        SessionDataModule(csv)


@pytest.mark.parametrize("factor", [10**3, 10**6, 10**9])
def test_times_in_smaller_units_than_seconds_are_refused(factor):
    log = pl.DataFrame(
        {
            "session_id": 1,
            "item_id": [1, 2, 3],
            "feedback": 1.0,
            "timestamp": [1_600_000_000 * factor + n for n in range(3)],
        }
    )
    with pytest.raises(ValueError, match="a number of seconds in column 'timestamp'"):
        SessionDataModule(log).setup()


def test_a_skipped_target_that_training_never_saw_is_no_merit():
    rows = [
        (s, item, n, -1.0 if item == 9 else 1.0)
        for s in range(3)
        for n, item in enumerate([1, 2, 3, 4, 9 if s else 1])
    ]
    log = pl.DataFrame(rows, schema=["session_id", "item_id", "position", "feedback"], orient="row")
    data = SessionDataModule(log, max_length=4)
    assert data.num_cold_targets["test"] == 2
    (batch,) = data.test_dataloader()
    assert batch.target_feedback.tolist() == [1.0]


def test_a_disliked_track_is_not_mined_as_a_positive_and_is_no_listened_one():
    liked = {"session_id": 1, "item_id": [1, 2, 3, 4, 5], "feedback": 1.0, "position": range(5)}
    log = pl.DataFrame(liked).with_columns(
        explicit_feedback=pl.when(pl.col("item_id") == 2).then(-1.0).otherwise(0.0)
    )
    data = SessionDataModule(log, mining_min_count=1)
    code = {item: int(data.vocabulary.encode([item])[0]) for item in (1, 2, 3)}
    assert data.mined.listened_after[code[1]][0] == code[3]
    assert data.mined.skipped_after[code[1]][0] == code[2]
    with pytest.raises(ValueError, match="at least one session that satisfies the filter"):
        SessionDataModule(log.with_columns(explicit_feedback=-1.0)).setup()


def test_overfitting_a_few_batches_works(log):
    data = SessionDataModule(log, batch_size=8, max_length=10)
    module = SkipCLModule(
        SASRec(8, max_length=10, num_heads=1), None, num_items=data.num_items, embedding_size=8
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        overfit_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    with pytest.warns(UserWarning, match="requested to overfit"):
        trainer.fit(module, data)
    assert trainer.global_step == 4
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize(
    ("versions", "failures", "openings"),
    [
        (["a"], 0, 1),
        (["a", "b", "b"], 0, 2),  # replaced while it was read
        (["a", "b", "b", "b"], 1, 2),  # replaced, and its files were missing for a moment
        (["a", "a"], 99, 1),  # damaged
        (["", "a", "a"], 1, 2),  # there was no store yet
        (None, 0, 51),  # replaced all the time
        (None, 99, 51),
    ],
)
def test_a_store_is_opened_again_only_if_it_was_replaced(monkeypatch, versions, failures, openings):
    told = iter(versions + versions[-1:] * 9 if versions else map(str, range(999)))
    opened, waits = [], []

    def read(folder, version, *, verify):
        opened.append(version)
        if len(opened) <= failures:
            raise OSError("gone")
        return version

    monkeypatch.setattr(store_room, "_read_state", lambda folder: (next(told), 0, 0))
    monkeypatch.setattr(store_room, "_open", read)
    monkeypatch.setattr(store_room.time, "sleep", waits.append)
    if failures >= openings:
        with pytest.raises(OSError, match="gone"):
            store_room._open_steadily(Path("store"), verify=True)
    else:
        assert store_room._open_steadily(Path("store"), verify=True) == opened[-1]
    assert len(opened) == openings
    assert waits == pytest.approx([0.01 * (1 + n) for n in range(openings - 1)])


def test_a_store_that_is_prepared_again_is_opened_again(tmp_path, log):
    states = []
    for _ in range(2):
        prepare_store(log, tmp_path / "store", rebuild=True)
        states.append(store_room._read_state(tmp_path / "store"))
    (one, *first), (other, *second) = states
    assert one == other  # the same version
    assert first != second
