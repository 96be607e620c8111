"""The next-item losses in a module: they learn, and travel in checkpoints."""

import pytest
import torch
from small_models import module, quiet_trainer

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.heads import GBCE, NEXT_ITEM_LOSSES, BPRMax, FullSoftmax, SampledSoftmax

# Settings other than the defaults, of every loss.
LOSSES = {
    "FullSoftmax": {"chunk_size": 7},
    "SampledSoftmax": {"num_negatives": 8, "sampler": "log_uniform", "correct_sampling": True},
    "BPRMax": {"num_negatives": 8, "regularisation": 0.1, "sampler": "log_uniform"},
    "GBCE": {"num_negatives": 8, "calibration": 0.5, "sampler": "log_uniform"},
}


def test_every_loss_is_tested_here():
    assert LOSSES.keys() == NEXT_ITEM_LOSSES.keys()


@pytest.mark.parametrize("name", LOSSES)
def test_a_checkpoint_rebuilds_the_loss_by_name_and_settings(name, tmp_path):
    loss = NEXT_ITEM_LOSSES[name](**LOSSES[name])
    assert loss.settings == LOSSES[name]
    trainer = quiet_trainer()
    trainer.strategy.connect(module(SASRec(8, max_length=6), next_item_loss=loss))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    loaded = SkipCLModule.load_from_checkpoint(tmp_path / "one.ckpt").next_item_loss
    assert type(loaded) is type(loss)
    assert loaded.settings == loss.settings


def cyclic_sessions(count=16, length=8, num_items=30):
    """Item i is always followed by item i + 1, and the last by the first."""
    start = torch.randint(0, num_items, (count, 1))
    items = (start + torch.arange(length)) % num_items + 1
    return SessionBatch(items, torch.ones(count, length))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    "loss",
    [
        FullSoftmax(),
        SampledSoftmax(8),
        GBCE(8),
        GBCE(8, calibration=0.0),
        BPRMax(8, regularisation=0.1),
    ],
    ids=["full softmax", "sampled softmax", "gbce", "bce", "bpr-max"],
)
def test_a_loss_learns_which_item_is_next(loss, sparse):
    if sparse and isinstance(loss, FullSoftmax):
        pytest.skip("it uses the whole table")
    one = module(
        SASRec(16, max_length=8, num_layers=1, dropout=0.0),
        num_items=30,
        embedding_size=16,
        next_item_loss=loss,
        sparse_item_table=sparse,
        learning_rate=0.02,
    )
    optimizer = one.configure_optimizers()["optimizer"]
    for _ in range(300):
        optimizer.zero_grad()
        one.losses(one.part_losses(cyclic_sessions()))["loss"].backward()
        optimizer.step()
    batch = cyclic_sessions(count=64)
    with torch.no_grad():
        scores = one(batch)[:, :-1] @ one.item_table[1:].T  # [B, L - 1, V]
    accuracy = (scores.argmax(dim=2) + 1 == batch.items[:, 1:]).float().mean()
    assert accuracy > 0.95
