"""Checkpoints are whole or absent, and a damaged one is an error."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from small_models import quiet_trainer
from small_run import fill_disk, make_data, make_module

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning import _files as files
from skipcl_lightning.callbacks import BestCheckpoint
from skipcl_lightning.cli.training import TrainingCLI
from skipcl_lightning.module import WholeCheckpointIO

FLIPS = 40
MANY_FLIPS = 2000
KILLS = 12


def plain(value):
    """The contents of a checkpoint, comparable by ==."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), list(value.shape), value.contiguous().reshape(-1).view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


class Own(TorchCheckpointIO):
    """A plugin of the user's own."""


@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:Be aware that when using `ckpt_path`")
def test_a_module_writes_whole_checkpoints_by_itself_and_leaves_other_plugins(tmp_path):
    data = make_data()
    for plugin, kind in [(None, WholeCheckpointIO), (Own(), Own), (AsyncCheckpointIO(), AsyncCheckpointIO)]:
        keep = ModelCheckpoint(tmp_path, save_last=True)
        trainer = quiet_trainer(
            enable_checkpointing=True,
            callbacks=[keep],
            limit_val_batches=0,
            max_steps=1,
            plugins=[] if plugin is None else [plugin],
        )
        trainer.fit(make_module(data), data)
        assert type(trainer.strategy.checkpoint_io) is kind
        assert files.open_checkpoint(keep.last_model_path)["global_step"] == 1
    again = quiet_trainer(plugins=[AsyncCheckpointIO(WholeCheckpointIO())])
    again.test(make_module(data), data, ckpt_path=tmp_path / "last.ckpt", verbose=False)


class BrokenError(Exception):
    """What interrupts a write."""


@pytest.mark.parametrize("unnamed", [True, False], ids=["unnamed", "named"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), BrokenError(), KeyboardInterrupt()], ids=repr
)
def test_what_breaks_a_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error, unnamed):
    path = tmp_path / "last.ckpt"
    if not unnamed:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    files.save_checkpoint({"step": 1}, path)

    def break_off(checkpoint, stream):
        stream.write(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", break_off)
        with pytest.raises(type(error)) as caught:
            files.save_checkpoint({"step": 2}, path)
    if isinstance(error, OSError):
        assert "`path` must be on a disk with room" in str(caught.value)
        assert str(path) in str(caught.value)
    assert files.open_checkpoint(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    files.save_checkpoint({"step": 2}, path)
    assert files.open_checkpoint(path) == {"step": 2}


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    for path, error in [(tmp_path / "none" / "a.txt", FileNotFoundError), (tmp_path, IsADirectoryError)]:
        with pytest.raises(error) as caught:
            files.write_whole(path, lambda place: place.write_text("a"))
        assert caught.value.filename == str(path)
    assert not list(tmp_path.iterdir())


def flip(path, target, generator, flips):
    """How many of the copies with a flipped bit are refused; the others have the same contents."""
    whole, before = path.read_bytes(), plain(files.open_checkpoint(path))
    refused = 0
    for _ in range(flips):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
        target.write_bytes(damaged)
        try:
            found = plain(WholeCheckpointIO().load_checkpoint(target))
        except ValueError as error:
            found, message = before, str(error)
            refused += str(target) in message
        assert found == before
    return refused


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, trained):
    refused = flip(trained[2], tmp_path / "flipped.ckpt", np.random.default_rng(0), FLIPS)
    assert refused > FLIPS / 2


@pytest.mark.reliability
def test_flipped_bits_of_a_whole_file(tmp_path, trained, record):
    refused = flip(trained[2], tmp_path / "flipped.ckpt", np.random.default_rng(1), MANY_FLIPS)
    record(f"{MANY_FLIPS} flipped bits: {refused} refused, the others without an effect, 0 silent")


def test_a_record_that_is_marked_as_a_folder_is_refused(tmp_path, trained):
    damaged = bytearray(trained[2].read_bytes())
    damaged[damaged.index(b"PK\x01\x02") + 38] ^= 0x10  # the first entry of the archive's directory
    (tmp_path / "flipped.ckpt").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"flipped\.ckpt', which is cut or damaged: it has folders"):
        files.open_checkpoint(tmp_path / "flipped.ckpt")


def test_a_file_that_a_strategy_of_shards_has_read_is_checked_after_it(tmp_path, trained):
    _, data, path = trained
    checkpoint = torch.load(path, weights_only=True)
    weights = checkpoint.pop("state_dict")["model.item_embedding.weight"]
    whole = path.read_bytes()
    place = whole.index(weights.numpy().tobytes())
    (tmp_path / "flipped.ckpt").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    module, trainer = make_module(data), quiet_trainer()
    module.trainer = trainer
    trainer.ckpt_path = path
    module.on_load_checkpoint(checkpoint)
    trainer.ckpt_path = tmp_path / "flipped.ckpt"
    with pytest.raises(ValueError, match=r"flipped\.ckpt', which is cut or damaged: Bad CRC-32"):
        module.on_load_checkpoint(checkpoint)


def test_weights_that_are_not_finite_are_refused(tmp_path, trained):
    _, data, path = trained
    for name, value in [
        ("model.item_embedding.weight", float("nan")),
        ("model.backbone.norm.weight", float("inf")),
    ]:
        checkpoint = torch.load(path, weights_only=True)
        name = name if name in checkpoint["state_dict"] else [*checkpoint["state_dict"]][-1]
        checkpoint["state_dict"][name].view(-1)[-1] = value
        torch.save(checkpoint, tmp_path / "diverged.ckpt")
        message = rf"diverged\.ckpt.* `{name}` must be finite, got NaN or infinity\. The training diverged"
        for load in (
            SkipCLModule.load_from_checkpoint,
            Recommender.from_checkpoint,
            lambda path: make_module(data).init_from(path, data),
            lambda path: quiet_trainer().test(make_module(data), data, ckpt_path=path),
        ):
            with pytest.raises(ValueError, match=message):
                load(tmp_path / "diverged.ckpt")


def test_last_skips_a_damaged_file_and_says_which_one_it_took(tmp_path, trained):
    _, data, path = trained
    for name, age in [("step=1", 20), ("step=2", 10), ("last", 0)]:
        shutil.copyfile(path, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (time.time() - age,) * 2)
    keep = BestCheckpoint(tmp_path, save_last=True)
    trainer = quiet_trainer(enable_checkpointing=True, callbacks=[keep])
    settings = {"ckpt_path": "last", "verbose": False}
    trainer.test(make_module(data), data, **settings)
    assert trainer.ckpt_path == str(tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").write_bytes(path.read_bytes()[:-9])
    with pytest.warns(
        UserWarning, match=r"Took '.*step=2\.ckpt' for the last checkpoint: .*last\.ckpt', which is cut"
    ):
        trainer.test(make_module(data), data, **settings)
    assert trainer.ckpt_path == str(tmp_path / "step=2.ckpt")
    for file in tmp_path.glob("step*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"last\.ckpt', which is cut"):
        trainer.test(make_module(data), data, **settings)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # Lightning warns of one that is not empty
def test_with_lightnings_own_checkpoints_a_resumed_run_skips_a_damaged_last_and_others_name_the_whole_one(
    tmp_path, trained
):
    _, data, path = trained
    for name, age in [("step=1", 30), ("step=2", 20), ("step=3", 10), ("last", 0)]:
        shutil.copyfile(path, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (time.time() - age,) * 2)
    for name in ("step=3", "last"):
        (tmp_path / f"{name}.ckpt").write_bytes(path.read_bytes()[:-9])
    trainer = quiet_trainer(enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path, save_last=True)])
    for name in ("last", "step=3"):
        message = rf"{name}\.ckpt', which is cut.* The newest whole one of its folder is '.*step=2\.ckpt'"
        with pytest.raises(ValueError, match=message):
            trainer.test(make_module(data), data, ckpt_path=tmp_path / f"{name}.ckpt", verbose=False)
    with pytest.raises(ValueError, match=message):
        trainer.fit(make_module(data), data, ckpt_path=tmp_path / "step=3.ckpt")
    # The first of these runs writes `last-v1.ckpt`.
    for number, (wanted, taken) in enumerate([("last", "step=2"), (tmp_path / "last.ckpt", "last-v1")]):
        (tmp_path / "last.ckpt").write_bytes(path.read_bytes()[:-9])
        trainer = quiet_trainer(
            max_epochs=2 + number,
            enable_checkpointing=True,
            callbacks=[ModelCheckpoint(tmp_path, save_last=True)],
        )
        with pytest.warns(UserWarning, match=rf"Took '.*{taken}\.ckpt' for the last.*last\.ckpt'"):
            trainer.fit(make_module(data), data, ckpt_path=wanted)
        assert trainer.current_epoch == 2 + number


def test_the_command_line_skips_a_damaged_last_too(monkeypatch, tmp_path, trained):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "lightning_logs/version_0/checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(b"PK")
    cli = object.__new__(TrainingCLI)
    cli.subcommand, settings = "fit", {"trainer": {}, "ckpt_path": "last"}
    cli.config = {"fit": settings}
    cli._find_newest("ckpt_path")
    assert settings["ckpt_path"] == "lightning_logs/version_0/checkpoints/last.ckpt"  # which is then refused
    shutil.copyfile(trained[2], folder / "best.ckpt")
    settings["ckpt_path"] = "last"
    with pytest.warns(UserWarning, match=r"Took '.*best\.ckpt' for the last checkpoint: .*last\.ckpt'"):
        cli._find_newest("ckpt_path")
    assert settings["ckpt_path"] == "lightning_logs/version_0/checkpoints/best.ckpt"


WRITER = """
import sys
from pathlib import Path
import torch
from skipcl_lightning._files import save_checkpoint
weights = torch.ones(4_000_000)
step = int(sys.argv[2])
while True:
    step += 1
    for name in ("last", f"step={step}"):
        save_checkpoint({"step": step, "weights": weights * step}, Path(sys.argv[1], name + ".ckpt"))
    Path(sys.argv[1], f"step={step - 1}.ckpt").unlink(missing_ok=True)
    print(step, flush=True)
"""


@pytest.mark.reliability
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no second file system")  # noqa: S108
def test_a_kill_at_any_moment_leaves_whole_files_only(tmp_path, record):
    generator = np.random.default_rng(0)
    environment = {**os.environ, "TMPDIR": "/dev/shm"}  # noqa: S108 - it must be another file system
    step = 0
    for _ in range(KILLS):
        with subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-c", WRITER, str(tmp_path), str(step)], env=environment, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            time.sleep(generator.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
        found = sorted(file.name for file in tmp_path.iterdir())
        assert all(name.endswith(".ckpt") and not name.startswith(".") for name in found), found
        for name in found:
            checkpoint = files.open_checkpoint(tmp_path / name)
            assert checkpoint["weights"].unique().tolist() == [checkpoint["step"]]
        last = files.open_checkpoint(tmp_path / "last.ckpt")["step"]
        assert last > step
        step = last
    record(f"{KILLS} kills during writes: every file whole, none left over")


class Fill(Callback):
    """Fills the disk after the first checkpoint."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            fill_disk(self.folder)


@pytest.mark.reliability
def test_a_full_disk_leaves_the_checkpoints_that_were_there(small_disk, record):
    data = make_data()
    keep = BestCheckpoint(small_disk / "checkpoints", save_last=True, save_top_k=-1, filename="{epoch}")
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[keep, Fill(small_disk)],
        logger=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(OSError, match=r"`path` must be on a disk with room .*checkpoints/epoch=1\.ckpt"):
        trainer.fit(make_module(data), data)
    found = sorted(file.name for file in (small_disk / "checkpoints").iterdir())
    assert found == ["epoch=0.ckpt", "last.ckpt"]
    for name in found:
        assert files.open_checkpoint(small_disk / "checkpoints" / name)["epoch"] == 0
    record("a full disk in training: 2 of 2 checkpoints whole, none cut")
