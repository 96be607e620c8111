"""What the processes of the sharding test run: `python sharded_training.py RANK PORT FOLDER [PROCESSES]`."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import polars as pl
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from small_models import quiet_trainer
from torch.distributed.tensor import DTensor

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import SampledSoftmax, SkipInfoNCE


def sharing(processes: int) -> ModelParallelStrategy:
    return ModelParallelStrategy(
        data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def train(folder: Path, processes: int) -> None:
    seed_everything(0, verbose=False)
    # Eight listeners, whose sessions follow each other.
    number = pl.col("session_id").rank("dense").cast(pl.Int64)
    log = simulate_sessions(64, num_items=40, num_moods=4).with_columns(
        user_id=number % 8, timestamp=number * 1000 + pl.col("position")
    )
    data = SessionDataModule(log, batch_size=64 // processes, max_length=20, seed=0, history_length=5)
    module = SkipCLModule(
        SASRec(16, max_length=20, dropout=0.0), SkipInfoNCE(), num_items=40, embedding_size=16
    )
    strategy = sharing(processes) if processes > 1 else "auto"
    trainer = quiet_trainer(max_epochs=3, strategy=strategy, devices=processes)
    trainer.fit(module, data)
    trainer.save_checkpoint(folder / f"{processes}.ckpt")
    assert module.model.history_embedding is not None
    if processes > 1:
        optimizer = trainer.optimizers[0]
        moments = optimizer.state[module.model.item_embedding.weight]["exp_avg"]
        assert isinstance(moments, DTensor)
        assert moments.to_local().shape[0] in (20, 21)  # of 41 rows
    trainer.test(module, data, verbose=False)
    if trainer.is_global_zero:
        torch.save(dict(trainer.callback_metrics), folder / f"{processes}.pt")


def whole(weight: torch.Tensor) -> torch.Tensor:
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach()


def train_on(path: Path) -> None:
    """Resume a sharded run, and begin another one with its weights and three more items."""
    log = simulate_sessions(64, num_items=43, num_moods=4, seed=1)
    old = SkipCLModule.load_from_checkpoint(path, weights_only=True)
    for new_items, num_items in (("drop", 40), ("append", 43)):
        data = SessionDataModule(
            log, batch_size=32, max_length=20, seed=0, vocabulary=path, new_items=new_items
        )
        assert data.num_items == num_items
        backbone = SASRec(16, max_length=20, dropout=0.0)
        # With such a learning rate, weights stay what they were.
        module = SkipCLModule(backbone, SkipInfoNCE(), num_items=num_items, learning_rate=1e-9)
        trainer = quiet_trainer(max_epochs=4, strategy=sharing(2), devices=2, limit_val_batches=0)
        if new_items == "drop":
            trainer.fit(module, data, ckpt_path=path, weights_only=True)
        else:
            module.init_from(path, data)
            trainer.fit(module, data)
            torch.testing.assert_close(
                whole(module.model.item_embedding.weight)[:41], old.item_table.detach(), rtol=0, atol=1e-6
            )
            assert module.growth == [40, 43]
        # An epoch is a step. A resumed run has done three epochs.
        assert (trainer.current_epoch, trainer.global_step) == (4, 4)


def table_after_lookups(
    strategy: str | ModelParallelStrategy, processes: int, *, gathered: bool
) -> torch.Tensor:
    """The item table after some steps whose lookups make one gradient together, or one each."""
    seed_everything(0, verbose=False)
    data = SessionDataModule(simulate_sessions(64, num_items=40, num_moods=4), batch_size=16, seed=0)
    module = SkipCLModule(
        SASRec(16, dropout=0.0), num_items=40, embedding_size=16, next_item_loss=SampledSoftmax(8)
    )
    if not gathered:
        module.model.item_embedding.gathered_gradients = nullcontext
    quiet_trainer(max_steps=2, limit_val_batches=0, strategy=strategy, devices=processes).fit(module, data)
    return whole(module.model.item_embedding.weight)


if __name__ == "__main__":
    rank, port, folder, processes = sys.argv[1:]
    os.environ |= {
        "LOCAL_RANK": rank,
        "NODE_RANK": "0",
        "WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    train(Path(folder), int(processes))
    if int(processes) > 1:
        train_on(Path(folder) / f"{processes}.ckpt")
    if int(processes) > 1:
        for make in (lambda: sharing(2), lambda: "ddp"):
            found, expected = (table_after_lookups(make(), 2, gathered=one) for one in (True, False))
            torch.testing.assert_close(found, expected)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
