"""The model alone, without Lightning, and what a module makes of it."""

import subprocess
import sys

import pytest
import torch
from small_models import batch, module, quiet_trainer
from torch import nn

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import BACKBONES, BERT4Rec, ESASRec, GRU4Rec, SASRec
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import SkipInfoNCE
from skipcl_lightning.model import SessionModel


def test_the_model_is_used_without_lightning_or_polars():
    program = """
import sys, torch
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.model import SessionModel
model = SessionModel(SASRec(8), num_items=9).eval()
sessions = SessionBatch(torch.tensor([[5, 3]]), torch.tensor([[1.0, -1.0]]))
print(tuple(model.score(model.session_query(sessions)).shape))
assert not {"lightning", "polars", "torchmetrics"} & set(sys.modules)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "(1, 10)"


@pytest.mark.parametrize(
    ("backbone", "scale"), [(SASRec(64), 0.4), (ESASRec(64), 0.4), (BERT4Rec(64), 1.0), (GRU4Rec(64), 1.0)]
)
def test_items_are_drawn_at_the_scale_of_the_backbone(backbone, scale):
    torch.manual_seed(0)
    weight = SessionModel(backbone, num_items=1000).item_embedding.weight[1:]
    assert weight.std().item() == pytest.approx(scale / 8, rel=0.03)


@pytest.mark.parametrize("backbone", [SASRec, BERT4Rec, GRU4Rec])
def test_scores_are_inner_products_with_the_item_table(backbone):
    torch.manual_seed(0)
    model = SessionModel(backbone(8), num_items=9).eval()
    query = model.session_query(batch()).detach()
    expected = torch.tensor([[float(q @ row) for row in model.item_table.detach()] for q in query])
    torch.testing.assert_close(model.score(query).detach(), expected)


def test_a_tensor_in_place_of_a_batch_is_refused():
    with pytest.raises(TypeError, match=r"`batch` must be a SessionBatch, got Tensor\. Pass `SessionBatch"):
        module(SASRec(8), None)(batch().items)


def test_a_module_s_model_gives_the_module_s_queries():
    own = module(SASRec(8), SkipInfoNCE()).eval()
    assert torch.equal(own.session_query(batch()), own.model.session_query(batch()))
    assert own.item_table is own.model.item_embedding.weight


def test_the_size_is_given_once():
    for name, make in BACKBONES.items():
        if name != "HFBackbone":
            assert make(8).embedding_size == 8
    built = SkipCLModule(SASRec(8, max_length=20), SkipInfoNCE(), num_items=9)
    assert built.item_table.shape == (10, 8)
    assert built.hparams["embedding_size"] == 8

    class Mean(nn.Module):
        def forward(self, x, valid_mask):
            return x.cumsum(dim=1)

    with pytest.raises(ValueError, match="`embedding_size` must be given for Mean, which has no attribute"):
        SkipCLModule(Mean(), num_items=9)
    assert SkipCLModule(Mean(), num_items=9, embedding_size=3).item_table.shape == (10, 3)


class Shifted(SkipCLModule):
    """Adds one to the backbone's input, and a loss on the states."""

    def embed(self, batch, keys):
        return super().embed(batch, keys) + 1.0

    def losses(self, states):
        losses = super().losses(states)
        size = states.query.square().mean()
        return {**losses, "size": size, "loss": losses["loss"] + size}


@pytest.mark.parametrize("backbone", [SASRec, BERT4Rec])
def test_an_override_of_embed_counts_in_training_and_evaluation(backbone):
    seen = []

    class Recorder(backbone):
        def forward(self, x, valid_mask, **settings):
            seen.append(x.detach())
            return super().forward(x, valid_mask, **settings)

    plain, shifted = (
        kind(Recorder(8, max_length=9, dropout=0.0), num_items=9, feedback_input=False).eval()
        for kind in (SkipCLModule, Shifted)
    )
    shifted.load_state_dict(plain.state_dict())
    for use in (lambda one: one.session_query(batch()), lambda one: one(batch())):
        seen.clear()
        use(plain)
        use(shifted)
        torch.testing.assert_close(seen[1], seen[0] + 1)
    if backbone is SASRec:
        seen.clear()
        plain.part_losses(batch())
        shifted.part_losses(batch())
        torch.testing.assert_close(seen[1], seen[0] + 1)


def test_an_auxiliary_loss_needs_no_second_pass_through_the_backbone():
    calls = []

    class Counting(SASRec):
        def forward(self, *arguments, **settings):
            calls.append(1)
            return super().forward(*arguments, **settings)

    data = SessionDataModule(simulate_sessions(40, num_items=30, num_moods=3), batch_size=40, max_length=20)
    own = Shifted(Counting(8, max_length=20), SkipInfoNCE(), num_items=data.num_items)
    calls.clear()
    trainer = quiet_trainer(limit_val_batches=0)
    trainer.fit(own, data)
    assert len(calls) == trainer.global_step == 1
    logged = trainer.callback_metrics
    expected = logged["train/next_item_loss"] + 0.1 * logged["train/skip_loss"] + logged["train/size"]
    torch.testing.assert_close(logged["train/loss"], expected)
