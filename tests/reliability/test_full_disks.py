"""A full disk, or a folder removed in a run, is an error with the path, and leaves nothing half-written."""

import errno
import pickle
import shutil
import traceback
from pathlib import Path

import polars as pl
import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from matplotlib.image import imread
from small_models import quiet_trainer
from small_run import fill_disk, make_data, make_module

from skipcl_lightning._files import write_whole
from skipcl_lightning.callbacks import BestCheckpoint
from skipcl_lightning.callbacks.loggers import publish_table
from skipcl_lightning.cli.predictions import RecommendationWriter
from skipcl_lightning.data import open_store, prepare_store, simulate_sessions
from skipcl_lightning.evaluation import evaluate
from skipcl_lightning.export import export_model, load_export

BLOCK = 4096
FOLDERS = {"export": load_export, "store": open_store}
READERS = {".csv": pl.read_csv, ".parquet": pl.read_parquet, ".png": imread, ".md": Path.read_text}


def predict(module, data, path):
    quiet_trainer(callbacks=[RecommendationWriter(path)]).predict(module, data, return_predictions=False)


def log_table(folder):
    publish_table(quiet_trainer(logger=CSVLogger(folder)), "a/table", pl.DataFrame({"n": range(3000)}))


@pytest.fixture(scope="module")
def writers(trained):
    """By name, how something is written into a folder, and what of it the error names."""
    module, data, _ = trained
    log = simulate_sessions(60, num_items=30, num_moods=3).collect()
    report = evaluate(module, data, num_resamples=10)
    return {
        "report": (lambda folder: report.save(folder / "report"), "report/"),
        "csv": (lambda folder: predict(module, data, folder / "rows.csv"), "rows.csv"),
        "parquet": (lambda folder: predict(module, data, folder / "rows.parquet"), "rows.parquet"),
        "table": (log_table, "lightning_logs/version_0/a_table.csv"),
        "export": (
            lambda folder: export_model(module, module.encoder, folder / "export", onnx=False),
            "export",
        ),
        "store": (lambda folder: prepare_store(log, folder / "store"), "store"),
    }


def check(writers, name, disk, room):
    """Write with little room; return whether there was enough."""
    for old in disk.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    fill_disk(disk, room)
    write, place = writers[name]
    error = None
    try:
        write(disk)
    except OSError as raised:
        error = raised
    enough = error is None
    assert enough or str(disk / place) in str(error)
    assert enough or "on a disk with room for the" in str(error)
    (disk / "filler").unlink()
    if name in FOLDERS:
        assert [file.name for file in disk.iterdir()] == [name] * enough
        if enough:
            FOLDERS[name](disk / name)
        return enough
    for file in disk.rglob("*"):
        if file.is_file():
            assert not file.name.startswith(".")
            READERS[file.suffix](file)
    return enough


@pytest.mark.parametrize("name", ["report", "csv", "parquet", "table", "export", "store"])
def test_a_full_disk_is_named_and_leaves_nothing_half_written(small_disk, writers, name):
    assert not check(writers, name, small_disk, 2 * BLOCK)


@pytest.mark.reliability
def test_disks_with_any_room_hold_whole_files_only(small_disk, writers, record):
    counts = {False: 0, True: 0}
    for name, most in {"report": 50, "csv": 16, "parquet": 16, "table": 8, "export": 80, "store": 40}.items():
        for blocks in range(1, most, 4):
            counts[check(writers, name, small_disk, blocks * BLOCK)] += 1
    record(
        f"{sum(counts.values())} writes of reports, predictions, tables, exports and stores on a disk with "
        f"little room: {counts[False]} refused with the path, {counts[True]} had enough, none half-written"
    )


@pytest.mark.parametrize("full", [True, False])
def test_an_error_that_hides_a_full_disk_is_found_out(small_disk, full):
    def write(place):
        if full:
            fill_disk(small_disk)
        raise RuntimeError("transport error")  # as polars says at the end of a Parquet file

    with pytest.raises(OSError if full else RuntimeError) as caught:
        write_whole(small_disk / "rows.parquet", write)
    assert full == (str(small_disk / "rows.parquet") in str(caught.value))


class AtSecondEpoch(Callback):
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            self.call(*self.arguments)

    def on_predict_batch_start(self, *arguments):
        self.call(*self.arguments)


def train(folder, call, *callbacks, **settings):
    data = make_data()
    callbacks = [AtSecondEpoch(call, folder), *callbacks]
    settings = {"max_epochs": 2, "limit_val_batches": 0, "log_every_n_steps": 1, **settings}
    quiet_trainer(callbacks=callbacks, **settings).fit(make_module(data), data)


@pytest.mark.reliability
def test_the_error_of_a_logger_on_a_full_disk_has_its_folder(small_disk):
    logger = CSVLogger(small_disk, flush_logs_every_n_steps=1)
    with pytest.raises(OSError, match="No space left") as caught:
        train(small_disk, fill_disk, logger=logger, max_epochs=300)
    # Lightning ends the logger after the first error, and it fails once more.
    shown = "".join(traceback.format_exception(caught.value))
    assert f"A disk is full. Loggers write to {logger.log_dir!r}." in shown


def test_an_error_of_a_full_disk_without_a_name_has_the_folders_of_the_loggers(tmp_path):
    data, logger = make_data(), CSVLogger(tmp_path)
    data.trainer = quiet_trainer(logger=logger)
    full, named, other = (
        OSError(errno.ENOSPC, "full"),
        OSError(errno.ENOSPC, "full", "rows.csv"),
        OSError(errno.EIO, "broken"),
    )
    for error in (full, named, other):
        data.on_exception(error)
    assert full.__notes__ == [f"A disk is full. Loggers write to {logger.log_dir!r}."]
    assert not hasattr(named, "__notes__")
    assert not hasattr(other, "__notes__")


def test_a_folder_of_checkpoints_that_is_removed_is_made_again(tmp_path):
    folder = tmp_path / "checkpoints"
    keep = BestCheckpoint(folder, save_last=True, filename="{epoch}")
    train(folder, shutil.rmtree, keep, enable_checkpointing=True)
    assert sorted(file.name for file in folder.iterdir()) == ["epoch=1.ckpt", "last.ckpt"]


def test_a_folder_of_logs_that_is_removed_is_named(tmp_path):
    folder = tmp_path / "lightning_logs"
    with pytest.raises(FileNotFoundError, match=r"lightning_logs/version_0/metrics\.csv"):
        train(folder, shutil.rmtree, logger=CSVLogger(tmp_path, flush_logs_every_n_steps=1))


def test_a_folder_of_predictions_that_is_removed_is_named(tmp_path, trained):
    module, data, _ = trained
    (tmp_path / "out").mkdir()
    callbacks = [
        AtSecondEpoch(shutil.rmtree, tmp_path / "out"),
        RecommendationWriter(tmp_path / "out/rows.csv"),
    ]
    with pytest.raises(FileNotFoundError, match=r"out/rows\.csv"):
        quiet_trainer(callbacks=callbacks, limit_predict_batches=1).predict(
            module, data, return_predictions=False
        )


def test_a_store_that_is_removed_is_named_where_it_is_opened_again(tmp_path, small_store):
    shutil.copytree(small_store, tmp_path / "store")
    views = pickle.dumps(open_store(tmp_path / "store").views)
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(ValueError, match=r"must hold the store that was opened, got '.*store' without one"):
        pickle.loads(views)  # noqa: S301 - what was packed just now
