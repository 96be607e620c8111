"""What the processes of the sharding test run: `python sharded_training.py RANK PORT FOLDER [PROCESSES]`."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

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


def prepare(num_items: int, batch_size: int, **settings: Any) -> SessionDataModule:
    number = pl.col("session_id").rank("dense").cast(pl.Int64)
    log = simulate_sessions(64, num_items=num_items, num_moods=4).with_columns(
        user_id=number % 8, timestamp=number * 1000 + pl.col("position")
    )
    content = log.select("item_id", mood=pl.col("item_mood").cast(pl.String), number="item_mood")
    return SessionDataModule(
        log,
        batch_size=batch_size,
        max_length=20,
        seed=0,
        history_length=5,
        context=["place"],
        item_features=content.unique("item_id"),
        **settings,
    )


def build(data: SessionDataModule, **settings: Any) -> SkipCLModule:
    return SkipCLModule(
        SASRec(16, max_length=20, dropout=0.0),
        SkipInfoNCE(),
        num_items=data.num_items,
        context_sizes=data.context_sizes,
        item_features=data.item_features,
        **settings,
    )


def train(folder: Path, processes: int) -> None:
    seed_everything(0, verbose=False)
    # Eight listeners, whose sessions follow each other.
    data = prepare(40, 64 // processes)
    module = build(data)
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
    """Resume a sharded run, with more items too, and begin another one with its weights."""
    saved = torch.load(path, weights_only=True)
    for way, num_items in (("resume", 40), ("extend", 43), ("begin", 43)):
        new_items = "drop" if way == "resume" else "append"
        data = prepare(43, 32, vocabulary=path, new_items=new_items)
        assert data.num_items == num_items
        # With such a learning rate, weights stay what they were.
        module = build(data, learning_rate=1e-9)
        source = path.with_name("extended.ckpt") if way == "extend" else path
        if way == "begin":
            module.init_from(path, data)
        elif way == "extend":
            module.extend_checkpoint(path, source, data)
        # An epoch is a step. The old run has done three epochs; without one more, its moments are unchanged.
        epochs = 3 if way == "extend" else 4
        trainer = quiet_trainer(max_epochs=epochs, strategy=sharing(2), devices=2, limit_val_batches=0)
        trainer.fit(module, data, **({} if way == "begin" else {"ckpt_path": source, "weights_only": True}))
        assert (trainer.current_epoch, trainer.global_step) == (epochs, epochs)
        table = module.model.item_embedding.weight
        assert whole(table).shape[0] == num_items + 1
        old = saved["state_dict"]["model.item_embedding.weight"]
        if way != "resume":  # with the learning rate of the old optimizer
            torch.testing.assert_close(whole(table)[:41], old, rtol=0, atol=1e-6)
        assert module.growth == ([40] if way == "resume" else [40, 43])
        if way == "extend":
            number = [name for name, _ in module.named_parameters()].index("model.item_embedding.weight")
            for name in ("exp_avg", "exp_avg_sq"):
                moments = whole(trainer.optimizers[0].state[table][name])
                assert torch.equal(moments[:41], saved["optimizer_states"][0]["state"][number][name])
                assert not moments[41:].any()


def refuse_damage(path: Path) -> None:
    """A bit of a weight is flipped, and the strategy, which compares no checksum, loads it."""
    weights = torch.load(path, weights_only=True)["state_dict"]["model.item_embedding.weight"]
    content = bytearray(path.read_bytes())
    content[content.index(weights.numpy().tobytes())] ^= 1
    flipped = path.with_name(f"flipped_{os.environ['LOCAL_RANK']}.ckpt")
    flipped.write_bytes(content)
    # The path of process 0 is taken by all, once each has written its own.
    torch.distributed.barrier()
    data = prepare(40, 32, vocabulary=path)
    trainer = quiet_trainer(max_epochs=4, strategy=sharing(2), devices=2, limit_val_batches=0)
    try:
        trainer.fit(build(data), data, ckpt_path=flipped.with_name("flipped_0.ckpt"), weights_only=True)
    except ValueError as error:
        assert "flipped_0.ckpt', which is cut or damaged: Bad CRC-32" in str(error)  # noqa: PT017 - no test
        return
    raise AssertionError("a flipped bit was loaded")


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
        refuse_damage(Path(folder) / f"{processes}.ckpt")
    if int(processes) > 1:
        for make in (lambda: sharing(2), lambda: "ddp"):
            found, expected = (table_after_lookups(make(), 2, gathered=one) for one in (True, False))
            torch.testing.assert_close(found, expected)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
