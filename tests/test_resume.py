"""A run that was broken off and resumed is the run that was not."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule, prepare_store, simulate_sessions
from skipcl_lightning.heads import SkipInfoNCE

EPOCHS = 3
BATCHES = 7


class Watch(Callback):
    """What was trained on; writes a checkpoint after some steps."""

    def __init__(self, save_at, file):
        self.save_at = save_at
        self.file = file
        self.batches = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.save_at:
            trainer.save_checkpoint(self.file)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches.append(
            (trainer.current_epoch, batch_idx, batch.session_index.tolist(), batch.items.sum())
        )


def train(source, *, stop=None, checkpoint=None, resume=None, **settings):
    seed_everything(5, verbose=False)
    data = SessionDataModule(source, **{"batch_size": 16, "max_length": 8, **settings})
    module = SkipCLModule(
        SASRec(8, max_length=8, num_layers=1, num_heads=1, dropout=0.0),
        SkipInfoNCE(weight=0.1),
        num_items=data.num_items,
        embedding_size=8,
    )
    watch = Watch(stop, checkpoint)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        max_steps=stop or -1,
        callbacks=[watch],
        enable_checkpointing=False,
        logger=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, ckpt_path=resume, weights_only=True if resume else None)
    return module, watch.batches


@pytest.fixture(scope="module")
def log():
    return simulate_sessions(110, num_items=60, num_moods=4)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"bucket_batches": 3}, id="buckets"),
        # Each of its five trainings starts four processes.
        pytest.param({"num_workers": 2}, id="workers", marks=pytest.mark.slow),
        pytest.param({"mined_negatives": 2, "mined_positives": 1}, id="mined"),
    ],
)
def test_a_run_resumed_in_mid_epoch_is_the_run_that_was_not_broken_off(tmp_path, log, settings):
    whole, batches = train(log, **settings)
    assert len(batches) == EPOCHS * BATCHES
    file = tmp_path / "broken.ckpt"
    for stop in (3, BATCHES + 2):
        train(log, stop=stop, checkpoint=file, **settings)
        resumed, rest = train(log, resume=file, **settings)
        assert rest == batches[stop:]
        for name, weight in whole.state_dict().items():
            assert torch.equal(weight, resumed.state_dict()[name]), name


def test_a_run_may_go_on_from_a_store_where_it_began_with_the_log(tmp_path, log):
    _, batches = train(log)
    train(log, stop=9, checkpoint=tmp_path / "broken.ckpt")
    prepare_store(log, tmp_path / "store")
    _, rest = train(tmp_path / "store", resume=tmp_path / "broken.ckpt")
    assert rest == batches[9:]


@pytest.mark.parametrize(
    ("setting", "name"),
    [({"batch_size": 8}, "batch_size"), ({"bucket_batches": 2}, "bucket_batches"), ({"seed": 9}, "seed")],
)
def test_an_epoch_cannot_be_resumed_in_another_order(tmp_path, log, setting, name):
    train(log, stop=3, checkpoint=tmp_path / "broken.ckpt")
    with pytest.raises(ValueError, match=f"`{name}` must be .* as where the checkpoint was written"):
        train(log, resume=tmp_path / "broken.ckpt", **setting)


def test_between_epochs_the_order_may_change(tmp_path, log):
    train(log, stop=BATCHES, checkpoint=tmp_path / "broken.ckpt")
    _, rest = train(log, resume=tmp_path / "broken.ckpt", bucket_batches=2)
    assert [epoch for epoch, *_ in rest] == [1] * BATCHES + [2] * BATCHES


def test_each_epoch_has_another_order_and_another_seed_too(log):
    _, batches = train(log)
    orders = [[rows for epoch, _, rows, _ in batches if epoch == number] for number in range(EPOCHS)]
    assert orders[0] != orders[1] != orders[2]
    assert sorted(sum(orders[0], [])) == sorted(sum(orders[1], []))  # noqa: RUF017 - a handful of lists
    _, other = train(log, seed=6)
    assert [rows for _, _, rows, _ in other] != [rows for _, _, rows, _ in batches]
