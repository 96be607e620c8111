"""A scorer is what a trained module's scores depend on, and needs no Lightning."""

import pytest
import torch
from small_models import quiet_trainer
from torch import nn

from skipcl_lightning import Recommender, SessionBatch, SkipCLModule
from skipcl_lightning.backbones import GRU4Rec, SASRec
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import CombinedHead, SkipInfoNCE, SkipPrediction
from skipcl_lightning.model import Scorer, SessionModel

PREDICTION = {"name": "SkipPrediction", "settings": {"vector_size": 4}}


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    log = simulate_sessions(80, num_items=30, num_moods=3)
    data = SessionDataModule(log, batch_size=40, max_length=20)
    head = CombinedHead([SkipInfoNCE(weight=0.2), SkipPrediction(vector_size=4)])
    module = SkipCLModule(SASRec(8, max_length=20), head, num_items=data.num_items, transition_weight=0.5)
    quiet_trainer().fit(module, data)
    module.model.use_history()
    module.retire_items(data.vocabulary.ids[:2])
    module.skip_penalty = 0.7
    return module.eval(), data


def test_a_scorer_built_from_settings_scores_as_the_module(trained):
    module, data = trained
    settings = {**module.hparams, "skip_penalty": module.skip_penalty}
    scorer = Scorer.from_settings(settings, module.state_dict())
    assert not scorer.training
    assert scorer.transition_weight == 0.5
    for name, value in scorer.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name
    sessions = [data.vocabulary.ids[3:8], data.vocabulary.ids[:4]]
    feedback = [[1.0, -1.0, 1.0, 1.0, -1.0], [1.0, 1.0, 1.0, -1.0]]
    expected = Recommender(module).recommend(sessions, feedback, top_k=28)
    assert expected.height == 28 * 2 - 3  # without what was skipped
    assert not set(expected["item_id"]) & set(data.vocabulary.ids[:2])
    assert Recommender(scorer, data.encoder).recommend(sessions, feedback, top_k=28).equals(expected)


def test_a_scorer_shares_the_weights_that_it_is_given(trained):
    module, _ = trained
    scorer = Scorer(module.model, module.skip_head, skip_penalty=0.7)
    batch = SessionBatch(torch.tensor([[3, 4]]), torch.tensor([[1.0, -1.0]]))
    assert torch.equal(scorer.session_query(batch), module.session_query(batch))
    assert torch.equal(scorer.item_table, module.item_table)
    assert scorer.added_scores(batch) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skip_penalty": -1.0}, "`skip_penalty` must be"),
        ({"skip_penalty": 1.0}, "`skip_head` must be or contain a `SkipPrediction`"),
        ({"transition_weight": float("nan")}, "`transition_weight` must be"),
    ],
)
def test_bad_weights_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Scorer(SessionModel(SASRec(8), num_items=5), **settings)


def test_parts_of_ones_own_and_weights_that_do_not_fit_are_named(trained):
    module, _ = trained
    state = module.state_dict()
    settings = {**module.hparams, "backbone": {"name": "mine.Own", "settings": None}}
    with pytest.raises(ValueError, match="`backbone` must be passed where the checkpoint holds a part of"):
        Scorer.from_settings(settings, state)
    assert isinstance(
        Scorer.from_settings(settings, state, backbone=SASRec(8, max_length=20)).model.backbone, nn.Module
    )
    with pytest.raises(ValueError, match="`state` must be the weights of the model"):
        Scorer.from_settings(settings, state, backbone=GRU4Rec(8))
