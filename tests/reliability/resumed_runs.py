"""A training whose steps draw random numbers in every way that we know, broken off in several ways.

As a script, it does so in several processes.
"""

import contextlib
import copy
import sys
from pathlib import Path

import polars as pl
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, OnExceptionCheckpoint

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import BERT4Rec, SASRec
from skipcl_lightning.cli.predictions import SessionTrainer
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import CombinedHead, SampledSoftmax, SkipInfoNCE, SkipPrediction, SkipSoftmax

EPOCHS = 2
BATCHES = 5
STEPS = EPOCHS * BATCHES


class Killed(BaseException):
    """Not caught anywhere, like the end of a process."""


class Steps(Callback):
    """The loss of each step by epoch and batch; saves after a step, or kills the run before the next."""

    def __init__(self, *, kill_at=None, save_at=None, file=None):
        self.kill_at, self.save_at, self.file = kill_at, save_at, file
        self.losses = {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.kill_at:
            raise Killed

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses[trainer.current_epoch, batch_idx] = outputs["loss"].item()
        if trainer.global_step == self.save_at:
            trainer.save_checkpoint(self.file)


def make_data(processes=1):
    log = simulate_sessions(50, num_items=40, num_moods=4)
    content = log.select("item_id").unique().sort("item_id").with_columns(tempo=pl.int_range(pl.len()) % 7)
    # 50 sessions are 5 batches, the last of which is smaller.
    data = SessionDataModule(log, batch_size=12 // processes, max_length=8, item_features=content, seed=0)
    assert data.item_features is not None  # prepared once, for all copies
    return data


def make_module(kind, data):
    settings = {"num_items": data.num_items, "embedding_size": 8}
    if kind == "causal":
        head = CombinedHead(
            [SkipInfoNCE(bank_size=16, learn_temperature=True), SkipSoftmax(num_samples=4), SkipPrediction()]
        )
        return SkipCLModule(
            SASRec(8, max_length=8, num_layers=1, dropout=0.3),
            head,
            next_item_loss=SampledSoftmax(8),
            item_features=data.item_features,
            id_dropout=0.3,
            warmup_steps=3,
            **settings,
        )
    backbone = BERT4Rec(8, max_length=8, num_layers=1, dropout=0.3)
    return SkipCLModule(backbone, SkipInfoNCE(), item_features=data.item_features, **settings)


def train(kind, data, *callbacks, resume=None, seed=5, **settings):
    """Return the module, the losses of the steps, and the Trainer."""
    seed_everything(seed, verbose=False)
    data = copy.copy(data)  # Lightning writes its Trainer into it
    module = make_module(kind, data)
    steps = next((one for one in callbacks if isinstance(one, Steps)), None) or Steps()
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": EPOCHS,
            "callbacks": [steps, *(one for one in callbacks if one is not steps)],
            "enable_checkpointing": any(isinstance(one, Checkpoint) for one in callbacks),
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **settings,
        }
    )
    with contextlib.suppress(Killed):
        trainer.fit(module, data, ckpt_path=resume, weights_only=True if resume else None)
    return module, steps.losses, trainer


# The moments at which Lightning writes checkpoints in a run.
MOMENTS = {
    "every 2 steps": {"every_n_train_steps": 2},
    "validation": {"monitor": "val/mrr@5", "save_on_train_epoch_end": False},
    "epoch": {"monitor": "val/mrr@5", "save_on_train_epoch_end": True},
}


def resume_exactly(way, kind, data, step, folder, whole):
    """Break a run off after `step` steps in some way, resume it, and compare it with the `whole` one."""
    file = Path(folder) / f"{way}-{step}.ckpt"
    saving = []
    if way in MOMENTS:
        saving = [ModelCheckpoint(file.with_suffix(""), "{step}", **MOMENTS[way])]
    if way == "exception":
        saving = [OnExceptionCheckpoint(folder, file.stem)]
    if way == "max_steps":
        train(kind, data, max_steps=step)[2].save_checkpoint(file)
    else:
        save_at = None if saving else step
        train(kind, data, Steps(kill_at=step, save_at=save_at, file=file), *saving)
    resume = saving[0].best_model_path if way in MOMENTS else file
    limit = {"max_steps": STEPS} if step % 2 else {}
    # Another seed, because a new process need not be seeded as the old one.
    resumed, losses, _ = train(kind, data, *copy.deepcopy(saving), resume=resume, seed=6, **limit)
    module, expected, _ = whole
    assert len(losses) >= STEPS - step
    assert list(losses.items()) == list(expected.items())[-len(losses) :]
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def predict(module, data, file, **devices):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = SessionTrainer(accelerator="cpu", enable_model_summary=False, **quiet, **devices)
    trainer.predict(module, copy.copy(data), output=file)


def resume_in_processes(processes, folder):
    """Compare a whole run and a resumed one in each process, and the banks of all processes."""
    data = make_data(processes)
    # Else DDP lays its gradients out anew after a run's first step, and three of them are summed in another
    # order; two are not.
    strategy = "ddp" if processes == 2 else "ddp_find_unused_parameters_true"
    devices = {"devices": processes, "strategy": strategy}
    whole, expected, trainer = train("causal", data, **devices)
    trainer.save_checkpoint(Path(folder) / f"whole_{processes}.ckpt")
    file = Path(folder) / f"resumed_{processes}.ckpt"
    train("causal", data, Steps(save_at=3, file=file), max_steps=3, **devices)
    resumed, losses, _ = train("causal", data, resume=file, seed=6, **devices)
    assert len(losses) == STEPS - 3
    assert list(losses.items()) == list(expected.items())[3:]
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    # Each process drew random numbers of its own, and has the bank of all.
    gathered = [None] * processes
    found = whole.skip_head.heads[0].bank.tolist()
    torch.distributed.all_gather_object(gathered, (losses, found))
    assert all(gathered[0][0] != other for other, _ in gathered[1:])
    assert all(bank == found for _, bank in gathered)
    predict(whole, data, Path(folder) / f"predicted_{processes}.parquet", **devices)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    resume_in_processes(int(sys.argv[1]), sys.argv[2])
