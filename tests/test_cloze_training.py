"""Bidirectional backbones in the module: what is hidden, what is asked for, and what must not leak."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import BERT4Rec, GRU4Rec, SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import SessionDataModule, SessionDataset, simulate_sessions
from skipcl_lightning.functional import full_softmax_loss, skip_info_nce
from skipcl_lightning.heads import SampledSoftmax, SkipInfoNCE

NUM_ITEMS = 9
MASK = NUM_ITEMS + 1


def module(backbone=None, head=None, **settings):
    torch.manual_seed(0)
    backbone = BERT4Rec(8, max_length=6, dropout=0.0) if backbone is None else backbone
    return SkipCLModule(backbone, head, **{"num_items": NUM_ITEMS, "embedding_size": 8, **settings})


def batch():
    items = torch.tensor([[5, 3, 4, 7, 5], [2, 1, 6, 0, 0]])
    feedback = torch.tensor([[1.0, -0.5, 0.5, 1.0, 0.2], [-1.0, 1.0, 0.2, 0.0, 0.0]])
    return SessionBatch(
        items, feedback, target=torch.tensor([9, 8]), target_feedback=torch.tensor([1.0, -1.0])
    )


class Recorder(BERT4Rec):
    """Keeps what it was shown."""

    def forward(self, x, valid_mask):
        self.shown = x.detach().clone()
        return super().forward(x, valid_mask)


def quiet_trainer(**settings):
    return Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **settings,
        }
    )


@hypothesis.given(seed=st.integers(0, 10_000), probability=st.floats(0.05, 1))
def test_nothing_of_a_hidden_track_reaches_the_backbone(seed, probability):
    model = module(Recorder(8, max_length=6), feedback_input=True)
    torch.manual_seed(seed)
    model.mask_probability = probability
    hidden = model.prepare_training(batch())
    model.encode(hidden, model.item_embedding(hidden.items))
    shown = model.backbone.shown
    assert hidden.cloze_mask.any(dim=1).all()
    for b, t in hidden.cloze_mask.nonzero().tolist():
        # The mask token's row, with no feedback on top.
        assert torch.equal(shown[b, t], model.item_embedding.weight[MASK])
    changed = torch.where(hidden.cloze_mask, hidden.items % NUM_ITEMS + 1, hidden.items)
    other = hidden.replace(items=changed, feedback=torch.where(hidden.cloze_mask, 0.9, hidden.feedback))
    model.encode(other, model.item_embedding(other.items))
    assert torch.equal(model.backbone.shown, shown)


def test_the_loss_asks_for_hidden_tracks_in_their_place_and_contrasts_them():
    model = module(head=SkipInfoNCE(weight=0.3)).eval()
    mask = torch.tensor([[True, False, False, True, False], [False, False, True, False, False]])
    hidden = batch().replace(cloze_mask=mask)
    model.prepare_training = lambda _: hidden
    visible = hidden.replace(items=torch.tensor([[MASK, 3, 4, MASK, 5], [2, 1, MASK, 0, 0]]), cloze_mask=None)
    query, table = model(visible), model.item_embedding.weight[: NUM_ITEMS + 1]
    next_item = full_softmax_loss(query[mask], table, torch.tensor([5, 7, 6])).mean()
    # Item 5 stands visible at the end: its hidden place is no anchor.
    positives = torch.tensor([[-1, -1, -1, 3, -1], [-1, -1, 2, -1, -1]])
    keys = table[hidden.items]
    skip = skip_info_nce(query, keys, hidden.items, hidden.feedback, positive_position=positives)
    assert skip > 0
    losses = model.losses(batch())
    torch.testing.assert_close(losses["next_item_loss"], next_item)
    torch.testing.assert_close(losses["skip_loss"], skip)
    torch.testing.assert_close(losses["loss"], next_item + 0.3 * skip)


def test_the_settings_of_the_cloze_task_are_those_that_are_asked_for():
    items = torch.ones(4000, 5, dtype=torch.int64)
    many = SessionBatch(items, torch.ones(4000, 5))
    torch.manual_seed(0)
    for settings, expected in (
        ({}, (0.2, 0.1)),
        ({"mask_probability": 0.6, "last_mask_probability": 0.0}, (0.6, 0.0)),
        ({"last_mask_probability": 0.7}, (0.2, 0.7)),
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
    assert torch.equal(model.targets(hidden), torch.where(expected, batch().items, 0))


def test_evaluation_asks_by_a_mask_token_behind_the_last_track():
    model = module().eval()
    query = model.session_query(batch())
    longer = SessionBatch(torch.tensor([[2, 1, 6, MASK]]), torch.tensor([[-1.0, 1.0, 0.2, 0.0]]))
    torch.testing.assert_close(query[1], model(longer)[0, 3])


def test_of_a_session_longer_than_the_backbone_knows_the_latest_tracks_count():
    items = torch.arange(1, 9)[None]
    long = SessionBatch(items, torch.ones(1, 8))
    for backbone in (BERT4Rec(8, max_length=4), SASRec(8, max_length=4)):
        model = module(backbone).eval()
        kept = 4 if model.causal else 3
        short = SessionBatch(items[:, -kept:], torch.ones(1, kept))
        torch.testing.assert_close(model.session_query(long), model.session_query(short))
        assert model(long).shape == (1, 4, 8)
        assert model.losses(long)["loss"].isfinite()
    model = module(GRU4Rec(8)).eval()
    assert model(long).shape == (1, 8, 8)


@pytest.mark.parametrize("backbone", [BERT4Rec, SASRec, GRU4Rec])
def test_rows_of_no_and_of_one_track_are_defined(backbone):
    torch.manual_seed(0)
    model = module(backbone(8), SkipInfoNCE())
    for items in ([[0, 0]], [[3, 0]], [[0, 0], [3, 4]]):
        rows = SessionBatch(torch.tensor(items), torch.ones(len(items), 2) * (torch.tensor(items) > 0))
        assert model.session_query(rows).isfinite().all()
        loss = model.losses(rows)["loss"]
        loss.backward()
        assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_mask_token_is_no_candidate_anywhere():
    model = module(next_item_loss=SampledSoftmax(4)).eval()
    model.item_embedding.weight.data[MASK] *= 1000
    frame_query, table = model.session_query(batch()), model.item_table
    assert len(table) == NUM_ITEMS + 1
    assert (frame_query @ table.T).shape == (2, NUM_ITEMS + 1)
    assert model.losses(batch())["loss"] < 100


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


def test_a_checkpoint_of_a_bidirectional_model_is_whole(tmp_path):
    data = SessionDataModule(simulate_sessions(60, num_items=30, num_moods=3), max_length=20)
    model = SkipCLModule(
        BERT4Rec(8, max_length=20), None, num_items=data.num_items, embedding_size=8, mask_probability=0.4
    )
    trainer = quiet_trainer(limit_val_batches=0)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    session = data.vocabulary.ids[:4]
    loaded = Recommender.from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.module.mask_probability == 0.4
    assert loaded.recommend([session]).equals(Recommender(model).recommend([session]))


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


def test_seen_tracks_beyond_the_longest_session_are_left_out_too():
    log = simulate_sessions(40, num_items=60, num_moods=6)
    data = SessionDataModule(log, max_length=5)
    whole = {
        split: SessionDataset(data._data.views[split], max_length=100).__getitems__(range(40))
        for split in ("test", "predict")
    }
    short = next(iter(data.test_dataloader()))
    assert short.items.shape[1] == 5
    assert torch.equal(short.seen_items, whole["test"].items)
    assert next(iter(data.train_dataloader())).seen is None
    # Nothing is cut from these, so that their items are all that was seen.
    assert SessionDataset(data._data.views["test"], max_length=100, with_seen=True)[0].seen is None
    # Trained or not, a model that leaves seen tracks out recommends none of them.
    model = SkipCLModule(
        SASRec(8, max_length=5), None, num_items=data.num_items, embedding_size=8, exclude_seen=True
    )
    frame = quiet_trainer().predict(model, data)[0]
    for number, session in enumerate(whole["predict"].items):
        seen = set(data.vocabulary.decode(session[session > 0]))
        recommended = frame.filter(frame["session_id"] == number)["item_id"]
        assert len(recommended)
        assert not seen & set(recommended)
    # At evaluation too: the target is ranked among the rest.
    model.eval()
    measured = quiet_trainer().test(model, data, verbose=False)[0]
    listened, hits = 0, 0
    for b in range(40):
        row = short[b : b + 1]
        scores = (model.item_table @ model.session_query(row)[0]).tolist()
        target, seen = int(row.target), set(whole["test"].items[b].tolist())
        others = [score for item, score in enumerate(scores) if item and item not in {*seen, target}]
        rank = 1 + sum(score >= scores[target] for score in others)
        if row.target_feedback >= 0:
            listened, hits = listened + 1, hits + (rank <= 10)
    assert measured["test/hit_rate@10"] == pytest.approx(hits / listened)
    repeats = sum(
        int(target) in session.tolist() and feedback >= 0
        for target, session, feedback in zip(
            short.target, whole["test"].items, short.target_feedback, strict=True
        )
    )
    assert measured["test/num_repeated"] == repeats


def test_every_position_that_is_asked_at_evaluation_is_asked_in_training():
    # Sessions of one length: leave-one-out trains on all but the last two tracks.
    log = simulate_sessions(40, num_items=60, num_moods=6, min_length=9, max_length=9)
    for max_length, input_length in ((5, 5), (6, 6), (7, 6), (20, 6)):
        data = SessionDataModule(log, max_length=max_length)
        assert data.input_length == data.encoder.max_length == input_length
        for backbone in (SASRec(8, max_length=max_length), BERT4Rec(8, max_length=max_length + 1)):
            torch.manual_seed(0)
            model = SkipCLModule(
                backbone, None, num_items=data.num_items, embedding_size=8, mask_probability=None
            )
            trained = set()
            for _ in range(5):
                batch = model.prepare_training(next(iter(data.train_dataloader())))
                trained |= set((model.targets(batch) > 0).any(dim=0).nonzero().flatten().tolist())
            asked = input_length - 1 if model.causal else input_length
            assert next(iter(data.test_dataloader())).items.shape[1] == input_length
            assert max(trained) == asked
            assert model.losses(batch)["loss"].isfinite()


def test_the_track_behind_the_longest_input_is_learned_from():
    model = module(SASRec(8, max_length=4, dropout=0.0), SkipInfoNCE(weight=1.0)).eval()
    items, feedback = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[1.0, -1.0, 1.0, 1.0, 1.0]])
    long = SessionBatch(items, feedback)
    query = model(long.replace(items=items[:, :4], feedback=feedback[:, :4]))
    keys = model.item_table[items]
    next_item = full_softmax_loss(query[0], model.item_table, torch.tensor([3, 3, 4, 5])).mean()
    padded = torch.cat([query, torch.zeros(1, 1, 8)], dim=1)
    skip = skip_info_nce(padded, keys, items, feedback)
    losses = model.losses(long)
    torch.testing.assert_close(losses["next_item_loss"], next_item)
    torch.testing.assert_close(losses["skip_loss"], skip)
    # Three anchors: the tracks that were listened to and have a next one.
    assert (skip_info_nce(padded, keys, items, feedback, reduction="none") > 0).sum() == 3


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
    assert module(SASRec(8), head=OwnHead()).losses(batch())["loss"].isfinite()
