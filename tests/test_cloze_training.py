"""Bidirectional backbones in the module: what is hidden, what is asked for, and what must not leak."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from lightning.pytorch import seed_everything
from small_models import MASK, NUM_ITEMS, batch, module, quiet_trainer
from torch import nn

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import BERT4Rec, GRU4Rec, SASRec
from skipcl_lightning.batch import SessionBatch, training_targets
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.functional import cloze_positives, full_softmax_loss, skip_info_nce
from skipcl_lightning.heads import SampledSoftmax, SkipInfoNCE
from skipcl_lightning.module import skipcl_module


class Recorder(BERT4Rec):
    """Keeps what it was shown."""

    def forward(self, x, valid_mask):
        self.shown = x.detach().clone()
        return super().forward(x, valid_mask)


@hypothesis.given(seed=st.integers(0, 10_000), probability=st.floats(0.05, 1))
def test_nothing_of_a_hidden_track_reaches_the_backbone(seed, probability):
    model = module(Recorder(8, max_length=6), feedback_input=True)
    torch.nn.init.normal_(model.model.feedback_embedding.weight)
    torch.manual_seed(seed)
    model.mask_probability = probability
    hidden = model.prepare_training(batch())
    model.model.encode(hidden, model.model.item_embedding(hidden.items))
    shown = model.model.backbone.shown
    assert hidden.cloze_mask.any(dim=1).all()
    for b, t in hidden.cloze_mask.nonzero().tolist():
        # The mask token's row, with no feedback on top.
        assert torch.equal(shown[b, t], model.model.mask_embedding)
    changed = torch.where(hidden.cloze_mask, hidden.items % NUM_ITEMS + 1, hidden.items)
    other = hidden.replace(items=changed, feedback=torch.where(hidden.cloze_mask, 0.9, hidden.feedback))
    model.model.encode(other, model.model.item_embedding(other.items))
    assert torch.equal(model.model.backbone.shown, shown)


def test_the_loss_asks_for_hidden_tracks_in_their_place_and_contrasts_them():
    model = module(head=SkipInfoNCE(weight=0.3)).eval()
    mask = torch.tensor([[True, False, False, True, False], [False, False, True, False, False]])
    hidden = batch().replace(cloze_mask=mask)
    model.prepare_training = lambda _: hidden
    visible = hidden.replace(items=torch.tensor([[MASK, 3, 4, MASK, 5], [2, 1, MASK, 0, 0]]), cloze_mask=None)
    query, table = model(visible), model.model.item_embedding.weight[: NUM_ITEMS + 1]
    next_item = full_softmax_loss(query[mask], table, torch.tensor([5, 7, 6])).mean()
    # Item 5 stands visible at the end: its hidden place is no anchor.
    positives = cloze_positives(hidden.items, hidden.listened_mask, mask)
    assert positives.tolist() == [[-1, -1, -1, 3, -1], [-1, -1, 2, -1, -1]]
    keys = table[hidden.items]
    skip = skip_info_nce(query, keys, hidden)
    assert skip > 0
    losses = model.losses(model.part_losses(batch()))
    torch.testing.assert_close(losses["next_item_loss"], next_item)
    torch.testing.assert_close(losses["skip_loss"], skip)
    torch.testing.assert_close(losses["loss"], next_item + 0.3 * skip)


def test_the_settings_of_the_cloze_task_are_those_that_are_asked_for():
    items = torch.ones(4000, 5, dtype=torch.int64)
    many = SessionBatch(items, torch.ones(4000, 5))
    torch.manual_seed(0)
    for settings, expected in (
        ({}, (0.5, 0.1)),
        ({"mask_probability": 0.6, "last_mask_probability": 0.0}, (0.6, 0.0)),
        ({"last_mask_probability": 0.7}, (0.5, 0.7)),
    ):
        hidden = module(**settings).prepare_training(many).cloze_mask
        share = float(hidden[:, 0].float().mean())
        assert share == pytest.approx(expected[0] * (1 - expected[1]), abs=0.03)


@pytest.mark.parametrize("rule", ["next_listened", "next"])
def test_what_is_hidden_follows_the_target_rule(rule):
    model = module(target_rule=rule, mask_probability=1.0, last_mask_probability=0.0)
    hidden = model.prepare_training(batch())
    expected = batch().listened_mask if rule == "next_listened" else batch().valid_mask
    assert torch.equal(hidden.cloze_mask, expected)
    positions = torch.arange(5).expand(2, 5)
    assert torch.equal(training_targets(hidden, rule), torch.where(expected, positions, -1))


def test_evaluation_asks_by_a_mask_token_behind_the_last_track():
    model = module().eval()
    query = model.session_query(batch())
    longer = SessionBatch(torch.tensor([[2, 1, 6, MASK]]), torch.tensor([[-1.0, 1.0, 0.2, 0.0]]))
    torch.testing.assert_close(query[1], model(longer)[0, 3])


@pytest.mark.parametrize("backbone", [BERT4Rec, SASRec, GRU4Rec])
def test_rows_of_no_and_of_one_track_are_defined(backbone):
    torch.manual_seed(0)
    model = module(backbone(8), SkipInfoNCE())
    for items in ([[0, 0]], [[3, 0]], [[0, 0], [3, 4]]):
        rows = SessionBatch(torch.tensor(items), torch.ones(len(items), 2) * (torch.tensor(items) > 0))
        assert model.session_query(rows).isfinite().all()
        loss = model.losses(model.part_losses(rows))["loss"]
        loss.backward()
        assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_mask_token_is_no_candidate_anywhere():
    model = module(next_item_loss=SampledSoftmax(4)).eval()
    model.model.mask_embedding.data *= 1000
    frame_query, table = model.session_query(batch()), model.item_table
    assert len(table) == NUM_ITEMS + 1
    assert (frame_query @ table.T).shape == (2, NUM_ITEMS + 1)
    assert model.losses(model.part_losses(batch()))["loss"] < 100


def test_it_learns_to_say_what_comes_next():
    data = SessionDataModule(simulate_sessions(300, num_items=60, num_moods=6), batch_size=64, max_length=20)
    seed_everything(0, verbose=False)
    model = SkipCLModule(
        BERT4Rec(16, max_length=20, dropout=0.1),
        SkipInfoNCE(weight=0.3),
        num_items=data.num_items,
        embedding_size=16,
        learning_rate=0.01,
    )
    trainer = quiet_trainer(max_epochs=20, limit_val_batches=0)
    before = trainer.test(model, data, verbose=False)[0]
    trainer.fit(model, data)
    after = trainer.test(model, data, verbose=False)[0]
    assert before["test/hit_rate@10"] < 0.3
    assert after["test/hit_rate@10"] > before["test/hit_rate@10"] + 0.2


def test_a_checkpoint_of_a_bidirectional_model_is_whole(tmp_path, monkeypatch):
    data = SessionDataModule(simulate_sessions(60, num_items=30, num_moods=3), max_length=20)
    model = SkipCLModule(
        BERT4Rec(8, max_length=20), None, num_items=data.num_items, embedding_size=8, mask_probability=0.4
    )
    trainer = quiet_trainer(limit_val_batches=0)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    session = data.vocabulary.ids[:4]
    loaded = Recommender.from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.recommend([session]).equals(Recommender(model).recommend([session]))
    monkeypatch.setattr(skipcl_module, "LAST_MASK_PROBABILITY", 0.3)  # as a later release may have it
    module = SkipCLModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert (module.mask_probability, module.last_mask_probability) == (0.4, 0.1)


@pytest.mark.parametrize("setting", ["mask_probability", "last_mask_probability"])
def test_a_causal_backbone_has_no_use_for_cloze_settings(setting):
    with pytest.raises(ValueError, match=f"`{setting}` must be None for a causal backbone, got 0.5"):
        module(SASRec(8), **{setting: 0.5})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_probability": 0.0}, r"`mask_probability` must be in \(0, 1\]"),
        ({"last_mask_probability": 1.5}, r"`last_mask_probability` must be in \[0, 1\]"),
    ],
)
def test_bad_cloze_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        module(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"query": "item"}, "`query` must be 'session'"), ({"anchors": "all"}, "`anchors` must be 'listened'")],
)
def test_head_settings_that_mean_nothing_for_hidden_tracks_are_an_error(settings, message):
    with pytest.raises(ValueError, match=message):
        module(head=SkipInfoNCE(**settings))
    hidden = batch().replace(cloze_mask=batch().listened_mask)
    with pytest.raises(ValueError, match=message):
        SkipInfoNCE(**settings)(torch.ones(2, 5, 8), torch.ones(2, 5, 8), hidden)


def test_a_causal_backbone_that_something_is_hidden_from_is_an_error():
    model = module(SASRec(8))
    hidden = batch().replace(cloze_mask=batch().valid_mask)
    with pytest.raises(ValueError, match="`batch` must hide nothing from a causal backbone"):
        model(hidden)


class OwnHead(nn.Module):
    def forward(self, query, keys, batch):
        return query.sum()


def test_a_head_that_does_not_know_hidden_tracks_is_refused_beside_a_bidirectional_backbone():
    with pytest.raises(ValueError, match=r"must have a method `check_cloze` .* got OwnHead without"):
        module(head=OwnHead())
    causal = module(SASRec(8), head=OwnHead())
    assert causal.losses(causal.part_losses(batch()))["loss"].isfinite()
