"""RecBole's SASRec, trained and evaluated by its own Trainer, in its own environment.

RecBole trains on prefixes: a session whose training part has n tracks becomes n - 1 samples with one target
each, every one of which goes through the model padded to the maximum length. A step here takes as many
samples as the sessions of a batch have targets, so that a step sees what it sees elsewhere (and about as much
as by RecBole's own default, 2,048 samples); and what is counted are samples over samples a session. There is
no sampled softmax; the BPR loss against one negative is another loss.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import (
    DROPOUT,
    HEADS,
    LAYERS,
    LEARNING_RATE,
    MAX_LENGTH,
    SIZE,
    TOP_K,
    Sessions,
    StepClock,
    Task,
    forget_peak,
    repeat,
    work,
)
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer


class Timed:
    """A loader that tells the clock when its next batch is asked for, and ends when that says so."""

    def __init__(self, loader: Any, clock: StepClock, samples_a_session: float, losses: list[float]) -> None:
        self.loader = loader
        self.clock = clock
        self.samples_a_session = samples_a_session
        self.losses = losses
        self.done = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield batch
            if self.clock.step(len(batch) / self.samples_a_session, self.losses[-1]):
                self.done = True
                return


def make_config(task: Task, sessions: Sessions, folder: Path) -> Config:
    """RecBole's settings, and the file that it reads."""
    (folder / "sessions").mkdir()
    plays = pd.DataFrame(
        {
            "user_id:token": sessions.rows,
            "item_id:token": sessions.items,
            "timestamp:float": sessions.positions,
        }
    )
    plays.to_csv(folder / "sessions" / "sessions.inter", sep="\t", index=False)
    settings = {
        "data_path": str(folder),
        "checkpoint_dir": str(folder),
        "state": "ERROR",
        "use_gpu": False,
        "show_progress": False,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": MAX_LENGTH,
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "hidden_size": SIZE,
        "inner_size": SIZE,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "hidden_act": "relu",
        "hidden_dropout_prob": DROPOUT,
        "attn_dropout_prob": DROPOUT,
        "learning_rate": LEARNING_RATE,
        "train_batch_size": round(task.batch * sessions.targets_a_session),
        "eval_batch_size": task.batch,
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": "full",
        },
        "metrics": ["Hit", "NDCG"],
        "topk": [TOP_K],
        "valid_metric": f"NDCG@{TOP_K}",
    }
    return Config(model="SASRec", dataset="sessions", config_dict=settings)


def run(task: Task, sessions: Sessions) -> dict[str, Any]:
    """Train or evaluate."""
    if task.task == "train_sampled":
        return {"failed": "has no such loss"}
    with tempfile.TemporaryDirectory() as name:
        config = make_config(task, sessions, Path(name))
        dataset = create_dataset(config)
        train_data, _, test_data = data_preparation(config, dataset)
        model = SASRec(config, train_data.dataset)
        trainer = Trainer(config, model)
        items = {"num_items": dataset.item_num - 1}
        forget_peak()
        if task.task == "evaluate":
            some = test_data.dataset.copy(test_data.dataset.inter_feat[: task.test_sessions])
            loader = FullSortEvalDataLoader(config, some, test_data.sampler, shuffle=False)
            return items | repeat(task, lambda: evaluate(trainer, loader, len(some)))
        samples = len(train_data.dataset) / len(sessions.lengths)
        return items | train(task, trainer, model, train_data, samples) | {"samples_a_session": samples}


def train(task: Task, trainer: Trainer, model: SASRec, train_data: Any, samples: float) -> dict[str, Any]:
    """Epochs of RecBole's own loop until the clock says stop."""
    losses: list[float] = []

    def loss_of(interaction: Any) -> torch.Tensor:
        loss = model.calculate_loss(interaction)
        losses.append(loss.item())
        return loss

    clock = StepClock(task)
    timed = Timed(train_data, clock, samples, losses)
    epoch = 0
    while not timed.done:
        trainer._train_epoch(timed, epoch, loss_func=loss_of)
        epoch += 1
    return clock.result()


def evaluate(trainer: Trainer, loader: FullSortEvalDataLoader, sessions: int) -> tuple[int, dict[str, float]]:
    """One evaluation over the whole catalogue."""
    values = trainer.evaluate(loader, load_best_model=False, show_progress=False)
    return sessions, {"hit_rate": values[f"hit@{TOP_K}"], "ndcg": values[f"ndcg@{TOP_K}"]}


if __name__ == "__main__":
    work(("recbole", "numpy"), run)
