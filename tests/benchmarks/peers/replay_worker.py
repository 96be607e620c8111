"""RePlay's SASRec (`replay.nn`), trained and tested by Lightning's Trainer from Parquet, in its environment.

As RePlay's documentation has it: `ParquetModule` with the default transforms, `CE`, or `CESampled` with one
set of negatives a batch, the fastest form of it, and `ComputeMetricsCallback`. Its advice to give all threads
to Arrow and one to torch is left aside: on a CPU torch does the work, with as many threads as everywhere.
"""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning
import pyarrow as pa
import pyarrow.parquet as pq
from common import (
    DROPOUT,
    HEADS,
    HELD_OUT,
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
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.lightning.callback import ComputeMetricsCallback
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.loss import CESampled
from replay.nn.sequential import SasRec
from replay.nn.transform import UniformNegativeSamplingTransform
from replay.nn.transform.template import make_default_sasrec_transforms


class Stopwatch(lightning.Callback):
    """Stops training when the clock says so."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop = self.clock.step(len(batch["padding_mask"]), outputs["loss"].item())


def write_files(task: Task, sessions: Sessions, folder: Path) -> None:
    """The training part of all sessions, and the tests of the first ones; items from 0 on."""
    sequences = [session - 1 for session in sessions.sequences]
    training = [session[:-HELD_OUT] for session in sequences]
    pq.write_table(pa.table({"item_id": training}), folder / "train.parquet")
    tests = sequences[: task.test_sessions]
    columns = {"item_id": [session[:-1] for session in tests], "ground_truth": [s[-1:] for s in tests]}
    pq.write_table(pa.table(columns), folder / "test.parquet")


def make_schema(num_items: int) -> TensorSchema:
    """One feature, the item, whose padding stands behind all items."""
    return TensorSchema(
        [
            TensorFeatureInfo(
                "item_id",
                is_seq=True,
                feature_type=FeatureType.CATEGORICAL,
                embedding_dim=SIZE,
                padding_value=num_items,
                cardinality=num_items,
                feature_hint=FeatureHint.ITEM_ID,
                feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
            )
        ]
    )


def make_data(task: Task, sessions: Sessions, folder: Path) -> ParquetModule:
    """The data module; a sequence of training has a track more, to be predicted."""
    padding = sessions.num_items
    transforms = make_default_sasrec_transforms(make_schema(padding))
    if task.task == "train_sampled":
        transforms["train"].append(UniformNegativeSamplingTransform(padding, NEGATIVES))
    metadata = {
        "train": {"item_id": {"shape": MAX_LENGTH + 1, "padding": padding}},
        "test": {
            "item_id": {"shape": MAX_LENGTH, "padding": padding},
            "ground_truth": {"shape": 1, "padding": -1},
        },
    }
    return ParquetModule(
        batch_size=task.batch,
        metadata=metadata,
        transforms=transforms,
        train_path=str(folder / "train.parquet"),
        test_path=str(folder / "test.parquet"),
    )


def make_module(task: Task, num_items: int) -> LightningModule:
    """SASRec with its loss; Adam is RePlay's default."""
    model = SasRec.from_params(
        make_schema(num_items),
        embedding_dim=SIZE,
        num_heads=HEADS,
        num_blocks=LAYERS,
        max_sequence_length=MAX_LENGTH,
        dropout=DROPOUT,
    )
    if task.task == "train_sampled":
        model.loss = CESampled()
        model.loss.logits_callback = model.get_logits
    return LightningModule(model, optimizer_factory=OptimizerFactory(learning_rate=LEARNING_RATE))


def run(task: Task, sessions: Sessions) -> dict[str, Any]:
    """Train or evaluate."""
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as name:
        write_files(task, sessions, Path(name))
        data = make_data(task, sessions, Path(name))
        module = make_module(task, sessions.num_items)
        items = {"num_items": len(module.model.body.embedder.get_item_weights())}
        forget_peak()
        if task.task == "evaluate":
            tests = min(task.test_sessions, len(sessions.lengths))
            return items | repeat(task, lambda: evaluate(task, module, data, tests))
        clock = StepClock(task)
        callbacks = [Stopwatch(clock)]
        lightning.Trainer(
            **task.trainer_settings, max_epochs=-1, limit_val_batches=0, callbacks=callbacks
        ).fit(module, data)
        return items | clock.result()


def evaluate(
    task: Task, module: LightningModule, data: ParquetModule, sessions: int
) -> tuple[int, dict[str, float]]:
    """One test; with one target a session recall is the hit rate."""
    callback = ComputeMetricsCallback(metrics=["recall", "ndcg"], ks=[TOP_K], verbose=False)
    trainer = lightning.Trainer(**task.trainer_settings, callbacks=[callback])
    (values,) = trainer.test(module, datamodule=data, verbose=False)
    return sessions, {"hit_rate": values[f"recall@{TOP_K}"], "ndcg": values[f"ndcg@{TOP_K}"]}


if __name__ == "__main__":
    work(("replay-rec", "lightning", "pyarrow"), run)
