"""A module with the listener's history: it is input alone, learned from, saved and served."""

import copy

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch import seed_everything
from small_models import ROW_HEADS, batch, module, quiet_trainer
from torch import nn

from skipcl_lightning import Recommender, SkipCLModule, evaluate
from skipcl_lightning.backbones import BERT4Rec, GRU4Rec, SASRec
from skipcl_lightning.data import SessionDataModule, SplitByTime
from skipcl_lightning.evaluation import LastItemMarkov
from skipcl_lightning.heads import SampledSoftmax, SkipInfoNCE

# Of `tastes`: validated on the third session but its last track, tested on that one.
SPLIT = SplitByTime(2000, 2003)
HISTORY = torch.tensor([[8, 6, 0], [1, 4, 9]])


class Alone(nn.Module):
    """A backbone whose output at a position depends on that position alone."""

    embedding_size = 8

    def forward(self, x, valid_mask):
        return torch.where(valid_mask[..., None], x, 0)


def with_history(one):
    one.model.use_history()
    return one


@pytest.mark.parametrize("head", ROW_HEADS)
def test_a_history_is_no_target_anchor_or_negative(head):
    """A backbone that sees one position at a time has the same losses, so only the input has changed."""
    one = with_history(module(Alone(), ROW_HEADS[head]()))
    losses = []
    for history in (None, HISTORY):
        torch.manual_seed(1)
        plain = batch().replace(target=None, target_feedback=None, history=history)
        losses.append(copy.deepcopy(one).part_losses(plain).parts)
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        assert torch.equal(value, losses[1][name])


@pytest.mark.parametrize("backbone", [SASRec, GRU4Rec, BERT4Rec])
def test_a_model_ignores_histories_until_it_uses_them(backbone):
    one = module(backbone(8)).eval()
    plain, known = batch(), batch().replace(history=HISTORY)
    assert torch.equal(one.session_query(known), one.session_query(plain))
    with_history(one)
    assert not torch.allclose(one.session_query(known), one.session_query(plain))
    nobody = batch().replace(history=torch.zeros(2, 0, dtype=torch.int64))
    torch.testing.assert_close(one.session_query(nobody), one.session_query(plain))


@pytest.mark.parametrize("sparse", [False, True])
def test_a_step_learns_from_the_items_of_a_history(sparse):
    settings = {"sparse_item_table": True, "next_item_loss": SampledSoftmax(4)} if sparse else {}
    one = with_history(module(SASRec(8, dropout=0.0), **settings))
    plain = batch().replace(target=None, target_feedback=None, history=torch.tensor([[8, 0], [8, 9]]))
    sum(one.part_losses(plain).parts.values()).backward()
    assert one.model.history_embedding.grad.abs().sum() > 0
    gradient = one.model.item_embedding.weight.grad
    assert gradient.to_dense()[8].abs().sum() > 0


@pytest.mark.slow
def test_a_step_is_one_graph_for_any_batch():
    one = with_history(module(SASRec(8, max_length=6, dropout=0.0), SkipInfoNCE()))
    compiled = copy.deepcopy(one)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = torch.compile(compiled.part_losses, backend="eager", fullgraph=True, dynamic=True)
    plain = batch().replace(target=None, target_feedback=None)
    more = plain[torch.tensor([0, 1, 1])]
    for known in (plain.replace(history=HISTORY), more.replace(history=HISTORY[[0, 1, 1], :2].contiguous())):
        for name, value in one.part_losses(known).parts.items():
            torch.testing.assert_close(step(known).parts[name], value)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


def test_a_step_asks_the_device_for_nothing():
    """Tensors on the meta device have no values."""
    one = with_history(module(SASRec(8, max_length=6), SkipInfoNCE())).to("meta")
    known = batch().replace(target=None, target_feedback=None, history=HISTORY).to("meta")
    assert one.losses(one.part_losses(known))["loss"].device.type == "meta"


def tastes(users=150, items=12):
    """Listeners with a favourite: their first session ends with it, and so do all others."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(users):
        favourite = random.integers(items)
        for session in range(3):
            tracks = [f"t{t}" for t in random.integers(items, 2 + items, 3)] + [f"f{favourite}"]
            rows += [
                (f"{user}/{session}", track, f"u{user}", 1000 * session + place, 1.0)
                for place, track in enumerate(tracks)
            ]
    names = ["session_id", "item_id", "user_id", "timestamp", "feedback"]
    return pl.DataFrame(rows, schema=names, orient="row")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    seed_everything(0, verbose=False)
    data = SessionDataModule(tastes(), history_length=4, batch_size=32, split=SPLIT, seed=0)
    one = SkipCLModule(SASRec(16, dropout=0.0), num_items=data.num_items, learning_rate=0.01)
    trainer = quiet_trainer(max_epochs=20, limit_val_batches=0)
    trainer.fit(one, data)
    path = tmp_path_factory.mktemp("history") / "model.ckpt"
    trainer.save_checkpoint(path)
    return data, one, path


def test_a_taste_that_only_the_history_shows_is_learned(trained):
    data, one, _ = trained
    report = evaluate(one, data, num_resamples=0, compare_markov=False)
    assert report["hit_rate@1"] > 0.9
    assert evaluate(LastItemMarkov(data), data, num_resamples=0)["hit_rate@1"] < 0.2


def test_a_checkpoint_serves_histories_as_the_module_was_evaluated(trained):
    data, one, path = trained
    served = Recommender.from_checkpoint(path)
    assert served.encoder.history_length == 4
    sessions = [["t12", "t13", "t12"], ["t13"], ["t12"]]
    histories = [["f1", "t13", "t12", "t12", "f7"], [], ["t12", "f3", "nobody's"]]
    found = served.recommend(sessions, histories=histories, top_k=1, unknown="ignore")
    assert found.filter(pl.col("session_id") == 0)["item_id"].item() == "f7"
    encoded = one.encoder.encode(sessions, histories=histories, unknown="ignore")
    best = (one.eval().session_query(encoded) @ one.item_table.T)[:, 1:].argmax(dim=1) + 1
    assert found["item_id"].to_list() == data.vocabulary.decode(best.tolist())
    alone = served.recommend([sessions[1]], top_k=1)["score"]
    assert alone.to_list() == pytest.approx(found["score"][1:2].to_list())


def test_a_grown_model_keeps_its_histories(trained):
    grown = SkipCLModule.load_from_checkpoint(trained[2], weights_only=True)
    sessions, histories = [["t12", "t13", "t12"]], [["f7"]]
    before = Recommender(grown).recommend(sessions, histories=histories, top_k=1)
    grown.extend_items([*grown.encoder.vocabulary.ids, "new"], "mean")
    assert Recommender(grown).recommend(sessions, histories=histories, top_k=1).equals(before)


def test_a_model_trained_without_histories_can_learn_them_later():
    plain, known = (
        SessionDataModule(tastes(40), batch_size=32, split=SPLIT, history_length=n) for n in (0, 3)
    )
    one = SkipCLModule(SASRec(8), num_items=plain.num_items)
    settings = {"max_epochs": None, "max_steps": 1, "limit_val_batches": 0}
    quiet_trainer(**settings).fit(one, plain)
    assert one.model.history_embedding is None
    quiet_trainer(**settings).fit(one, known)
    assert one.model.history_embedding is not None
    assert one.encoder.history_length == 3


def test_wrong_histories_are_named(trained):
    served = Recommender(trained[1])
    with pytest.raises(
        ValueError, match=r"`histories` must hold tracks of the vocabulary, got 'x' in session 1"
    ):
        served.recommend([["t12"], ["t12"]], histories=[[], ["x"]])
    with pytest.raises(ValueError, match=r"`histories` must have one sequence a session, got 1 for 2"):
        served.recommend([["t12"], ["t12"]], histories=[["t12"]])
    with pytest.raises(TypeError, match=r"`histories` must hold sequences of ids .* got 't12' as session 0"):
        served.recommend([["t12"]], histories=["t12"])
    without = module(SASRec(8))
    without.encoder = copy.copy(served.encoder)
    without.encoder = without.encoder.replace(history_length=0)
    with pytest.raises(ValueError, match=r"`histories` must be None for a model that was trained without"):
        Recommender(without).recommend([["t12"]], histories=[[]], top_k=1)


def test_a_log_without_listeners_is_evaluated_without_histories(trained):
    _, _, path = trained
    plain = SessionDataModule(tastes().drop("user_id"), split=SPLIT, batch_size=32)
    one = SkipCLModule.load_from_checkpoint(path, weights_only=True)
    trainer = quiet_trainer()
    with pytest.warns(UserWarning, match="trained with the tracks that each listener heard before"):
        found = trainer.test(one, plain, verbose=False)[0]
    report = evaluate(one, plain, num_resamples=0, compare_markov=False)
    assert found["test/hit_rate@1"] == pytest.approx(report["hit_rate@1"])
    assert report["hit_rate@1"] < 0.5


def test_the_command_line_takes_histories_from_a_file(trained, skipcl):
    _, _, path = trained
    sessions = pl.DataFrame({"session_id": ["mon", "tue"], "item_id": ["t12", "t13"]})
    sessions.write_csv("now.csv")
    earlier = {"session_id": ["tue"] * 3, "item_id": ["t12", "f5", "f2"], "feedback": [1.0, None, -1.0]}
    pl.DataFrame(earlier).write_csv("earlier.csv")
    skipcl("recommend", path, "--file", "now.csv", "--histories", "earlier.csv", "--output", "out.parquet")
    expected = Recommender.from_checkpoint(path).recommend(
        [["t12"], ["t13"]], histories=[[], ["t12", "f5"]], session_ids=["mon", "tue"]
    )
    assert pl.read_parquet("out.parquet").equals(expected)
    with pytest.raises(SystemExit, match="`histories` must be left out without `file`"):
        skipcl("recommend", path, "--session", "t12", "--histories", "earlier.csv")
    sessions.with_columns(session_id=pl.lit("wed")).write_csv("now.csv")
    with pytest.raises(SystemExit, match="`histories` must have sessions of `file` in session_id, got 'tue'"):
        skipcl("recommend", path, "--file", "now.csv", "--histories", "earlier.csv")
