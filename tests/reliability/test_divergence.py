"""A run whose weights are no longer numbers stops, and says which loss was it and since when."""

import pytest
import torch
from lightning.pytorch import Callback
from small_models import quiet_trainer
from small_run import make_data, make_module

from skipcl_lightning.module import skipcl_module


class Poison(Callback):
    """Makes the skip loss NaN in one step, or a weight after the last."""

    def __init__(self, loss_in=None, weight_after=None):
        self.loss_in, self.weight_after = loss_in, weight_after

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        module.skip_head.weight = 1.0
        if trainer.global_step == self.loss_in:
            module.skip_head.register_forward_hook(lambda *_: torch.tensor(torch.nan) * _[2])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.weight_after:
            module.model.item_embedding.weight.data[3] = torch.inf


@pytest.fixture(scope="module")
def data():
    return make_data()


def fit(data, *callbacks, **settings):
    torch.manual_seed(0)
    trainer = quiet_trainer(**{"max_epochs": 2, "callbacks": list(callbacks), **settings})
    trainer.fit(make_module(data), data)
    return trainer


@pytest.mark.parametrize("validates", [True, False])
def test_a_diverged_run_stops_before_it_validates_or_saves(data, validates):
    settings = {} if validates else {"limit_val_batches": 0}
    with pytest.raises(ValueError, match=r"since step 3 in loss, skip_loss and in \d+ of \d+ weights"):
        fit(data, Poison(loss_in=3), **settings)
    with pytest.raises(ValueError, match=r"in no loss yet and in 1 of \d+ weights, such as 'model.item_emb"):
        fit(data, Poison(weight_after=2), **settings)


def test_a_long_epoch_is_checked_too(data, monkeypatch):
    monkeypatch.setattr(skipcl_module, "CHECKED_BATCHES", 1)
    with pytest.raises(ValueError, match="since step 0 in loss, skip_loss"):
        fit(data, Poison(loss_in=0), max_epochs=1, max_steps=2)


def test_training_in_pure_float16_on_a_cpu_is_refused(data):
    with pytest.raises(ValueError, match="`precision` must not be '16-true' where a CPU trains"):
        fit(data, precision="16-true")
    trainer = quiet_trainer(precision="16-true")
    assert 0 <= trainer.validate(make_module(data), data, verbose=False)[0]["val/hit_rate@10"] <= 1
