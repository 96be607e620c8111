"""Retired items: not recommended, a miss as a target, part of sessions, kept in checkpoints, restored."""

import pytest
import torch
from small_models import quiet_trainer

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.callbacks import RankPlot
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.evaluation import evaluate


@pytest.fixture(scope="module")
def data():
    log = simulate_sessions(120, num_items=60, num_moods=4, seed=0)
    return SessionDataModule(log, batch_size=32, max_length=8)


def build(data):
    torch.manual_seed(0)
    backbone = SASRec(8, max_length=8, num_layers=1, num_heads=1, dropout=0.0)
    module = SkipCLModule(backbone, num_items=data.num_items, transition_weight=1.0)
    quiet_trainer().fit(module, data)
    return module


@pytest.fixture(scope="module")
def trained(data):
    return build(data)


@pytest.fixture
def module(trained):
    yield trained
    trained.restore_items(trained.retired_items)


def lists(module, data):
    return Recommender(module).recommend(
        [data.vocabulary.ids[:3], data.vocabulary.ids[10:14]], top_k=data.num_items
    )


def test_retired_items_leave_every_list_and_the_others_move_up(data, module):
    before = lists(module, data)
    gone = before.filter(before["session_id"] == 0)["item_id"].to_list()[:3]
    module.retire_items(gone)
    assert set(module.retired_items) == set(gone)
    kept = before.filter(~before["item_id"].is_in(gone))
    after = lists(module, data)
    assert after["item_id"].to_list() == kept["item_id"].to_list()
    assert after["score"].to_list() == kept["score"].to_list()
    predicted = quiet_trainer().predict(module, data)
    assert not any(frame["item_id"].is_in(gone).any() for frame in predicted)
    module.restore_items(gone)
    assert lists(module, data).equals(before)
    assert module.retired is None
    assert "model.retired" not in module.state_dict()


def test_a_retired_target_is_a_miss_in_reports_and_logged_metrics(data, module):
    before = evaluate(module, data, num_resamples=0)
    gone = before.sessions["target"].mode()[:1].to_list()
    module.retire_items(gone)
    plot = RankPlot()
    (logged,) = quiet_trainer(callbacks=[plot]).test(module, data, verbose=False)
    after = evaluate(module, data, num_resamples=0)
    missed = after.sessions["target"].is_in(gone)
    assert missed.any()
    assert (after.sessions["rank"].filter(missed) == data.num_items).all()
    others = (after.sessions["rank"] - before.sessions["rank"]).filter(~missed)
    assert set(others.to_list()) == {-1.0, 0.0}
    for name in ("hit_rate@10", "ndcg@10", "skip_hit_rate@10", "pairwise_skip_accuracy"):
        assert logged[f"test/{name}"] == pytest.approx(after[name], abs=1e-6)


def test_a_checkpoint_keeps_what_is_retired(data, module, tmp_path):
    gone = data.vocabulary.ids[:5]
    module.retire_items(gone)
    trainer = quiet_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "retired.ckpt")
    loaded = SkipCLModule.load_from_checkpoint(tmp_path / "retired.ckpt", weights_only=True)
    assert loaded.retired_items == gone
    assert lists(loaded, data).equals(lists(module, data))
    loaded.extend_items(["a new one"])
    assert loaded.retired_items == gone
    loaded.restore_items(gone)
    assert lists(loaded, data).height > lists(module, data).height
    # Another choice gives way to that of a checkpoint.
    other = build(data)
    other.retire_items(data.vocabulary.ids[7:9])
    quiet_trainer().test(other, data, ckpt_path=tmp_path / "retired.ckpt", weights_only=True, verbose=False)
    assert other.retired_items == gone


def test_training_goes_on_with_retired_items(data):
    module = build(data)
    module.retire_items(data.vocabulary.ids[:5])
    before = module.model.item_table[1:6].detach().clone()
    quiet_trainer().fit(module, data)
    assert (module.model.item_table[1:6] != before).any(dim=1).all()


def test_what_cannot_be_retired_is_said(data, module):
    with pytest.raises(ValueError, match=r"`items` must be in the module's vocabulary, got 'x' \(2 unknown"):
        module.retire_items([data.vocabulary.ids[0], "x", "y"])
    with pytest.raises(ValueError, match="`items` must be in the module's vocabulary"):
        module.restore_items(["x"])
    with pytest.raises(TypeError, match="`items` must be String"):
        module.retire_items([7])
    module.retire_items(data.vocabulary.ids[1:])
    with pytest.raises(ValueError, match="`items` must leave an item to recommend, got all"):
        module.retire_items(data.vocabulary.ids[:1])
    assert len(lists(module, data)) == 2
    with pytest.raises(ValueError, match="must have its item vocabulary"):
        SkipCLModule(SASRec(8), num_items=3).retire_items(["x"])
