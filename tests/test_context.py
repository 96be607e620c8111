"""The context of a play in the model: what it adds, what a mask hides, and that it is learned and kept."""

import numpy as np
import polars as pl
import pytest
import torch
from backbones.samples import EVERY
from lightning.pytorch import seed_everything
from small_models import MASK, batch, module, quiet_trainer

from skipcl_lightning import Recommender, SkipCLModule, evaluate
from skipcl_lightning.backbones import BERT4Rec, SASRec
from skipcl_lightning.data import SessionDataModule, prepare_store
from skipcl_lightning.functional import append_mask_token, hide_masked
from skipcl_lightning.model import SessionModel

SIZES = {"hour": 24, "device": 3}
CONTEXT = torch.tensor(
    [
        [[1, 3], [24, 2], [0, 1], [7, 0], [9, 1]],
        [[2, 1], [3, 3], [4, 2], [0, 0], [0, 0]],
    ]
)


def with_context(**changes):
    return batch().replace(context=CONTEXT, **changes)


def fill(model):
    for embedding in model.context_embeddings:
        torch.nn.init.normal_(embedding.weight[1:])


@pytest.mark.parametrize("name", EVERY)
def test_every_backbone_gets_the_sum_of_the_embeddings_which_is_zero_at_first(name):
    torch.manual_seed(0)
    model = SessionModel(EVERY[name](), num_items=9, embedding_size=8, context_sizes=SIZES).eval()
    with torch.no_grad():
        plain = model(with_context())
        model.context_sizes = {}
        assert torch.equal(model(batch()), plain)
        model.context_sizes = SIZES
        fill(model)
        assert not torch.allclose(model(with_context()), plain)
        keys = model.embed_items(batch().items)
        found = model.embed(with_context(), keys)
        model.context_sizes = {}
        expected = model.embed(batch(), keys).clone()
    for b, t in batch().valid_mask.nonzero().tolist():
        for number, code in enumerate(CONTEXT[b, t].tolist()):
            if code:
                expected[b, t] += model.context_embeddings[number].weight[code]
    torch.testing.assert_close(found, expected)


def test_a_mask_hides_the_context_of_its_play_and_of_the_play_after_it():
    mask = torch.tensor([[False, True, False, False, True], [False, False, True, False, False]])
    shown = hide_masked(with_context(cloze_mask=mask), MASK).context
    expected = CONTEXT.clone()
    expected[0, [1, 2, 4]] = 0
    expected[1, 2] = 0
    assert torch.equal(shown, expected)
    model = module(BERT4Rec(8, max_length=6, dropout=0.0), context_sizes=SIZES).eval().model
    fill(model)
    before = model(with_context(cloze_mask=mask))
    for b in range(2):
        for t in range(int(batch().lengths[b])):
            changed = CONTEXT.clone()
            changed[b, t] = torch.tensor([11, 3])
            same = torch.allclose(model(with_context(cloze_mask=mask).replace(context=changed)), before)
            hidden = bool(mask[b, t] or (t > 0 and mask[b, t - 1]))
            assert same == hidden, (b, t)


def test_the_mask_token_at_evaluation_has_no_context():
    longer = append_mask_token(with_context(), MASK)
    assert longer.items.tolist() == [[5, 3, 4, 7, 5, MASK], [2, 1, 6, MASK, 0, 0]]
    assert torch.equal(longer.context[:, :5], CONTEXT)
    assert not longer.context[:, 5].any()


def test_a_batch_carries_its_context_through_cuts_and_slices():
    assert with_context().latest(2).context.tolist() == [[[7, 0], [9, 1]], [[3, 3], [4, 2]]]
    assert torch.equal(with_context()[1:].context, CONTEXT[1:])
    assert with_context().to("meta").context.device.type == "meta"
    assert "context" in repr(with_context())
    with pytest.raises(ValueError, match="`context` must have"):
        batch().replace(context=CONTEXT[:, 1:])
    with pytest.raises(TypeError, match="`context` must"):
        batch().replace(context=CONTEXT.float())


def test_a_model_refuses_a_batch_without_its_context():
    model = module(SASRec(8, max_length=6), context_sizes=SIZES)
    for wrong in (batch(), batch().replace(context=CONTEXT[..., :1])):
        with pytest.raises(ValueError, match=r"`batch\.context` must have the codes of hour, device"):
            model(wrong)
    with pytest.raises(ValueError, match=r"`context_sizes\['hour'\]` must be at least 1, got 0"):
        module(SASRec(8, max_length=6), context_sizes={"hour": 0})


def moving_log(sessions=60, length=12):
    """Sessions in which the direction of a play, and nothing else, says which item comes next."""
    draw = np.random.default_rng(0)
    rows = []
    for session in range(sessions):
        place = int(draw.integers(8))
        for position in range(length):
            up = bool(draw.integers(2))
            rows.append((session, place, 1.0, position, up))
            place = (place + (1 if up else -1)) % 8
    return pl.DataFrame(rows, schema=["session_id", "item_id", "feedback", "position", "up"], orient="row")


@pytest.fixture(scope="module")
def trained():
    data = SessionDataModule(moving_log(), context=["up", "place"], batch_size=20, max_length=10)
    seed_everything(0, verbose=False)
    model = SkipCLModule(
        SASRec(16, max_length=10, num_layers=1, dropout=0.0),
        num_items=data.num_items,
        context_sizes=data.context_sizes,
        learning_rate=0.02,
        top_k=[1],
    )
    trainer = quiet_trainer(max_epochs=25)
    trainer.fit(model, data)
    return model, data, trainer


def test_the_context_is_learned_and_kept_in_the_checkpoint(trained, tmp_path):
    model, data, trainer = trained
    report = evaluate(model, data, num_resamples=0, compare_markov=False, top_k=[1])
    assert report["hit_rate@1"] > 0.95  # 0.5 without the context
    for embedding in model.model.context_embeddings:
        assert not embedding.weight[0].any()
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    recommender = Recommender.from_checkpoint(tmp_path / "model.ckpt")
    assert recommender.encoder.context == data.encoder.context
    module = SkipCLModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    module.extend_items([99])
    recommender = Recommender(module)
    assert recommender.encoder.context == data.encoder.context
    sessions = [[3, 4, 5], [1]]
    found = recommender.recommend(
        sessions, [[1.0] * 3, [1.0]], context={"up": [[True, True, False], [True]]}, top_k=1, batch_size=1
    )
    assert found["item_id"].to_list() == [4, 2]
    with pytest.raises(ValueError, match="`context` must have 'up', which the model was trained on"):
        recommender.recommend(sessions, top_k=1)
    assert len(recommender.recommend(sessions, context={"up": None}, top_k=1)) == 2


def test_a_history_in_front_of_the_session_has_no_context():
    log = moving_log(20, 5).with_columns(
        user_id=pl.col("session_id") % 4, timestamp=pl.col("session_id") * 999 + pl.col("position")
    )
    data = SessionDataModule(log, context=["gap", "up"], history_length=3, max_length=5)
    model = SkipCLModule(
        SASRec(8, max_length=8), num_items=data.num_items, context_sizes=data.context_sizes, top_k=[1]
    )
    quiet_trainer().fit(model, data)
    shown = next(iter(data.test_dataloader()))
    assert shown.history.shape[1] == 3
    assert shown.context.shape == (*shown.items.shape, 2)
    recommender = Recommender(model)

    def ranked(items, feedback, times, up):
        context = {"timestamp": [times], "up": [up]}
        found = recommender.recommend([items], [feedback], histories=[[5, 6]], context=context, top_k=8)
        return dict(zip(found["item_id"], found["score"], strict=True))

    before = ranked([3, 4], [1.0, 1.0], [0, 1], [True, True])
    after = ranked([3, 4, 2], [1.0, 1.0, -1.0], [0, 1, 9], [True, True, False])
    assert len(before) == 8
    context = {"timestamp": [0, 1, 9], "up": [True, True, False]}
    moved = recommender.after_skip(
        [3, 4], 2, [1.0, 1.0], history=[5, 6], context=context, top_k=8, depth=8, explicit_feedback=[0.0, 0.0]
    ).filter(pl.col("rank").is_not_null())
    assert moved["item_id"].to_list() == list(after)
    assert moved["score"].to_list() == list(after.values())
    assert moved["rank_before"].to_list() == [list(before).index(item) + 1 for item in after]
    assert recommender.after_skip([3, 4], 2, context={"timestamp": None, "up": None}, top_k=8).height == 8
    for wrong in ({"up": [True, True]}, {"up": [True] * 4}):
        with pytest.raises(ValueError, match="`context` must have one value a track in 'up'"):
            recommender.after_skip([3, 4], 2, context={"timestamp": None, **wrong}, top_k=8)


def test_a_newer_log_takes_the_categories_of_the_model(trained, tmp_path):
    model, data, trainer = trained
    newer = (
        moving_log(30).filter(pl.col("up") | (pl.col("position") < 3)).with_columns(pl.lit(True).alias("up"))
    )
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    prepare_store(newer, tmp_path / "store", vocabulary=tmp_path / "model.ckpt")
    for given in ({"vocabulary": model}, {"vocabulary": tmp_path / "store", "context": ["up", "place"]}):
        again = SessionDataModule(newer, **given)
        assert again.encoder.context == data.encoder.context
        assert next(iter(again.test_dataloader())).context[..., 0].unique().tolist() == [0, 2]
    assert evaluate(model, again, num_resamples=0, compare_markov=False, top_k=[1]).values
    assert SessionDataModule(newer, vocabulary=model, context=["up"]).context_sizes == {"up": 1}
    with pytest.raises(ValueError, match="got 'up' for a log with session_id"):
        SessionDataModule(newer.drop("up"), vocabulary=model)


def test_training_and_evaluation_need_the_same_context(trained, tmp_path):
    model, data, trainer = trained
    plain = SkipCLModule(SASRec(8, max_length=10), num_items=data.num_items)
    with pytest.raises(
        ValueError, match=r"`context_sizes` must be the data's \{'up': 2, 'place': 64\}, got None"
    ):
        quiet_trainer().fit(plain, data)
    without = SessionDataModule(moving_log())
    for wrong in (without, SessionDataModule(moving_log(), context=["place", "up"])):
        with pytest.raises(ValueError, match=r"ContextEncoder\(up: 2, place: 64\), got"):
            evaluate(model, wrong, num_resamples=0)
    texts = moving_log().with_columns(pl.when("up").then(pl.lit("up")).otherwise(pl.lit("down")).alias("up"))
    with pytest.raises(ValueError, match="with other inputs or categories"):
        quiet_trainer().fit(model, SessionDataModule(texts, context=["up", "place"]))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = SkipCLModule(
        SASRec(16, max_length=10, num_layers=1), num_items=data.num_items, context_sizes=data.context_sizes
    )
    with pytest.raises(ValueError, match="`context` must be what the model was trained on"):
        quiet_trainer().test(again, without, ckpt_path=tmp_path / "model.ckpt", verbose=False)
    # A model without context takes any data with its items.
    quiet_trainer().fit(plain, without)
    assert evaluate(plain, data, num_resamples=0).values
