"""The item tower: its embeddings, the gradients of a step, items without plays, and checkpoints."""

import copy

import polars as pl
import pytest
import torch
from small_models import NUM_ITEMS, ROW_HEADS, batch, module, quiet_trainer
from torch import nn

from skipcl_lightning import Recommender, SkipCLModule, evaluate
from skipcl_lightning.backbones import BERT4Rec, SASRec
from skipcl_lightning.data import ItemFeatures, ItemVocabulary, SessionDataModule, simulate_sessions
from skipcl_lightning.heads import FullSoftmax, SampledSoftmax
from skipcl_lightning.model import ItemTower, SessionModel

TABLE = pl.DataFrame(
    {
        "item_id": range(1, NUM_ITEMS + 1),
        "tempo": [100, 80, None, 120, 60, 90, 70, 110, 95],
        "mood": ["a", "b", "a", None, "b", "c", "c", "a", "b"],
        "genres": [["x"], ["x", "y"], [], None, ["z", "y", "x"], ["y"], ["x"], ["z"], ["z"]],
    }
)


def features():
    return ItemFeatures.from_table(TABLE, ItemVocabulary(range(1, NUM_ITEMS + 1)))


def with_tower(backbone=None, head=None, **settings):
    return module(
        backbone or SASRec(8, max_length=12, dropout=0.0), head, item_features=features(), **settings
    )


def test_an_embedding_is_the_projection_plus_the_mean_of_each_set():
    found, tower = features(), with_tower().model.item_tower
    weight = tower.projection.weight.tolist()
    for item in range(NUM_ITEMS + 1):
        expected = [
            sum(w * x for w, x in zip(row, found.numbers[item].tolist(), strict=True)) for row in weight
        ]
        for table, codes in zip(tower.tables, found.categories.values(), strict=True):
            known = [code for code in codes[item].tolist() if code]
            for code in known:
                expected = [
                    e + t / len(known) for e, t in zip(expected, table.weight[code].tolist(), strict=True)
                ]
        for computed in (tower()[item], tower(torch.tensor([[item]]))[0, 0]):
            assert computed.tolist() == pytest.approx(expected, abs=1e-6)
    assert not tower()[0].any()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("head", ["none", "bank", "softmax", "prediction"])
@pytest.mark.parametrize("backbone", [SASRec, BERT4Rec])
def test_gradients_are_those_of_one_table(backbone, head, sparse):
    one = with_tower(
        backbone(8, max_length=12, dropout=0.0),
        ROW_HEADS[head](),
        next_item_loss=SampledSoftmax(4),
        sparse_item_table=sparse,
    )
    compare_with_one_table(one)


def test_gradients_of_the_full_softmax_are_those_of_one_table():
    compare_with_one_table(with_tower(next_item_loss=FullSoftmax()))


def compare_with_one_table(one):
    """The same step with the sum as the one weight."""
    one.model.item_embedding.weight.data[1:].normal_()
    plain = copy.deepcopy(one)
    table = nn.Parameter((one.model.item_embedding.weight + one.model.item_tower()).detach())
    plain.model.item_tower, plain.model.item_embedding.weight = None, table
    losses = []
    for each in (one, plain):
        torch.manual_seed(1)
        parts = each.part_losses(batch().replace(target=None, target_feedback=None)).parts
        losses.append(torch.stack(list(parts.values())).sum())
        losses[-1].backward()
    torch.testing.assert_close(*losses)
    gradient = table.grad.to_dense()
    own = one.model.item_embedding.weight.grad
    assert own.is_sparse == one.model.item_embedding.sparse
    torch.testing.assert_close(own.to_dense(), gradient)
    parameters = list(one.model.item_tower.parameters())
    expected = torch.autograd.grad(one.model.item_tower(), parameters, gradient)
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, value)
    for name, parameter in plain.named_parameters():
        if name != "model.item_embedding.weight" and parameter.grad is not None:
            torch.testing.assert_close(one.get_parameter(name).grad, parameter.grad)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("loss", [FullSoftmax, SampledSoftmax])
def test_items_without_plays_are_no_candidates_in_training(loss, sparse):
    if loss is FullSoftmax and sparse:
        return
    one = with_tower(next_item_loss=loss() if loss is FullSoftmax else loss(4), sparse_item_table=sparse)
    one.model.num_trained = 7
    one.model.item_embedding.weight.data[1:].normal_()
    plain = copy.deepcopy(one)
    table = (one.model.item_embedding.weight + one.model.item_tower()).detach()
    plain.model.item_tower, plain.model.item_embedding.weight = None, nn.Parameter(table)
    plain.next_item_loss = OfTheFirstSeven(plain.next_item_loss)
    plain.model.item_embedding.sparse = False
    losses = []
    for each in (one, plain):
        torch.manual_seed(1)
        losses.append(
            each.part_losses(batch().replace(target=None, target_feedback=None)).parts["next_item_loss"]
        )
        losses[-1].backward()
    torch.testing.assert_close(*losses)
    gradients = [each.model.item_embedding.weight.grad.to_dense() for each in (one, plain)]
    torch.testing.assert_close(*gradients)
    assert gradients[0][1:].any()
    assert not gradients[0][8:].any()


class OfTheFirstSeven(nn.Module):
    """A loss for which later items do not exist."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss
        self.loss.sparse_gradients = False

    def forward(self, query, table, target):
        return self.loss(query, table[:8], target)


def test_id_dropout_leaves_rows_out_of_inputs_and_candidates_alike():
    model = SessionModel(
        SASRec(8), num_items=2000, item_tower=tower_of(2000), id_dropout=0.25, feedback_input=False
    )
    model.item_embedding.weight.data[1:] = 1.0
    everything = model.item_table
    items = torch.arange(2001)[None]
    with model.training_table(gathers=True):
        table, keys = model.item_table, model.embed_items(items)[0]
    assert torch.equal(keys, table)
    left_out = (table == model.item_tower()).all(dim=1)[1:]
    assert left_out.double().mean() == pytest.approx(0.25, abs=0.05)
    assert torch.equal(table[1:][~left_out], everything[1:][~left_out])
    with model.eval().training_table(gathers=False):
        assert torch.equal(model.item_table, everything)
    assert torch.equal(model.embed_items(items)[0], everything)


def tower_of(num_items):
    return ItemTower(torch.randn(num_items + 1, 3) * (torch.arange(num_items + 1) > 0)[:, None], {}, {}, 8)


def log_with_new_tracks():
    """Sessions whose next track has the mood of the last ones; six tracks appear as last tracks alone."""
    log = simulate_sessions(
        240,
        num_items=60,
        num_moods=4,
        follow_probability=0.0,
        explore_probability=0.0,
        drift_probability=0.0,
        popularity_exponent=0.0,
        max_length=12,
        seed=1,
    ).collect()
    new = log["item_id"].unique().sort()[::10]
    is_last = pl.col("position") == pl.col("position").max().over("session_id")
    log = log.filter(is_last | ~pl.col("item_id").is_in(new.implode()))
    return log, log.select("item_id", mood=pl.col("item_mood").cast(pl.String)).unique("item_id")


@pytest.fixture(scope="module")
def trained():
    log, content = log_with_new_tracks()
    data = SessionDataModule(log, batch_size=64, cold_targets="score", item_features=content, seed=0)
    torch.manual_seed(0)
    found = SkipCLModule(
        SASRec(16, dropout=0.0),
        num_items=data.num_items,
        item_features=data.item_features,
        id_dropout=0.2,
        learning_rate=1e-2,
    )
    trainer = quiet_trainer(max_epochs=12, limit_val_batches=0)
    trainer.fit(found, data)
    return found.eval(), data, trainer


def test_new_tracks_of_the_right_mood_are_recommended(trained):
    found, data, _ = trained
    cold = evaluate(found, data, num_resamples=0, top_k=(10,)).segments.filter(
        pl.col("segment") == "not in training", metric="hit_rate@10"
    )
    # Without content about 10 of 60 at best.
    assert cold["targets"].item() >= 10
    assert cold["value"].item() > 0.3


def test_items_without_plays_have_the_towers_embedding_alone(trained):
    found, data, _ = trained
    cold = data.item_counts[1:] == 0
    assert cold.sum() == 6
    content = found.model.item_tower()[1:]
    assert torch.equal(found.item_table[1:][cold], content[cold])
    assert (found.item_table[1:][~cold] != content[~cold]).any(dim=1).all()


def test_a_checkpoint_has_the_content_and_what_encodes_new_items(trained, tmp_path):
    found, data, trainer = trained
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    recommender = Recommender.from_checkpoint(tmp_path / "model.ckpt")
    assert torch.equal(recommender.scorer.item_table, found.item_table)
    loaded = SkipCLModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(loaded.item_table, found.item_table)
    assert loaded.item_features.describe() == data.item_features.describe()
    more = loaded.item_features.extended([{"item_id": "new", "mood": "2"}], data.vocabulary.extended(["new"]))
    assert more.categories["mood"][-1].item() == 3
    # Lightning may load it into a module that was given no content, or that was encoded otherwise.
    bare = SkipCLModule(SASRec(16, dropout=0.0), num_items=data.num_items)
    bare_data = SessionDataModule(data.log, batch_size=64, cold_targets="score")
    (one,) = quiet_trainer().test(
        bare, bare_data, ckpt_path=tmp_path / "model.ckpt", verbose=False, weights_only=True
    )
    (other,) = trainer.test(found, data, verbose=False)
    assert one == other


def test_new_items_are_what_their_content_says(trained, tmp_path):
    found, data, trainer = copy.deepcopy(trained[0]), trained[1], quiet_trainer()
    mood = data.item_features.categories["mood"]
    like, other = int((mood == 2).nonzero()[0, 0]), int((mood == 3).nonzero()[0, 0])
    content = [{"item_id": "new", "mood": "1"}]
    assert [one["values"][1] for one in found.item_features.describe()] == ["1"]
    before = found.item_table.detach().clone()
    found.extend_items(["new", "unknown"], "content", content=content)
    after = found.item_table.detach()
    assert torch.equal(after[:-2], before)
    torch.testing.assert_close(after[-2], found.model.item_tower()[like])
    assert not torch.equal(after[-2], found.model.item_tower()[other])
    assert not after[-1].any()
    # It is trained and saved as it is.
    trainer.strategy.connect(found)
    trainer.save_checkpoint(tmp_path / "grown.ckpt")
    loaded = SkipCLModule.load_from_checkpoint(tmp_path / "grown.ckpt", weights_only=True)
    assert torch.equal(loaded.item_table, found.item_table)
    bare = module()
    bare.encoder = found.encoder
    for wrong in ({"init": "content"}, {"content": content}):
        with pytest.raises(ValueError, match="for a module without `item_features`"):
            bare.extend_items(["x"], **wrong)


def test_training_goes_on_with_new_tracks_and_their_content(trained, tmp_path):
    found, data, trainer = trained
    trainer.save_checkpoint(path := tmp_path / "old.ckpt")
    more = data.log.with_columns(
        pl.col("item_id").replace({data.vocabulary.ids[0]: "new", data.vocabulary.ids[1]: "odd"})
    )
    content = pl.DataFrame({"item_id": ["new", "another"], "mood": ["1", "9"]})
    newer = SessionDataModule(
        more, batch_size=64, vocabulary=path, new_items="append", item_features=content, seed=0
    )
    for resumes in (False, True):
        one = SkipCLModule(
            SASRec(16, dropout=0.0),
            num_items=newer.num_items,
            item_features=newer.item_features,
            id_dropout=0.2,
        )
        going_on = quiet_trainer(max_epochs=13 if resumes else 1, limit_val_batches=0, limit_train_batches=1)
        if not resumes:
            one.init_from(path, newer)
            known = data.num_items + 1
            assert torch.equal(one.item_table[:known], found.item_table)
            new, odd = (int(newer.vocabulary.encode([name])[0]) for name in ("new", "odd"))
            assert sorted((new, odd)) == [known, known + 1]
            like = int((data.item_features.categories["mood"] == 2).nonzero()[0, 0])
            torch.testing.assert_close(one.item_table[new], found.model.item_tower()[like])
            assert not one.item_table[odd].any()
        going_on.fit(one, newer, ckpt_path=path if resumes else None, weights_only=True if resumes else None)
        before, after = found.item_features, one.item_features
        assert after.describe() == before.describe()
        assert torch.equal(after.categories["mood"][:known], before.categories["mood"])
        assert after.categories["mood"][[new, odd], 0].tolist() == [2, 0]


def test_embeddings_come_out_with_ids(trained):
    found, data, _ = trained
    frame = Recommender(found).embed_items()
    assert frame["item_id"].to_list() == data.vocabulary.ids
    assert torch.equal(torch.tensor(frame["embedding"].to_numpy()), found.item_table[1:].detach())


def test_content_in_place_of_ids(trained):
    _, data, _ = trained
    one = SkipCLModule(SASRec(8), num_items=data.num_items, item_features=data.item_features, id_dropout=1.0)
    quiet_trainer(max_steps=2, limit_val_batches=0).fit(one, data)
    assert not one.model.item_embedding.weight.any()
    assert torch.equal(one.item_table, one.model.item_tower())


def test_the_tower_runs_once_for_the_batches_of_an_epoch(trained, monkeypatch):
    found, data, _ = trained
    calls, forward = [], type(found.model.item_tower).forward
    monkeypatch.setattr(
        ItemTower, "forward", lambda self, items=None: calls.append(items) or forward(self, items)
    )
    quiet_trainer().test(found, data, verbose=False)
    assert len(data.test_dataloader()) > 1
    assert sum(items is None for items in calls) == 1


class Doubled(nn.Module):
    def forward(self, x, valid_mask):
        return 2 * x * valid_mask[..., None]


def test_a_step_with_a_tower_is_one_graph():
    one = with_tower(Doubled(), id_dropout=0.5)
    one.model.num_trained = 8
    compiled = copy.deepcopy(one)
    compiled.part_losses = torch.compile(compiled.part_losses, backend="eager", fullgraph=True, dynamic=True)
    losses = []
    for each in (one, compiled):
        torch.manual_seed(0)
        losses.append(each.part_losses(batch()).parts["next_item_loss"])
        losses[-1].backward()
    torch.testing.assert_close(*losses)
    weights = [each.model.item_tower.projection.weight.grad for each in (one, compiled)]
    torch.testing.assert_close(*weights)


def test_a_step_with_a_tower_asks_the_device_for_nothing():
    one = with_tower(id_dropout=0.5, next_item_loss=SampledSoftmax(4)).to("meta")
    loss = one.losses(one.part_losses(batch().to("meta")))["loss"]
    loss.backward()
    assert loss.device.type == "meta"


def test_the_tower_is_dense_beside_a_sparse_table_in_bfloat16(trained):
    _, data, _ = trained
    one = SkipCLModule(
        SASRec(8),
        num_items=data.num_items,
        item_features=data.item_features,
        id_dropout=0.2,
        next_item_loss=SampledSoftmax(8),
        sparse_item_table=True,
    )
    before = copy.deepcopy(one.model.item_tower.state_dict())
    quiet_trainer(max_steps=3, limit_val_batches=0, precision="bf16-mixed", gradient_clip_val=1.0).fit(
        one, data
    )
    after = one.model.item_tower.state_dict()
    assert not torch.equal(before["tables.0.weight"], after["tables.0.weight"])
    assert one.item_table.isfinite().all()
    own = one.model.item_embedding.weight
    assert own[1:-6].any(dim=1).any()
    assert not own[-6:].any()


def test_bad_settings_are_named(trained):
    _, data, _ = trained
    with pytest.raises(ValueError, match="`id_dropout` must be 0 without content of the items"):
        module(id_dropout=0.5)
    with pytest.raises(ValueError, match="`id_dropout` must be below 1 beside `sparse_item_table`, got 1"):
        with_tower(id_dropout=1.0, sparse_item_table=True, next_item_loss=SampledSoftmax(4))
    with pytest.raises(ValueError, match="`item_features` must be those of the 12 items, got 9"):
        with_tower(num_items=12)
    with pytest.raises(ValueError, match="`item_features` must be given to the module too"):
        quiet_trainer().fit(SkipCLModule(SASRec(8), num_items=data.num_items), data)
