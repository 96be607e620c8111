import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from watched_runs import OwnModule, read_csv_metrics, small_data, small_module, watched_trainer

from skipcl_lightning.callbacks import TrainingSignals
from skipcl_lightning.heads import CombinedHead, OpposingSequences, SkipInfoNCE


class Gradients(Callback):
    """Notes the gradients' norm by a slow loop."""

    def __init__(self):
        self.norms = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        values = [
            value
            for parameter in pl_module.parameters()
            if parameter.grad is not None
            for value in parameter.grad.flatten().tolist()
        ]
        self.norms.append(math.sqrt(sum(value * value for value in values)))


def fit(module, data, tmp_path, *callbacks, **settings):
    trainer = watched_trainer(
        [TrainingSignals(), *callbacks], logger=CSVLogger(tmp_path), max_epochs=1, **settings
    )
    trainer.fit(module, data)
    return [row for row in read_csv_metrics(tmp_path) if "train/loss" in row]


def test_the_gradient_norm_is_that_of_all_parameters_before_clipping(tmp_path):
    data, slow = small_data(), Gradients()
    rows = fit(small_module(data), data, tmp_path, slow, gradient_clip_val=1e-3)
    assert [row["train/gradient_norm"] for row in rows] == pytest.approx(slow.norms, rel=1e-4)
    assert min(slow.norms) > 1e-3
    for row in rows:
        parts = [value for key, value in row.items() if key.startswith("train/gradient_norm/")]
        assert math.hypot(*parts) == pytest.approx(row["train/gradient_norm"], rel=1e-5)


def test_steps_that_are_not_logged_have_none_and_those_that_are_do(tmp_path):
    data = small_data(batch_size=8)  # 5 steps
    rows = fit(small_module(data), data, tmp_path, log_every_n_steps=2)
    assert [row["step"] for row in rows] == [1, 3]
    assert all("train/gradient_norm" in row and "train/skip_weight" in row for row in rows)


def test_heads_of_a_sum_are_told_apart_with_what_is_learned(tmp_path):
    data = small_data()
    parts = [SkipInfoNCE(weight=0.4, temperature=0.2), OpposingSequences(embedding_size=8, weight=0.1)]
    head = CombinedHead(parts, weighting="uncertainty")
    with torch.no_grad():
        head.log_variance.copy_(torch.tensor([math.log(2), 0.0]))
    first = fit(small_module(data, head), data, tmp_path)[0]
    assert first["train/skip_weight/SkipInfoNCE"] == pytest.approx(0.2)
    assert first["train/skip_weight/OpposingSequences"] == pytest.approx(0.1)
    assert first["train/temperature/SkipInfoNCE"] == pytest.approx(0.2)
    assert first["train/temperature/OpposingSequences"] == pytest.approx(head.heads[1].temperature)


def test_a_module_without_a_head_has_gradient_norms_alone(tmp_path):
    data = small_data()
    keys = {key for row in fit(OwnModule(data.num_items), data, tmp_path) for key in row}
    assert {"train/gradient_norm", "train/gradient_norm/table"} <= keys
    assert not any("skip_weight" in key or "temperature" in key for key in keys)


class SparseModule(OwnModule):
    def __init__(self, num_items):
        super().__init__(num_items)
        self.table.sparse = True

    def training_step(self, batch, batch_idx):
        loss = self.session_query(batch).square().sum()
        self.log("train/loss", loss)
        return loss


def test_sparse_gradients_count_each_row_once(tmp_path):
    data, norms = small_data(), []

    class Dense(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            norms.append(float(pl_module.table.weight.grad.to_dense().norm()))

    rows = fit(SparseModule(data.num_items), data, tmp_path, Dense())
    assert [row["train/gradient_norm"] for row in rows] == pytest.approx(norms, rel=1e-5)
