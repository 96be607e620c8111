"""Ours: SASRec of this library, trained and tested by Lightning's Trainer from its own data module."""

import warnings
from collections.abc import Callable
from typing import Any

import polars as pl
from common import (
    DROPOUT,
    HEADS,
    LAYERS,
    LEARNING_RATE,
    MAX_LENGTH,
    NEGATIVES,
    SIZE,
    TOP_K,
    Sessions,
    StepClock,
    Task,
    forget_peak,
    repeat,
    work,
)
from lightning.pytorch import Callback, Trainer

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.heads import FullSoftmax, SampledSoftmax, SkipInfoNCE


class Stopwatch(Callback):
    """Stops training when the clock says so."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: SkipCLModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop = self.clock.step(len(batch), outputs["loss"].item())


def make_data(task: Task, sessions: Sessions) -> SessionDataModule:
    """The data module; leave-one-out is its default."""
    log = pl.DataFrame(
        {
            "session_id": sessions.rows,
            "position": sessions.positions,
            "item_id": sessions.items,
            "feedback": pl.Series(sessions.skipped).cast(pl.Float32) * -2 + 1,
        }
    )
    return SessionDataModule(log, batch_size=task.batch, max_length=MAX_LENGTH, seed=0)


def make_module(task: Task, num_items: int) -> SkipCLModule:
    """SASRec as the peers have it; with the head everything else is as the library has it by default."""
    with_skips = task.task == "train_skip"
    return SkipCLModule(
        SASRec(SIZE, max_length=MAX_LENGTH, num_layers=LAYERS, num_heads=HEADS, dropout=DROPOUT),
        SkipInfoNCE() if with_skips else None,
        num_items=num_items,
        embedding_size=SIZE,
        next_item_loss=SampledSoftmax(NEGATIVES) if task.task == "train_sampled" else FullSoftmax(),
        target_rule="next_listened" if with_skips else "next",
        feedback_input=with_skips,
        top_k=(TOP_K,),
        learning_rate=LEARNING_RATE,
    )


def run(
    task: Task, sessions: Sessions, make: Callable[[Task, int], SkipCLModule] = make_module
) -> dict[str, Any]:
    """Train or evaluate the module that `make` makes."""
    warnings.filterwarnings("ignore")
    data = make_data(task, sessions)
    module = make(task, data.num_items)
    items = {"num_items": data.num_items}
    forget_peak()
    if task.task == "evaluate":
        return items | repeat(task, lambda: evaluate(task, module, data, len(sessions.lengths)))
    clock = StepClock(task)
    Trainer(**task.trainer_settings, max_epochs=-1, limit_val_batches=0, callbacks=[Stopwatch(clock)]).fit(
        module, data
    )
    optimizer = module.optimizers(use_pl_optimizer=False)
    return items | clock.result() | {"fused": bool(optimizer.defaults.get("fused"))}


def evaluate(
    task: Task, module: SkipCLModule, data: SessionDataModule, available: int
) -> tuple[int, dict[str, float]]:
    """One test, with all the metrics that the module logs, of skips as well."""
    batches = -(-task.test_sessions // task.batch)
    (values,) = Trainer(**task.trainer_settings, limit_test_batches=batches).test(module, data, verbose=False)
    return min(batches * task.batch, available), {
        "hit_rate": values[f"test/hit_rate@{TOP_K}"],
        "ndcg": values[f"test/ndcg@{TOP_K}"],
    }


if __name__ == "__main__":
    work(("lightning", "skipcl-lightning"), run)
