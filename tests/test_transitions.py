"""The share of the training set's transitions in the scores: counted, ranked, saved, loaded, recommended."""

import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from small_models import quiet_trainer

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.callbacks import ChooseTransitionWeight
from skipcl_lightning.data import SessionDataModule, datamodule, simulate_sessions
from skipcl_lightning.evaluation import choose_transition_weight, evaluate
from skipcl_lightning.functional import score_ranks
from skipcl_lightning.model import Transitions

WEIGHT = 2.0


@pytest.fixture(scope="module")
def data():
    return SessionDataModule(
        simulate_sessions(300, num_items=60, num_moods=4, seed=0), batch_size=32, max_length=12
    )


def build(data, **settings):
    torch.manual_seed(0)
    backbone = SASRec(8, max_length=12, num_layers=1)
    return SkipCLModule(backbone, None, num_items=data.num_items, transition_weight=WEIGHT, **settings)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    module = build(data)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, data)
    path = tmp_path_factory.mktemp("trained") / "model.ckpt"
    trainer.save_checkpoint(path)
    return module.eval(), path


def counts_by_hand(data, rule="next_listened"):
    """How often each item follows one item, and two adjacent items, by a loop."""
    after_one, after_two = Counter(), Counter()
    for batch in data.training_sessions():
        for items, feedback in zip(batch.items.tolist(), batch.feedback.tolist(), strict=True):
            for place, item in enumerate(items):
                later = [
                    other
                    for other, heard in zip(items[place + 1 :], feedback[place + 1 :], strict=True)
                    if other and (rule == "next" or heard >= 0)
                ]
                if item and later:
                    after_one[item, later[0]] += 1
                    if place:
                        after_two[items[place - 1], item, later[0]] += 1
    return after_one, after_two


def dense_scores(module, batch, counts, weight=WEIGHT):
    return add_counts(module.model.score(module.session_query(batch)).double(), batch, counts, weight)


def add_counts(scores, batch, counts, weight=WEIGHT):
    after_one, after_two = counts
    for row, (items, length) in enumerate(zip(batch.items.tolist(), batch.lengths.tolist(), strict=True)):
        last, before = items[length - 1], items[length - 2] if length > 1 else None
        for item in range(1, scores.shape[1]):
            scores[row, item] += weight * math.log1p(after_one[last, item])
            scores[row, item] += 3 * weight * math.log1p(after_two[before, last, item])
    return scores.float()


@pytest.mark.parametrize(("rule", "most_positions"), [("next", 1 << 20), ("next_listened", 8)])
def test_transitions_are_counted_in_ascending_order(data, rule, most_positions, monkeypatch):
    monkeypatch.setattr(datamodule, "_MOST_POSITIONS", most_positions)  # in one piece, and in many
    after_one, after_two = counts_by_hand(data, rule)
    width = data.num_items + 1
    for order, expected in (
        (1, sorted((item, follower, n) for (item, follower), n in after_one.items())),
        (2, sorted((i * width + j, follower, n) for (i, j, follower), n in after_two.items())),
    ):
        found = data.transition_counts(rule, order=order)
        assert list(zip(*(column.tolist() for column in found), strict=True)) == expected
    with pytest.raises(ValueError, match="`order` must be 1 or 2, got 3"):
        data.transition_counts(order=3)


@torch.no_grad()
def test_ranks_are_those_of_inner_product_and_counts(data, trained):
    module, _ = trained
    counts = counts_by_hand(data)
    report = evaluate(module, data, num_resamples=0)
    expected = []
    for batch in data.test_dataloader():
        scores = dense_scores(module, batch, counts)
        expected += score_ranks(scores[:, 1:], batch.target - 1).tolist()
    found = report.sessions["rank"].to_list()
    # Sums in another order may round two scores apart.
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 0.99 * len(found)
    assert found != evaluate_without(module, data)


def evaluate_without(module, data):
    module.transition_weight = 0.0
    try:
        return evaluate(module, data, num_resamples=0).sessions["rank"].to_list()
    finally:
        module.transition_weight = WEIGHT


def test_the_module_logs_what_the_report_has(data, trained):
    module, _ = trained
    (logged,) = quiet_trainer().test(module, data, verbose=False)
    report = evaluate(module, data, num_resamples=0)
    for name in ("hit_rate@10", "ndcg@10", "skip_hit_rate@10", "pairwise_skip_accuracy"):
        assert logged[f"test/{name}"] == pytest.approx(report[name], abs=1e-6)


def test_with_a_large_weight_the_transitions_decide(data, trained):
    module, _ = trained
    module.transition_weight = 1e4
    try:
        found = evaluate(module, data, num_resamples=0)
    finally:
        module.transition_weight = WEIGHT
    counts, hits = counts_by_hand(data), []
    for batch in data.test_dataloader():
        scores = dense_scores(module, batch, counts, weight=1e4)
        best = scores[:, 1:].argmax(dim=1) + 1
        hits += (best == batch.target)[batch.target_feedback >= 0].tolist()
    assert found["hit_rate@1"] == pytest.approx(sum(hits) / len(hits), abs=0.01)
    assert found["hit_rate@1"] > evaluate_hit_rate_without(module, data)


def evaluate_hit_rate_without(module, data):
    ranks, module.transition_weight = None, 0.0
    try:
        ranks = evaluate(module, data, num_resamples=0)
    finally:
        module.transition_weight = WEIGHT
    return ranks["hit_rate@1"]


def test_a_checkpoint_holds_the_transitions(data, trained):
    module, path = trained
    loaded = SkipCLModule.load_from_checkpoint(path, weights_only=True).eval()
    assert loaded.transition_weight == WEIGHT
    before, after = (evaluate(each, data, num_resamples=0) for each in (module, loaded))
    assert before.sessions.equals(after.sessions)


def test_training_resumes_with_the_same_transitions(data, trained):
    _, path = trained
    module = build(data)
    quiet_trainer(max_epochs=2).fit(module, data, ckpt_path=path, weights_only=True)
    for name, value in trained[0].model.transitions.state_dict().items():
        assert torch.equal(module.model.transitions.state_dict()[name], value)


def test_recommendations_and_predictions_use_them(data, trained):
    module, path = trained
    recommender = Recommender.from_checkpoint(path)
    batch = next(iter(data.test_dataloader()))
    counts = counts_by_hand(data)
    with torch.no_grad():
        scores = dense_scores(module, batch, counts)
    ids = data.vocabulary.decode(batch.items[0, : batch.lengths[0]].numpy())
    frame = recommender.recommend(
        [ids], [batch.feedback[0, : batch.lengths[0]].tolist()], top_k=5, exclude_skipped=False
    )
    best = scores[0, 1:].topk(5).values.tolist()
    assert frame["score"].to_list() == pytest.approx(best, rel=1e-5)
    (predicted, *_) = quiet_trainer().predict(module, data)
    with torch.no_grad():
        scores = dense_scores(module, next(iter(data.predict_dataloader())), counts)
    best = scores[0, 1:].topk(5).values.tolist()
    assert predicted["score"].head(5).to_list() == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_every_precision_ranks_by_exact_counts(data, trained, precision):
    module = build(data)
    trainer = quiet_trainer(precision=precision)
    trainer.fit(module, data)
    for table, other in zip(module.model.transitions, trained[0].model.transitions, strict=True):
        assert table.values.dtype == torch.float32
        assert torch.equal(table.values, other.values)
    (logged,) = trainer.test(module, data, verbose=False)
    assert all(math.isfinite(value) for value in logged.values())
    (predicted, *_) = trainer.predict(module, data)
    counts, expected = counts_by_hand(data), []
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        report = evaluate(module.eval(), data, num_resamples=0)
        for batch in data.test_dataloader():
            scores = wide_scores(module, batch, counts)
            expected += score_ranks(scores[:, 1:], batch.target - 1).tolist()
        best = wide_scores(module, next(iter(data.predict_dataloader())), counts)[0, 1:].max()
    found = report.sessions["rank"].to_list()
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 0.99 * len(found)
    assert logged["test/ndcg@10"] == pytest.approx(report["ndcg@10"], abs=0.01)
    assert predicted["score"][0] == pytest.approx(float(best), rel=1e-5)


def wide_scores(module, batch, counts):
    """Scores in float64 of the query and the table as they are, whatever their precision."""
    products = module.session_query(batch).double() @ module.item_table.double().T
    return add_counts(products, batch, counts)


def test_only_the_most_frequent_followers_are_kept():
    contexts, followers = torch.tensor([[1, 1, 1, 1, 3], [2, 3, 4, 5, 1]])
    kept = Transitions.from_counts(contexts, followers, torch.tensor([2, 7, 2, 9, 1]), most_followers=3)
    found = kept(torch.tensor([1, 2, 3, 0, 9]))
    assert found.items.tolist() == [[2, 3, 5], [0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert found.scores[0].tolist() == pytest.approx([math.log(3), math.log(8), math.log(10)])
    assert found.scores[1:].tolist() == [[0, 0, 0], [0, 0, pytest.approx(math.log(2))], [0, 0, 0], [0, 0, 0]]


def test_a_log_without_any_transition_adds_nothing():
    nothing = torch.zeros(0, dtype=torch.int64)
    found = Transitions.from_counts(nothing, nothing, nothing)(torch.tensor([1, 2]))
    assert found.items.shape == found.scores.shape == (2, 0)


def test_bad_settings_are_named(data):
    with pytest.raises(ValueError, match=r"`transition_weight` must be in \[0, inf\)"):
        SkipCLModule(SASRec(8), None, num_items=5, transition_weight=-1.0)
    with pytest.raises(ValueError, match=r"without counted transitions, got 2\.0"):
        evaluate(build(data), data, num_resamples=0)
    with pytest.raises(ValueError, match="`transition_weight` must be 0 without a `SessionDataModule`"):
        quiet_trainer(max_epochs=1).fit(build(data), data.train_dataloader(), data.val_dataloader())


@torch.no_grad()
def ndcg_by_hand(module, data, counts, weight):
    gains = []
    for batch in data.val_dataloader():
        scores = dense_scores(module, batch, counts, weight)
        for row, target in enumerate(batch.target.tolist()):
            if batch.target_feedback[row] >= 0:
                own = scores[row, target]
                rank = sum(1 for item in range(1, scores.shape[1]) if scores[row, item] >= own)
                gains.append(1 / math.log2(rank + 1) if rank <= 10 else 0.0)
    return sum(gains) / len(gains)


def test_the_weight_with_the_best_validation_ndcg_is_chosen(data, trained):
    module, _ = trained
    try:
        table = choose_transition_weight(module, data, weights=(0.0, 1.0, 30.0))
        chosen = module.transition_weight
    finally:
        module.transition_weight = WEIGHT
    counts = counts_by_hand(data)
    expected = [ndcg_by_hand(module, data, counts, weight) for weight in (0.0, 1.0, 30.0)]
    assert table["transition_weight"].to_list() == [0.0, 1.0, 30.0]
    assert table["ndcg@10"].to_list() == pytest.approx(expected, abs=5e-3)
    assert chosen == table["transition_weight"][table["ndcg@10"].arg_max()]


def test_the_difference_to_skipped_tracks_may_decide(data, trained):
    module, _ = trained
    try:
        table = choose_transition_weight(
            module, data, weights=(0.0, 1.0, 30.0), metric="delta_hit_rate@10", max_targets=200
        )
        chosen = module.transition_weight
    finally:
        module.transition_weight = WEIGHT
    differences = table["hit_rate@10"] - table["skip_hit_rate@10"]
    assert table["delta_hit_rate@10"].to_list() == pytest.approx(differences.to_list(), abs=1e-6)
    assert chosen == table["transition_weight"][differences.arg_max()]
    with pytest.raises(ValueError, match="`metric` must be one of"):
        choose_transition_weight(module, data, metric="mrr@10")
    with pytest.raises(ValueError, match="`metric` must be one of"):
        ChooseTransitionWeight(metric="mrr@10")
    with pytest.raises(TypeError, match="`weights` must be a sequence of numbers"):
        ChooseTransitionWeight(weights=iter([1.0]))
    assert ChooseTransitionWeight(weights=torch.tensor([0.0, 1.0], dtype=torch.float64).numpy()).weights == (
        0.0,
        1.0,
    )


def test_the_callback_hands_its_metric_on(data):
    module = build(data)
    callback = ChooseTransitionWeight(weights=(0.0, 1.0, 30.0), metric="delta_hit_rate@10")
    quiet_trainer(max_epochs=1, callbacks=[callback]).fit(module, data)
    chosen = module.transition_weight
    table = choose_transition_weight(module, data, weights=(0.0, 1.0, 30.0), metric="delta_hit_rate@10")
    assert chosen == module.transition_weight
    assert chosen != table["transition_weight"][table["ndcg@10"].arg_max()]


def test_a_part_of_the_targets_may_decide(data, trained):
    module, _ = trained
    try:
        part = choose_transition_weight(module, data, weights=(0.0, 1.0), max_targets=100)
        whole = choose_transition_weight(module, data, weights=(0.0, 1.0))
    finally:
        module.transition_weight = WEIGHT
    assert part["ndcg@10"].to_list() != whole["ndcg@10"].to_list()


def test_a_callback_chooses_before_each_validation_and_checkpoints_keep_the_choice(data, tmp_path):
    module = build(data)
    trainer = quiet_trainer(max_epochs=1, callbacks=[ChooseTransitionWeight(weights=(0.0, 5.0))])
    trainer.fit(module, data)
    assert module.transition_weight == 5.0
    assert trainer.callback_metrics["transition_weight"] == 5.0
    report = evaluate(module, data, split="validation", num_resamples=0)
    assert float(trainer.callback_metrics["val/ndcg@10"]) == pytest.approx(report["ndcg@10"], abs=1e-6)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = SkipCLModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert loaded.transition_weight == 5.0


def test_a_metric_without_targets_does_not_choose(data, trained):
    module, _ = trained
    listened = data.log.with_columns(feedback=pl.lit(1.0))
    without = SessionDataModule(listened, batch_size=32, max_length=8, vocabulary=data.vocabulary)
    with pytest.raises(
        ValueError, match="`metric` must have targets in the validation set, got 'delta_hit_ra"
    ):
        choose_transition_weight(module, without, metric="delta_hit_rate@10")
    assert module.transition_weight == WEIGHT


def test_the_first_of_equally_good_weights_is_chosen(data, trained):
    module, _ = trained
    try:
        for weights in ((2.0, 2.0 + 1e-12), (2.0 + 1e-12, 2.0)):
            table = choose_transition_weight(module, data, weights=weights)
            assert table["ndcg@10"].n_unique() == 1
            assert module.transition_weight == weights[0]
    finally:
        module.transition_weight = WEIGHT


def test_a_choice_without_transitions_is_refused(data):
    with pytest.raises(ValueError, match="got one without counted transitions"):
        choose_transition_weight(build(data), data)
    with pytest.raises(ValueError, match="`weights` must hold at least one weight"):
        choose_transition_weight(build(data), data, weights=())
    with pytest.raises(ValueError, match="`weights` must be in"):
        choose_transition_weight(build(data), data, weights=np.array([-1.0, 0.0]))
    for wrong in (1.0, iter([1.0])):
        with pytest.raises(TypeError, match="`weights` must be a sequence of numbers"):
            choose_transition_weight(build(data), data, weights=wrong)
    with pytest.raises(ValueError, match="`max_targets` must be at least 1"):
        choose_transition_weight(build(data), data, max_targets=0)
    with pytest.raises(ValueError, match="`rule` must be one of"):
        data.transition_counts(rule="last")
    with pytest.raises(TypeError, match="must be used with a SkipCLModule and a SessionDataModule"):
        quiet_trainer(max_epochs=1, callbacks=[ChooseTransitionWeight()]).fit(
            build(data), data.train_dataloader(), data.val_dataloader()
        )


def test_the_callback_leaves_a_module_without_transitions_alone(data):
    module = SkipCLModule(SASRec(8, max_length=12, num_layers=1), None, num_items=data.num_items)
    trainer = quiet_trainer(max_epochs=1, callbacks=[ChooseTransitionWeight()])
    trainer.fit(module, data)
    assert module.transition_weight == 0
    assert "transition_weight" not in trainer.callback_metrics


def test_a_checkpoint_brings_its_weight_into_a_module_of_another(data, trained, tmp_path):
    module, _ = trained
    trainer = quiet_trainer()
    module.transition_weight = 0.5
    try:
        trainer.strategy.connect(module)
        trainer.save_checkpoint(tmp_path / "chosen.ckpt")
        expected = evaluate(module, data, num_resamples=0)["ndcg@10"]
    finally:
        module.transition_weight = WEIGHT
    other = build(data)
    (logged,) = quiet_trainer().test(
        other, data, ckpt_path=tmp_path / "chosen.ckpt", weights_only=True, verbose=False
    )
    assert other.transition_weight == 0.5
    assert logged["test/ndcg@10"] == pytest.approx(expected, abs=1e-6)


def test_a_choice_does_not_change_the_training(data):
    tables = []
    for callbacks in ([], [ChooseTransitionWeight(weights=(0.0, 1.0))]):
        torch.manual_seed(3)
        module = build(data)
        quiet_trainer(max_epochs=2, callbacks=callbacks).fit(module, data)
        tables.append(module.model.item_table.detach().clone())
    assert torch.equal(*tables)


@pytest.mark.filterwarnings(
    "ignore:You're using the WeightAveraging callback with a model that overrides the configure_model",
    "ignore:SWA is currently only supported every epoch",
)
@pytest.mark.parametrize("settings", [{}, {"history_length": 5}])
@pytest.mark.parametrize(
    "make",
    [
        lambda: EMAWeightAveraging(decay=0.5, use_buffers=False),
        lambda: StochasticWeightAveraging(1e-3, swa_epoch_start=1),
    ],
)
def test_averages_of_weights_have_the_transitions_and_the_history(tmp_path, make, settings):
    log = simulate_sessions(80, num_items=30).with_columns(
        user_id=pl.col("session_id") % 10,
        timestamp=pl.datetime(2024, 1, 1) + pl.duration(hours="session_id", minutes="position"),
    )
    data = SessionDataModule(log, batch_size=16, max_length=12, **settings)
    plain = build(data)
    quiet_trainer(max_epochs=1).fit(plain, data)
    module = build(data)
    trainer = quiet_trainer(max_epochs=3, callbacks=[make()])
    trainer.fit(module, data)
    for name, value in plain.model.transitions.state_dict().items():
        assert torch.equal(module.model.transitions.state_dict()[name], value), name
    assert (module.model.history_embedding is None) == (not settings)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    trainer.save_checkpoint(tmp_path / "averaged.ckpt")
    resumed = build(data)
    quiet_trainer(max_epochs=4, callbacks=[make()]).fit(resumed, data, ckpt_path=tmp_path / "averaged.ckpt")
    assert torch.equal(resumed.model.transitions[1].values, plain.model.transitions[1].values)


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")
def test_an_average_of_integers_is_refused(data):
    trainer = quiet_trainer(callbacks=[EMAWeightAveraging()])
    with pytest.raises(ValueError, match="`use_buffers` must be False for EMAWeightAveraging, got True"):
        trainer.fit(build(data), data)
    quiet_trainer(callbacks=[EMAWeightAveraging()], limit_val_batches=0).fit(
        SkipCLModule(SASRec(8, max_length=12, num_layers=1), None, num_items=data.num_items), data
    )
