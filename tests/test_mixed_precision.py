import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import CSVLogger
from small_models import quiet_trainer
from torch.utils._python_dispatch import TorchDispatchMode

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import SampledSoftmax, SkipInfoNCE


@pytest.fixture(scope="module")
def data():
    return SessionDataModule(
        simulate_sessions(120, num_items=30, num_moods=3), batch_size=16, max_length=20, seed=0
    )


def make(data, **settings):
    seed_everything(0, verbose=False)
    return SkipCLModule(
        SASRec(8, max_length=20, dropout=0.0),
        SkipInfoNCE(),
        num_items=data.num_items,
        embedding_size=8,
        next_item_loss=SampledSoftmax(8),
        **settings,
    )


class Norms(Callback):
    """The gradients as the optimizer gets them."""

    def __init__(self):
        self.norms, self.largest = [], []

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        gradients = [one.grad for one in pl_module.parameters() if one.grad is not None]
        if gradients:
            gradients = [one.coalesce().values() if one.is_sparse else one for one in gradients]
            self.norms.append(torch.nn.utils.get_total_norm(gradients).item())
            self.largest.append(max(one.abs().max().item() for one in gradients))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_are_clipped_by_norm_in_any_precision(data, precision, sparse):
    norms = Norms()
    trainer = quiet_trainer(
        max_steps=4, precision=precision, gradient_clip_val=0.01, limit_val_batches=0, callbacks=[norms]
    )
    module = make(data, sparse_item_table=sparse)
    trainer.fit(module, data)
    assert module.optimizers(use_pl_optimizer=False).param_groups[0].get("fused")
    assert norms.norms == pytest.approx([0.01] * len(norms.norms), rel=1e-3)
    assert len(norms.norms) >= 3


def test_gradients_are_clipped_by_value_beside_bfloat16(data):
    norms = Norms()
    quiet_trainer(
        max_steps=4,
        precision="bf16-mixed",
        gradient_clip_val=0.001,
        gradient_clip_algorithm="value",
        limit_val_batches=0,
        callbacks=[norms],
    ).fit(make(data), data)
    assert norms.largest == pytest.approx([0.001] * len(norms.largest))
    assert max(norms.norms) > 0.002


class Spy(TorchDispatchMode):
    """Counts what would make a GPU's host wait: values that become Python numbers."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Watch(Callback):
    """Spies on the steps between the first one and the logging point."""

    def __init__(self):
        self.spy = Spy()
        self.steps = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            self.spy.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps += 1
        if batch_idx == 4:
            self.spy.__exit__(None, None, None)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_no_value_is_asked_for_between_logging_points(data, precision, tmp_path):
    watch = Watch()
    quiet_trainer(
        max_steps=6,
        precision=precision,
        gradient_clip_val=1.0,
        log_every_n_steps=6,
        limit_val_batches=0,
        logger=CSVLogger(tmp_path),
        callbacks=[watch],
    ).fit(make(data), data)
    assert watch.steps == 6
    assert watch.spy.count == 0
    assert list(tmp_path.rglob("metrics.csv"))


def test_a_progress_bar_shows_the_loss(data, capsys):
    trainer = quiet_trainer(max_steps=2, limit_val_batches=0, enable_progress_bar=True)
    trainer.fit(make(data), data)
    assert trainer.progress_bar_metrics["train/loss"] > 0
    assert "train/loss" in capsys.readouterr().out
