import inspect
import sys

import pytest
import torch
from torchmetrics import Metric, MetricTracker

from skipcl_lightning import metrics
from skipcl_lightning.evaluation.report_metrics import HIGHER_IS_BETTER, is_higher_better
from skipcl_lightning.functional import score_ranks
from skipcl_lightning.metrics import HitRate, RankingMetrics, SkipRankMetrics


def equal(left, right):
    return left.keys() == right.keys() and all(
        torch.equal(value, right[name]) for name, value in left.items()
    )


SCORES = torch.tensor([[0.3, 0.1, 0.7], [0.5, 0.5, 0.5], [0.2, 0.9, 0.4], [float("nan"), 0.1, 0.3]])
TARGETS = torch.tensor([0, 1, 1, 0])
HEARD = torch.tensor([1.0, -1.0, 0.1, -0.1])


@pytest.mark.parametrize("ties", ["pessimistic", "mean", "optimistic"])
def test_collections_rank_a_batch_once_for_all_their_metrics(ties, monkeypatch):
    calls = []
    plain = score_ranks

    def counted(*arguments, **settings):
        calls.append(1)
        return plain(*arguments, **settings)

    for name in ("session_metrics", "rank_metrics"):
        # By its full name: `session_metrics` is also the name of a function.
        module = sys.modules[f"skipcl_lightning.metrics.{name}"]
        monkeypatch.setattr(module, "score_ranks", counted)
    for collection in (
        RankingMetrics(top_k=[1, 2], ties=ties, prefix="val/"),
        SkipRankMetrics(3, top_k=[1, 2], ties=ties),
    ):
        calls.clear()
        from_ranks = collection.clone()
        by_forward = collection.clone()(SCORES, TARGETS, target_feedback=HEARD)
        assert len(calls) == 1
        collection.update(SCORES, TARGETS, target_feedback=HEARD)
        assert len(calls) == 2
        from_ranks.update(ranks=plain(SCORES, TARGETS, ties=ties), target_feedback=HEARD)
        assert equal(from_ranks.compute(), by_forward)
        assert equal(from_ranks.compute(), collection.compute())


def test_collections_hold_what_they_say():
    ranking, skips = RankingMetrics(top_k=[1, 2], postfix="/sampled100"), SkipRankMetrics(3, top_k=[1])
    ranking.update(SCORES, TARGETS, target_feedback=HEARD)
    skips.update(SCORES, TARGETS, target_feedback=HEARD)
    # By hand: ranks 2, 3, 1, 3 (NaN is last); listened 2 and 1, skipped 3 and 3.
    found = {name: round(float(value), 4) for name, value in (ranking.compute() | skips.compute()).items()}
    assert found == {
        "hit_rate@1/sampled100": 0.5,
        "hit_rate@2/sampled100": 1.0,
        "ndcg@1/sampled100": 0.5,
        "ndcg@2/sampled100": 0.8155,
        "mrr@1/sampled100": 0.5,
        "mrr@2/sampled100": 0.75,
        "num_listened/sampled100": 2,
        "skip_hit_rate@1": 0,
        "skip_mrr@1": 0,
        "delta_hit_rate@1": 0.5,
        "skip_rank_percentile": 1,
        "num_skipped": 2,
    }


def test_scores_without_a_target_are_named_by_the_collections_too():
    with pytest.raises(ValueError, match="`target` must be given unless `ranks` are, got None"):
        RankingMetrics().update(SCORES)


def test_repeats_and_explorations_are_counted_apart():
    seen = torch.tensor([True, False, True, False, True])
    ranks, feedback = torch.tensor([1, 2, 9, 1, 1]), torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0])
    for among, expected in (("all", 3 / 4), ("repeat", 1 / 2), ("explore", 1)):
        metric = HitRate(2, among=among)
        metric.update(ranks=ranks, target_feedback=feedback, target_seen=seen)
        assert metric.compute().item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="`target_seen` must be given to a metric among 'repeat' targets"):
        HitRate(2, among="repeat").update(ranks=ranks)
    with pytest.raises(ValueError, match="`among` must be one of 'all', 'repeat', 'explore', got 'new'"):
        HitRate(2, among="new")


def test_collections_refuse_ranks_beside_scores_and_keywords_they_do_not_know():
    for collection in (RankingMetrics(), SkipRankMetrics(3)):
        with pytest.raises(ValueError, match="`ranks` must be given without `preds` and `target`, got both"):
            collection.update(SCORES, TARGETS, ranks=TARGETS + 1, target_feedback=HEARD)
        with pytest.raises(TypeError, match="target_feedbak"):
            collection.update(SCORES, TARGETS, target_feedbak=HEARD)


# Whether higher is better, and the bounds of a plot, where they differ from (True, 0.0, 1.0).
OTHER_READINGS = {
    "DeltaHitRate": (True, -1.0, 1.0),
    "Novelty": (True, 0.0, None),
    "SkipBrierScore": (False, 0.0, 1.0),
    "SkipCalibrationError": (False, 0.0, 1.0),
    "SkipHitRate": (False, 0.0, 1.0),
    "SkipMRR": (False, 0.0, 1.0),
    "TargetCount": (None, 0.0, None),
}


def test_every_metric_says_how_to_read_it():
    for name in metrics.__all__:
        metric = getattr(metrics, name)
        if inspect.isclass(metric) and issubclass(metric, Metric):
            found = (metric.higher_is_better, metric.plot_lower_bound, metric.plot_upper_bound)
            assert found == OTHER_READINGS.get(name, (True, 0.0, 1.0)), name
            assert (metric.is_differentiable, metric.full_state_update) == (False, False), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_counts_stay_integers_in_another_precision(dtype):
    batch = {"ranks": torch.tensor([29, 30] * 800), "target_feedback": torch.tensor([-1.0, 1.0] * 800)}
    found, expected = metrics.SkipRankPercentile(30).set_dtype(dtype), metrics.SkipRankPercentile(30)
    for metric in (found, expected):
        for _ in range(50):
            metric.update(**batch)
    assert torch.equal(found.compute(), expected.compute())


def test_reports_and_metrics_agree_on_what_is_better():
    named = {**metrics.session_metrics(9, top_k=[1])}
    found = {name: metric.higher_is_better for name, metric in named.items() if "num_" not in name}
    assert {name: is_higher_better(name) for name in found} == found
    others = HIGHER_IS_BETTER.keys() - {name.split("@")[0] for name in found}
    assert {name: HIGHER_IS_BETTER[name] for name in others} == {
        "coverage": True,
        "novelty": None,
        "last_item_first": None,
        "last_item_next": None,
    }


@pytest.mark.parametrize("make", [lambda: RankingMetrics(top_k=[2]), lambda: SkipRankMetrics(3, top_k=[2])])
def test_a_tracker_finds_the_best_epoch_of_a_collection(make):
    metrics = make()
    better = {name: metric.higher_is_better for name, metric in metrics.items()}
    assert {name for name, value in better.items() if value is None} == {
        name for name in better if name.startswith("num_")
    }
    tracker = MetricTracker(metrics, maximize=[value is not False for value in better.values()])
    values = []
    for ranks in ([3, 1, 1, 3], [2, 3, 2, 2], [3, 2, 3, 2]):
        tracker.increment()
        tracker.update(ranks=torch.tensor(ranks), target_feedback=HEARD)
        values.append(tracker.compute())
    best, _ = tracker.best_metric(return_step=True)
    for name, value in best.items():
        of_epochs = [float(one[name]) for one in values]
        assert value == (min if better[name] is False else max)(of_epochs), name


@pytest.mark.parametrize("threshold", [0.0, 0.25])
def test_a_metric_is_updated_within_a_compiled_function(threshold):
    plain, metric = (HitRate(1, skip_threshold=threshold) for _ in range(2))
    update = torch.compile(lambda one, *some: one(*some[:2], target_feedback=some[2]), backend="eager")
    found = update(metric, SCORES, TARGETS, HEARD)
    torch.compiler.reset()
    assert torch.equal(found, plain(SCORES, TARGETS, target_feedback=HEARD))
    assert torch.equal(metric.compute(), plain.compute())
