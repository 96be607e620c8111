"""`skipcl fit --compile`."""

import copy

import pytest
import torch
from small_models import module

from skipcl_lightning.backbones import SASRec
from skipcl_lightning.cli.predictions import SessionTrainer
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import SampledSoftmax, SkipInfoNCE

QUIET = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "limit_val_batches": 0,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.fixture(scope="module")
def data():
    return SessionDataModule(simulate_sessions(60, num_items=30, num_moods=3), batch_size=32, max_length=12)


def make(data, **settings):
    backbone = SASRec(8, max_length=12, num_layers=1, dropout=0.0)
    return module(backbone, SkipInfoNCE(), num_items=data.num_items, **settings)


def train(one, data, **settings):
    """The loss of the run's last step."""
    torch.manual_seed(0)
    trainer = SessionTrainer(**QUIET)
    trainer.fit(one, data, **settings)
    return trainer.callback_metrics["train/loss"]


def test_each_step_of_the_run_is_compiled_with_the_mode(monkeypatch, data):
    calls = []

    def compile_(function, **settings):
        calls.append(settings)

        def compiled(batch):
            calls.append(len(batch))
            return function(batch)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    train(make(data), data, compile="reduce-overhead")
    assert calls == [{"mode": "reduce-overhead", "dynamic": True}, 32, 28]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own compiler scripts
def test_the_losses_are_those_of_a_run_that_is_not_compiled(data):
    """With torch's default backend, which needs a C++ compiler on a CPU."""
    plain = make(data)
    expected, found = train(copy.deepcopy(plain), data), train(plain, data, compile="default")
    torch.testing.assert_close(found, expected)


def test_what_cannot_be_compiled_is_an_error(data):
    sparse = make(data, next_item_loss=SampledSoftmax(4), sparse_item_table=True)
    with pytest.raises(ValueError, match="`compile` must be null beside `sparse_item_table`, got 'default'"):
        train(sparse, data, compile="default")
    with pytest.raises(TypeError, match="`compile` must be null but for a SkipCLModule, got Linear"):
        train(torch.nn.Linear(2, 2), data, compile="default")
