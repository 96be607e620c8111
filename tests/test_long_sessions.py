"""Sessions longer than the backbone, or the training part, knows."""

import pytest
import torch
from small_models import module, quiet_trainer

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import BERT4Rec, GRU4Rec, SASRec
from skipcl_lightning.batch import SessionBatch, training_targets
from skipcl_lightning.data import SessionDataModule, SessionDataset, simulate_sessions
from skipcl_lightning.functional import full_softmax_loss, skip_info_nce
from skipcl_lightning.heads import SkipInfoNCE


def test_of_a_session_longer_than_the_backbone_knows_the_latest_tracks_count():
    items = torch.arange(1, 9)[None]
    long = SessionBatch(items, torch.ones(1, 8))
    for backbone in (BERT4Rec(8, max_length=4), SASRec(8, max_length=4)):
        model = module(backbone).eval()
        kept = 4 if model.model.causal else 3
        short = SessionBatch(items[:, -kept:], torch.ones(1, kept))
        torch.testing.assert_close(model.session_query(long), model.session_query(short))
        assert model(long).shape == (1, 4, 8)
        assert model.losses(model.part_losses(long))["loss"].isfinite()
    model = module(GRU4Rec(8)).eval()
    assert model(long).shape == (1, 8, 8)


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
    # At evaluation too: a target that was not seen is ranked among the rest, and another is in no list.
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
            listened, hits = listened + 1, hits + (rank <= 10 and target not in seen)
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
                trained |= set(
                    (training_targets(batch, model.target_rule) >= 0).any(dim=0).nonzero().flatten().tolist()
                )
            asked = input_length - 1 if model.model.causal else input_length
            assert next(iter(data.test_dataloader())).items.shape[1] == input_length
            assert max(trained) == asked
            assert model.losses(model.part_losses(batch))["loss"].isfinite()


def test_the_track_behind_the_longest_input_is_learned_from():
    model = module(SASRec(8, max_length=4, dropout=0.0), SkipInfoNCE(weight=1.0)).eval()
    items, feedback = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[1.0, -1.0, 1.0, 1.0, 1.0]])
    long = SessionBatch(items, feedback)
    query = model(long.replace(items=items[:, :4], feedback=feedback[:, :4]))
    keys = model.item_table[items]
    next_item = full_softmax_loss(query[0], model.item_table, torch.tensor([3, 3, 4, 5])).mean()
    padded = torch.cat([query, torch.zeros(1, 1, 8)], dim=1)
    skip = skip_info_nce(padded, keys, long)
    losses = model.losses(model.part_losses(long))
    torch.testing.assert_close(losses["next_item_loss"], next_item)
    torch.testing.assert_close(losses["skip_loss"], skip)
    # Three anchors: the tracks that were listened to and have a next one.
    assert (skip_info_nce(padded, keys, long, reduction="none") > 0).sum() == 3
