"""RecTools' SASRecModel, trained by its own Trainer, and its recommend and metrics, in its own environment.

RecTools draws as many negatives for each position, [B, L, K], where others share one set. Its evaluation is
`recommend` followed by `calc_metrics`, as its tutorials have it; its NDCG is over the best that k items could
give, not one, and so a fraction of that of others. (`rectools.fast_transformers` has another
SASRec network, but no training of it; its logits are those of all positions, too.)
"""

import logging
import warnings
from typing import Any

import numpy as np
import pandas as pd
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
from pytorch_lightning import Callback, LightningModule, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG, HitRate, calc_metrics
from rectools.models import SASRecModel


class Stopwatch(Callback):
    """Stops training when the clock says so, and forgets the peak of what came before."""

    def __init__(self, clock: StepClock | None) -> None:
        self.clock = clock

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        forget_peak()
        if self.clock is not None:
            self.clock.restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.clock is not None:
            trainer.should_stop = self.clock.step(len(batch["x"]), outputs["loss"].item())


def make_plays(sessions: Sessions) -> pd.DataFrame:
    """All plays, in the form that RecTools reads; times only have to be in order."""
    return pd.DataFrame(
        {
            Columns.User: sessions.rows,
            Columns.Item: sessions.items,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2024-01-01") + pd.to_timedelta(sessions.positions, unit="min"),
        }
    )


def make_model(task: Task, clock: StepClock | None) -> SASRecModel:
    """The model; before it can recommend it must be fitted, so evaluation has a step of the cheapest loss."""
    losses = {"train_full": "softmax", "train_sampled": "sampled_softmax", "evaluate": "BCE"}
    length = {"max_steps": 1} if clock is None else {"max_epochs": -1}
    return SASRecModel(
        n_blocks=LAYERS,
        n_heads=HEADS,
        n_factors=SIZE,
        dropout_rate=DROPOUT,
        session_max_len=MAX_LENGTH,
        loss=losses[task.task],
        n_negatives=NEGATIVES if task.task == "train_sampled" else 1,
        lr=LEARNING_RATE,
        batch_size=task.batch,
        recommend_batch_size=task.batch,
        recommend_torch_device=task.device,
        get_trainer_func=lambda: Trainer(
            **task.trainer_settings,
            **length,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            callbacks=[Stopwatch(clock)],
        ),
    )


def run(task: Task, sessions: Sessions) -> dict[str, Any]:
    """Train or evaluate."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    plays, left = make_plays(sessions), sessions.left
    clock = None if task.task == "evaluate" else StepClock(task)
    model = make_model(task, clock)
    model.fit(Dataset.construct(plays[left >= HELD_OUT]))
    items = {"num_items": len(model.data_preparator.get_known_item_ids())}
    if clock is not None:
        return items | clock.result()
    users = np.arange(min(task.test_sessions, len(sessions.lengths)))
    tested = sessions.rows < len(users)
    history = Dataset.construct(plays[tested & (left > 0)])
    targets = plays[tested & (left == 0)]
    forget_peak()
    return items | repeat(task, lambda: evaluate(model, users, history, targets))


def evaluate(
    model: SASRecModel, users: np.ndarray, history: Dataset, targets: pd.DataFrame
) -> tuple[int, dict[str, float]]:
    """One evaluation."""
    recommended = model.recommend(users=users, dataset=history, k=TOP_K, filter_viewed=False)
    metrics = {"hit_rate": HitRate(TOP_K), "ndcg": NDCG(TOP_K)}
    values = calc_metrics(metrics, reco=recommended, interactions=targets)
    return len(users), {name: float(value) for name, value in values.items()}


if __name__ == "__main__":
    work(("rectools", "pytorch-lightning", "numpy"), run)
