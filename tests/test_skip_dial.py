"""The penalty that lets a trained model's ranking avoid the tracks that it expects to be skipped."""

import math
from dataclasses import replace
from itertools import product

import polars as pl
import pytest
import torch
from small_models import quiet_trainer

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import GRU4Rec
from skipcl_lightning.callbacks import SkipTradeOffTable
from skipcl_lightning.data import SessionDataModule, SplitBySession, simulate_sessions
from skipcl_lightning.evaluation import (
    ItemSkipRate,
    Popularity,
    calibrate_skip_prediction,
    choose_transition_weight,
    compare_skip_predictions,
    evaluate,
    skip_prediction,
    skip_trade_off,
)
from skipcl_lightning.functional import score_ranks
from skipcl_lightning.heads import CombinedHead, SkipInfoNCE, SkipPrediction

SESSIONS = 400


@pytest.fixture(scope="module")
def data():
    log = simulate_sessions(SESSIONS, num_items=60, num_moods=4, seed=0)
    return SessionDataModule(
        log, batch_size=64, max_length=12, split=SplitBySession(0.2, 0.2, targets="every")
    )


def build(data, head=None, **settings):
    torch.manual_seed(0)
    head = SkipPrediction(vector_size=4) if head is None else head
    return SkipCLModule(GRU4Rec(16), head, num_items=data.num_items, learning_rate=0.02, **settings)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    module = build(data, transition_weight=1.0)
    trainer = quiet_trainer(max_epochs=6)
    trainer.fit(module, data)
    module.transition_weight = 0.0
    path = tmp_path_factory.mktemp("trained") / "model.ckpt"
    trainer.save_checkpoint(path)
    return module.eval(), path


def listen_logit(module, query, item):
    """a(t, i) from the weights, number by number."""
    head, table = module.skip_head, module.model.item_table
    total = float(head.bias) + float(head.biases[item])
    for m in range(head.vector_size):
        w = sum(float(a) * float(b) for a, b in zip(head.session_projection[m], query, strict=True))
        k = float(head.vector[m]) + float(head.vectors[item, m])
        k += sum(float(a) * float(b) for a, b in zip(head.item_projection[m], table[item], strict=True))
        total += w * k
    return total


@torch.no_grad()
def dense_scores(module, batch, penalty):
    query = module.model.session_query(batch)
    scores = module.model.score(query)
    logits = torch.tensor(
        [[listen_logit(module, row, item) for item in range(scores.shape[1])] for row in query]
    )
    return scores + penalty * logits


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_ranks_are_those_of_the_sum(data, trained, penalty):
    module, _ = trained
    report = evaluate(module, data, num_resamples=0, skip_penalty=penalty)
    batch = next(iter(data.test_dataloader()))[:16]
    expected = score_ranks(dense_scores(module, batch, penalty)[:, 1:], batch.target - 1)
    found = report.sessions["rank"].head(16).to_list()
    assert sum(a == b for a, b in zip(found, expected.tolist(), strict=True)) >= 15  # sums are rounded
    assert report.settings["skip_penalty"] == penalty
    assert module.skip_penalty == 0


def test_module_evaluation_and_logged_metrics_agree(data, trained):
    module, _ = trained
    expected = evaluate(module, data, num_resamples=0, skip_penalty=0.5)
    module.skip_penalty = 0.5
    try:
        report = evaluate(module, data, num_resamples=0)
        (logged,) = quiet_trainer().test(module, data, verbose=False)
    finally:
        module.skip_penalty = 0.0
    assert report.sessions.equals(expected.sessions)
    for name in ("hit_rate@10", "skip_hit_rate@10", "skip_mrr@10", "pairwise_skip_accuracy"):
        assert logged[f"test/{name}"] == pytest.approx(expected[name], abs=1e-6)
    assert not expected.sessions.equals(evaluate(module, data, num_resamples=0).sessions)


def test_a_larger_penalty_ranks_fewer_skipped_tracks_first(data, trained):
    module, _ = trained
    shares = [
        evaluate(module, data, num_resamples=0, skip_penalty=penalty)["skip_hit_rate@10"]
        for penalty in (0.0, 1.0, 4.0)
    ]
    assert shares[0] > shares[1] > shares[2]


def test_the_head_may_be_one_of_several_and_transitions_add_up(data):
    head = CombinedHead([SkipInfoNCE(weight=0.1), SkipPrediction(vector_size=4)])
    module = build(data, head, transition_weight=1.0)
    quiet_trainer(max_epochs=1).fit(module, data)
    plain = evaluate(module, data, num_resamples=0)
    penalised = evaluate(module, data, num_resamples=0, skip_penalty=2.0)
    assert penalised["skip_hit_rate@10"] < plain["skip_hit_rate@10"]


def test_a_checkpoint_keeps_head_penalty_and_temperature(data, trained, tmp_path):
    module, path = trained
    loaded = SkipCLModule.load_from_checkpoint(path, weights_only=True).eval()
    assert loaded.skip_penalty == 0
    loaded.skip_penalty = 0.5
    loaded.skip_prediction.temperature.fill_(1.5)
    trainer = quiet_trainer()
    trainer.strategy.connect(loaded)
    trainer.save_checkpoint(tmp_path / "dial.ckpt")
    again = SkipCLModule.load_from_checkpoint(tmp_path / "dial.ckpt", weights_only=True).eval()
    assert (again.skip_penalty, float(again.skip_prediction.temperature)) == (0.5, 1.5)
    expected = evaluate(module, data, num_resamples=0, skip_penalty=0.5)
    assert evaluate(again, data, num_resamples=0).sessions.equals(expected.sessions)


@torch.no_grad()
def test_recommendations_and_predictions_have_the_probability(data, trained):
    module, path = trained
    recommender = Recommender.from_checkpoint(path)
    batch = next(iter(data.test_dataloader()))[:1]
    length = int(batch.lengths[0])
    session = data.vocabulary.decode(batch.items[0, :length].numpy())
    frame = recommender.recommend(
        [session], [batch.feedback[0, :length].tolist()], top_k=5, exclude_skipped=False, skip_penalty=0.5
    )
    scores = dense_scores(module, batch, 0.5)[0, 1:].topk(5)
    query = module.model.session_query(batch)[0]
    expected = [1 / (1 + math.exp(listen_logit(module, query, int(i) + 1))) for i in scores.indices]
    assert frame["item_id"].to_list() == data.vocabulary.decode((scores.indices + 1).numpy())
    assert frame["score"].to_list() == pytest.approx(scores.values.tolist(), rel=1e-4)
    assert frame["skip_probability"].to_list() == pytest.approx(expected, abs=1e-5)
    predicted = pl.concat(quiet_trainer().predict(module, data))
    assert predicted["skip_probability"].is_between(0, 1).all()


def test_a_calibration_fits_the_validation_set(data, trained):
    module, _ = trained
    temperature = calibrate_skip_prediction(module, data)
    logits, listened = [], []
    with torch.no_grad():
        for batch in data.val_dataloader():
            query = module.model.session_query(batch)
            table = module.model.item_table
            logits += module.skip_prediction.listen_logits(query, batch.target[:, None], table)[:, 0].tolist()
            listened += (batch.target_feedback >= 0).tolist()

    def loss(value):
        signed = [x / value if y else -x / value for x, y in zip(logits, listened, strict=True)]
        return sum(math.log1p(math.exp(-x)) for x in signed)

    assert loss(temperature) <= min(loss(temperature * factor) for factor in (0.9, 0.99, 1.01, 1.1))
    table = compare_skip_predictions({"model": module, "item": ItemSkipRate(data)}, data)
    model, item = table["skip_auc"].to_list()
    assert model > item > 0.4
    module.skip_prediction.temperature.fill_(1.0)


def test_the_trade_off_chooses_the_largest_harmless_penalty(data, trained, tmp_path):
    module, _ = trained
    front = skip_trade_off(module, data, penalties=(4.0, 0.1), num_resamples=200)
    assert front.table["skip_penalty"].to_list() == [0.0, 0.1, 4.0]
    for penalty, hits, skips in front.table.select(
        "skip_penalty", "hit_rate@10", "skip_hit_rate@10"
    ).iter_rows():
        report = evaluate(module, data, split="validation", num_resamples=0, skip_penalty=penalty)
        assert (hits, skips) == (report["hit_rate@10"], report["skip_hit_rate@10"])
    first = front.table["skip_hit_rate@10"][0]
    harmless = front.table.filter(
        (pl.col("hit_rate_high") >= 0)
        & ((pl.col("skip_hit_rate@10") < first) | (pl.col("skip_penalty") == 0))
    )["skip_penalty"].to_list()
    assert front.penalty == max(harmless)
    assert front.table["skip_hit_rate_difference"].to_list()[0] == 0
    assert module.skip_penalty == 0
    path = front.save_plot(str(tmp_path / "front.png"))
    assert path == tmp_path / "front.png"
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("other", ["best.ckpt", torch.nn.Linear(2, 2)])
@pytest.mark.parametrize(
    "measure",
    [skip_trade_off, choose_transition_weight, calibrate_skip_prediction],
    ids=lambda one: one.__name__,
)
def test_another_object_than_a_module_is_refused_with_the_way_out(data, measure, other):
    kind = type(other).__name__
    with pytest.raises(
        TypeError, match=f"`module` must be a trained SkipCLModule, got {kind}. Load a checkp"
    ):
        measure(other, data)


def test_the_trade_off_may_spend_what_a_model_gained_over_another(data, trained):
    module, _ = trained
    popular = evaluate(Popularity(data.item_counts), data, split="validation", num_resamples=200)
    front = skip_trade_off(module, data, penalties=(1.0, 4.0, 300.0), reference=popular, num_resamples=200)
    differences = front.table["hit_rate@10"] - popular["hit_rate@10"]
    assert front.table["hit_rate_difference"].to_list() == pytest.approx(differences.to_list())
    own = skip_trade_off(module, data, penalties=(1.0, 4.0, 300.0), num_resamples=200)
    kept = front.table.filter(pl.col("hit_rate_high") >= 0)["skip_penalty"].to_list()
    assert front.penalty == max(kept)
    assert own.penalty < front.penalty
    other = evaluate(Popularity(data.item_counts), data, num_resamples=200)
    with pytest.raises(ValueError, match="must share the protocol, got split 'test' and 'validation'"):
        skip_trade_off(module, data, penalties=(1.0,), reference=other, num_resamples=200)


def test_the_trade_off_may_choose_transitions_and_penalty_together(data, trained, tmp_path):
    module, _ = trained
    popular = evaluate(Popularity(data.item_counts), data, split="validation", top_k=(10,), num_resamples=50)
    penalties, weights = (300.0, 1.0, 4.0), (1.0, 0.2)
    settings = {"penalties": penalties, "transition_weights": weights, "num_resamples": 50}
    front = skip_trade_off(module, data, reference=popular, **settings)
    assert (module.transition_weight, module.skip_penalty) == (0, 0)
    names = ["hit_rate@10", "skip_hit_rate@10", "skip_mrr@10"]
    values = {}
    for weight, penalty in product((0.0, *weights), (0.0, *penalties)):
        module.transition_weight = weight
        report = evaluate(module, data, split="validation", num_resamples=0, skip_penalty=penalty)
        values[weight, penalty] = tuple(report[name] for name in names)
    module.transition_weight = 0.0
    measured = front.table.select("transition_weight", "skip_penalty").rows()
    assert measured[0] == (0, 0)
    assert measured == sorted(measured)
    assert front.table.select(names).rows() == [values[pair] for pair in measured]
    kept = [pair for pair in values if values[pair][0] >= popular["hit_rate@10"]]
    assert (front.transition_weight, front.penalty) == min(kept, key=lambda pair: values[pair][2]) != (0, 0)
    assert front.save_plot(tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    # No pair keeps the hit rate of a perfect model.
    perfect = replace(popular, sessions=popular.sessions.with_columns(rank=pl.lit(1.0)))
    nearest = skip_trade_off(module, data, reference=perfect, **settings | {"transition_weights": (1.0,)})
    tried = nearest.table.select("transition_weight", "skip_penalty").rows()
    assert (nearest.transition_weight, nearest.penalty) == max(tried, key=lambda pair: values[pair][0])


def test_a_margin_asks_for_evidence_that_little_is_lost(data, trained):
    module, _ = trained
    penalties = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 300.0)
    chosen = {}
    for margin in (None, 0.001, 0.02, 0.5):
        front = skip_trade_off(module, data, penalties=penalties, margin=margin, num_resamples=200)
        chosen[margin] = front.penalty
        if margin is not None:
            fewer = pl.col("skip_hit_rate@10") < pl.col("skip_hit_rate@10").first()
            certain = front.table.filter(pl.col("hit_rate_low") >= -margin, fewer)["skip_penalty"].to_list()
            assert front.penalty == max(certain, default=0.0)
    assert chosen[0.001] <= chosen[0.02] < chosen[0.5] == 300
    assert chosen[0.001] <= chosen[None]
    popular = evaluate(Popularity(data.item_counts), data, split="validation", top_k=(10,), num_resamples=50)
    settings = {"penalties": penalties, "transition_weights": (0.2, 1.0), "num_resamples": 50}
    for margin in (0.02, 0.5):
        front = skip_trade_off(module, data, reference=popular, margin=margin, **settings)
        kept = front.table.filter(pl.col("hit_rate_low") >= -margin)
        best = kept.sort("skip_mrr@10", maintain_order=True).row(0, named=True)
        assert (front.transition_weight, front.penalty) == (best["transition_weight"], best["skip_penalty"])
    for wrong in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="`margin` must be"):
            skip_trade_off(module, data, margin=wrong, num_resamples=10)
        with pytest.raises(ValueError, match="`margin` must be"):
            SkipTradeOffTable(margin=wrong)


def test_what_cannot_be_is_named(data, trained, tmp_path, monkeypatch):
    module, _ = trained
    plain = build(data, SkipInfoNCE(weight=0.1))
    for penalty, message in ((-1.0, "got -1.0"), (math.nan, "got nan")):
        with pytest.raises(ValueError, match=f"`skip_penalty` must be .*{message}"):
            module.skip_penalty = penalty
        with pytest.raises(ValueError, match=f"`skip_penalty` must be .*{message}"):
            evaluate(module, data, num_resamples=0, skip_penalty=penalty)
    with pytest.raises(ValueError, match=r"must be or contain a `SkipPrediction`.*got SkipInfoNCE"):
        plain.skip_penalty = 0.1
    with pytest.raises(ValueError, match=r"must be or contain a `SkipPrediction`.*got None"):
        SkipCLModule(GRU4Rec(8), num_items=9, skip_penalty=0.1)
    with pytest.raises(ValueError, match="must be or contain a `SkipPrediction`"):
        skip_trade_off(plain, data, num_resamples=10)
    with pytest.raises(ValueError, match=r"`skip_penalty` must be None for a model .* for Popularity"):
        evaluate(Popularity(data.item_counts), data, skip_penalty=0.1)
    for wrong in (0.5, "0.5", iter([0.5])):
        with pytest.raises(TypeError, match=r"`penalties` must be a sequence of numbers, got .*Write one as"):
            skip_trade_off(module, data, penalties=wrong, num_resamples=10)
    with pytest.raises(ValueError, match=r"`penalties` must be in \[0, inf\), got -0.1"):
        skip_trade_off(module, data, penalties=(-0.1,), num_resamples=10)
    with pytest.raises(ValueError, match="`num_resamples` must be at least 1, got 0"):
        skip_trade_off(module, data, num_resamples=0)
    other = evaluate(Popularity(data.item_counts), data, split="validation", top_k=(5,), num_resamples=10)
    with pytest.raises(ValueError, match=r"`reference` must have `cut_off` 10 among .*, got \(5,\)"):
        skip_trade_off(module, data, reference=other, num_resamples=10)
    with pytest.raises(TypeError, match="`transition_weights` must be a sequence of numbers"):
        skip_trade_off(module, data, transition_weights=2.0, num_resamples=10)
    heard = data.log.with_columns(feedback=pl.lit(1.0))
    without = SessionDataModule(heard, max_length=12, split=SplitBySession(0.2, 0.2, targets="every"))
    fresh = build(without)
    with pytest.raises(ValueError, match="`data` must have skipped targets in its validation set, got none"):
        skip_trade_off(fresh, without, num_resamples=10)
    with pytest.raises(
        ValueError, match=r"must have skipped and listened validation targets, got .* listened"
    ):
        calibrate_skip_prediction(fresh, without)
    monkeypatch.setattr(skip_prediction, "_of_known_targets", lambda batches: [])
    with pytest.raises(ValueError, match="validation targets, got none that the training set has"):
        calibrate_skip_prediction(fresh, without)
