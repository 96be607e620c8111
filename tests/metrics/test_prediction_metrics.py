import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from prediction_processes import SHARDS, build_metrics, compute_all, eight_targets, refusals, update_all
from torchmetrics.functional.classification import binary_calibration_error

from skipcl_lightning.functional import (
    brier_score,
    calibration_bins,
    calibration_error,
    correct_predictions,
    session_accuracy,
)
from skipcl_lightning.metrics import (
    FirstPredictionAccuracy,
    MeanAverageAccuracy,
    SkipAccuracyByPlace,
    SkipAUC,
    SkipBrierScore,
    SkipCalibrationError,
    skip_prediction_metrics,
)

# Multiples of 1/8 are on the edges of bins and tie often; no value is lost in 1 - p.
PROBABILITIES = st.one_of(
    st.integers(0, 8).map(lambda n: n / 8), st.integers(0, 4096).map(lambda n: n / 4096)
)
FEEDBACK = st.sampled_from([-1.0, -0.25, 0.0, 1.0, math.nan])
# By (session, place), so that each target comes once.
TARGETS = st.dictionaries(
    st.tuples(st.integers(0, 3), st.integers(1, 5)), st.tuples(PROBABILITIES, FEEDBACK), max_size=14
)


def as_tensors(targets):
    rows = list(targets.items())
    return {
        "skip_predictions": torch.tensor([p for _, (p, _) in rows], dtype=torch.float32),
        "target_feedback": torch.tensor([f for _, (_, f) in rows], dtype=torch.float32),
        "place": torch.tensor([place for (_, place), _ in rows], dtype=torch.int64),
        "session_index": torch.tensor([session for (session, _), _ in rows], dtype=torch.int64),
    }


def known(targets):
    """(session, place, probability, skipped) of the targets that count, in order."""
    return [(s, t, p, f < 0) for (s, t), (p, f) in sorted(targets.items()) if not math.isnan(f)]


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def is_correct(probability, skipped):
    return probability > 0.5 if skipped else probability < 0.5


def slow_auc(rows):
    skips, listens = [p for *_, p, y in rows if y], [p for *_, p, y in rows if not y]
    return mean(1.0 if a > b else 0.5 if a == b else 0.0 for a in skips for b in listens)


def slow_calibration_error(rows, num_bins):
    total = 0.0
    for k in range(num_bins):
        lower, upper = k / num_bins, (k + 1) / num_bins
        inside = [(p, y) for *_, p, y in rows if lower <= p < upper or (k == num_bins - 1 and p == 1)]
        if inside:
            total += len(inside) / len(rows) * abs(mean(p for p, _ in inside) - mean(y for _, y in inside))
    return total if rows else math.nan


def slow_session_accuracies(rows):
    """The evaluation of the WSDM Cup 2019: (average accuracy, first one correct) of each session."""
    found = []
    for session in sorted({s for s, *_ in rows}):
        hits, total, first = 0, 0.0, None
        own = [is_correct(p, y) for s, _, p, y in rows if s == session]
        for number, hit in enumerate(own, start=1):
            first = hit if first is None else first
            if hit:
                hits += 1
                total += hits / number
        found.append((total / len(own), first))
    return found


def slow_values(targets):
    rows = known(targets)
    sessions = slow_session_accuracies(rows)
    return {
        "skip_auc": slow_auc(rows),
        "skip_brier_score": mean((p - y) ** 2 for *_, p, y in rows),
        "skip_calibration_error": slow_calibration_error(rows, 4),
        "mean_average_accuracy": mean(average for average, _ in sessions),
        "first_prediction_accuracy": mean(first for _, first in sessions),
    }


@hypothesis.given(targets=TARGETS)
def test_every_metric_equals_a_slow_loop(targets):
    metrics = skip_prediction_metrics(num_bins=4)
    metrics.update(**as_tensors(targets))
    found = {name: value.item() for name, value in metrics.compute().items()}
    assert found == pytest.approx(slow_values(targets), nan_ok=True, abs=1e-6)


@hypothesis.given(targets=TARGETS)
def test_accuracy_at_each_place_equals_a_slow_loop(targets):
    metric = SkipAccuracyByPlace(3)
    tensors = as_tensors(targets)
    del tensors["session_index"]
    places = [[is_correct(p, y) for _, t, p, y in known(targets) if min(t, 3) == at] for at in (1, 2, 3)]
    assert metric(**tensors).tolist() == pytest.approx([mean(one) for one in places], nan_ok=True)


@hypothesis.given(targets=TARGETS, data=st.data())
def test_no_order_and_no_split_into_batches_changes_a_bit(targets, data):
    whole, split = (
        [skip_prediction_metrics(num_bins=4), SkipAccuracyByPlace(3)],
        [skip_prediction_metrics(num_bins=4), SkipAccuracyByPlace(3)],
    )
    shuffled = dict(data.draw(st.permutations(list(targets.items()))))
    cut = data.draw(st.integers(0, len(targets)))
    for metrics, parts in ((whole, [slice(None)]), (split, [slice(0, cut), slice(cut, None)])):
        tensors = as_tensors(targets if metrics is whole else shuffled)
        for part in parts:
            batch = {name: tensor[part] for name, tensor in tensors.items()}
            metrics[0].update(**batch)
            metrics[1].update(**metrics[1]._filter_kwargs(**batch))
    ours, others = ({**one[0].compute(), "by_place": one[1].compute()} for one in (whole, split))
    for name, value in ours.items():
        # The AUC comes from torchmetrics, in float64.
        if name == "skip_auc":
            torch.testing.assert_close(value, others[name], equal_nan=True)
        else:
            assert torch.equal(value.nan_to_num(-9), others[name].nan_to_num(-9)), name


@hypothesis.given(targets=TARGETS)
def test_the_auc_depends_on_the_order_of_predictions_alone(targets):
    tensors = as_tensors(targets)
    plain = SkipAUC()(tensors["skip_predictions"], tensors["target_feedback"])
    logits = 9 * tensors["skip_predictions"].double() - 4
    stretched = SkipAUC(from_logits=True)(logits, tensors["target_feedback"])
    torch.testing.assert_close(plain, stretched, equal_nan=True)


@hypothesis.given(targets=TARGETS)
def test_swapping_skips_and_listens_changes_no_symmetric_metric(targets):
    tensors = as_tensors(targets)
    metrics, mirrored = skip_prediction_metrics(num_bins=4), skip_prediction_metrics(num_bins=4)
    metrics.update(**tensors)
    feedback = torch.where(tensors["target_feedback"] < 0, 1.0, -1.0)
    feedback = torch.where(tensors["target_feedback"].isnan(), math.nan, feedback)
    opposite = 1 - tensors["skip_predictions"].double()
    mirrored.update(**tensors | {"skip_predictions": opposite, "target_feedback": feedback})
    left, right = metrics.compute(), mirrored.compute()
    for name in set(left) - {"skip_calibration_error"}:  # its bins are closed at the left
        torch.testing.assert_close(left[name], right[name], equal_nan=True, atol=1e-6, rtol=0)


def test_logits_are_read_as_the_probabilities_that_they_stand_for():
    targets = eight_targets()
    probability = targets["skip_predictions"].double()
    for metrics, predictions in (
        (skip_prediction_metrics(), probability),
        (skip_prediction_metrics(from_logits=True), probability.logit()),
    ):
        metrics.update(**targets | {"skip_predictions": predictions})
        found = {name: round(value.item(), 5) for name, value in metrics.compute().items()}
        assert found["skip_brier_score"] == 0.23625
        # 16 pairs: 0.8 and 0.9 win all, 0.3 wins one and ties once, 0.2 wins one.
        assert found["skip_auc"] == pytest.approx((4 + 4 + 1.5 + 1) / 16, abs=1e-5)
    # torchmetrics itself would take these for probabilities, because all are in [0, 1].
    metric = SkipBrierScore(from_logits=True)
    assert metric(torch.zeros(2), torch.tensor([1.0, -1.0])).item() == 0.25


def test_the_calibration_error_equals_that_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(500, generator=generator, dtype=torch.float64)
    skipped = torch.rand(500, generator=generator) < 0.3
    expected = binary_calibration_error(probability, skipped.long(), n_bins=15, norm="l1")
    metric = SkipCalibrationError(15)
    value = metric(probability, torch.where(skipped, -1.0, 1.0))
    torch.testing.assert_close(value, expected.float(), atol=1e-6, rtol=0)
    bins = calibration_bins(probability, skipped, num_bins=15)
    torch.testing.assert_close(calibration_error(bins), expected)
    assert metric.bins.num_targets.tolist() == bins.num_targets.tolist()
    assert metric.bins.outcome.tolist() == bins.outcome.tolist()
    torch.testing.assert_close(metric.bins.probability, bins.probability, atol=1e-6, rtol=0)


def test_a_missing_prediction_gets_the_worst_value_and_not_the_best():
    rows = {"place": torch.tensor([1, 1]), "session_index": torch.tensor([0, 1])}
    metrics = skip_prediction_metrics()
    metrics.update(torch.full((2,), math.nan), torch.tensor([1.0, -1.0]), **rows)
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values == {
        "skip_auc": 0,
        "skip_brier_score": 1,
        "skip_calibration_error": 1,
        "mean_average_accuracy": 0,
        "first_prediction_accuracy": 0,
    }
    unknown, skipped = torch.full((1,), math.nan), torch.tensor([True])
    assert brier_score(unknown, skipped).item() == 1
    assert not correct_predictions(unknown, skipped).any()
    assert calibration_bins(unknown, skipped).num_targets.sum() == 0


def test_metrics_of_nobody_are_undefined():
    metrics = skip_prediction_metrics()
    empty = {name: tensor[:0] for name, tensor in eight_targets().items()}
    metrics.update(**empty)
    assert all(value.isnan() for value in metrics.compute().values())
    metrics.reset()
    metrics.update(**eight_targets() | {"target_feedback": torch.full((8,), math.nan)})
    assert all(value.isnan() for value in metrics.compute().values())
    correct = torch.zeros(0, dtype=torch.bool)
    assert session_accuracy(correct, empty["session_index"], empty["place"]).average_accuracy.shape == (0,)


def test_the_auc_of_one_outcome_is_undefined_without_a_warning():
    assert SkipAUC()(torch.tensor([0.1, 0.9]), torch.tensor([1.0, 1.0])).isnan()
    assert SkipAUC()(torch.tensor([0.1, 0.9]), torch.tensor([-1.0, -1.0])).isnan()


def test_a_probability_that_rounding_moves_above_1_is_no_logit():
    metric = SkipAUC()
    metric.update(torch.tensor([1 + 1e-6, 0.5]), torch.tensor([-1.0, 1.0]))
    metric.update(torch.tensor([0.9]), torch.tensor([1.0]))
    assert metric.compute().item() == 1


@pytest.mark.parametrize("prediction", [-0.5, 3.0, math.inf, -math.inf])
def test_logits_in_the_place_of_probabilities_are_refused(prediction):
    found = refusals(prediction)
    assert len(found) == 6
    for message in found:
        assert f"`skip_predictions` must be probabilities in [0, 1], got {prediction:g}. For" in message
        assert "make the metric with `from_logits=True`" in message


@pytest.mark.parametrize("prediction", [1 + 2.0**-7, -1e-7])
def test_rounding_out_of_0_to_1_is_no_error(prediction):
    assert not refusals(prediction)
    metric = SkipBrierScore()
    assert metric(torch.tensor([prediction]), torch.tensor([1.0])).item() == round(prediction)


def test_predictions_of_unknown_outcomes_are_not_checked():
    metric = SkipBrierScore()
    metric.update(torch.tensor([7.0, 0.5]), torch.tensor([math.nan, 1.0]))
    assert metric.compute().item() == 0.25


def test_a_logit_in_one_process_is_refused_in_all(two_processes):
    for rank in range(2):
        messages = torch.load(two_processes / f"refusals_{rank}.pt")
        assert len(messages) == 6
        assert all("got 3.5. For logits" in message for message in messages)


def test_the_auc_of_all_ties_is_a_half():
    assert SkipAUC()(torch.full((3,), 0.7), torch.tensor([1.0, -1.0, -1.0])).item() == 0.5


def test_the_threshold_says_which_targets_were_skipped():
    predictions, feedback = torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.8])
    assert SkipAUC(skip_threshold=0.5)(predictions, feedback).item() == 1
    assert SkipBrierScore(skip_threshold=0.5)(predictions, feedback).item() == pytest.approx(0.01)
    place = torch.tensor([1, 2])
    assert SkipAccuracyByPlace(1, skip_threshold=0.5)(predictions, feedback, place).item() == 1


def test_an_early_mistake_costs_more_than_a_late_one():
    feedback, places, session = torch.ones(3), torch.tensor([5, 6, 7]), torch.zeros(3, dtype=torch.int64)
    early = MeanAverageAccuracy()(torch.tensor([0.9, 0.1, 0.1]), feedback, places, session)
    late = MeanAverageAccuracy()(torch.tensor([0.1, 0.1, 0.9]), feedback, places, session)
    assert early.item() == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert late.item() == pytest.approx(2 / 3)
    assert FirstPredictionAccuracy()(torch.tensor([0.9, 0.1, 0.1]), feedback, places, session).item() == 0


def test_a_target_that_comes_twice_counts_once():
    targets = eight_targets()
    once, twice = MeanAverageAccuracy(), MeanAverageAccuracy()
    for metric, times in ((once, 1), (twice, 2)):
        for _ in range(times):
            metric.update(**targets)
    assert torch.equal(once.compute(), twice.compute())


def test_metrics_with_other_settings_do_not_share_their_states():
    metrics = skip_prediction_metrics(skip_threshold=0.0)
    for name, metric in skip_prediction_metrics(skip_threshold=0.5).items():
        metrics.add_metrics({f"{name} at half": metric})
    # On this batch all outcomes agree under both thresholds.
    first = eight_targets() | {"target_feedback": torch.tensor([1.0, -1, 1, -1, -1, 1, 1, -1])}
    metrics.update(**first)
    metrics.update(**eight_targets() | {"session_index": torch.arange(8) + 9})
    values = metrics.compute()
    assert values["mean_average_accuracy"] != values["mean_average_accuracy at half"]
    assert values["skip_brier_score"] != values["skip_brier_score at half"]
    assert values["skip_auc"] != values["skip_auc at half"]


def test_processes_with_uneven_shards_equal_one(two_processes):
    metrics = build_metrics()
    update_all(metrics, eight_targets())
    expected = compute_all(metrics)
    assert all(value.isfinite().all() for value in expected.values())
    for rank in range(2):
        for epoch in torch.load(two_processes / f"predictions_{rank}.pt"):
            assert epoch.keys() == expected.keys()
            for name, value in epoch.items():
                assert torch.equal(value, expected[name]), name


def test_errors_are_better_lower_and_the_others_higher():
    better = {type(metric): metric.higher_is_better for metric in skip_prediction_metrics().values()}
    errors = {SkipBrierScore, SkipCalibrationError}
    assert errors < better.keys()
    assert better == {kind: kind not in errors for kind in better}


def test_a_process_without_a_batch_adds_nothing(two_processes):
    metrics = build_metrics()
    update_all(metrics, {name: tensor[SHARDS[0]] for name, tensor in eight_targets().items()})
    expected = compute_all(metrics)
    for rank in range(2):
        found = torch.load(two_processes / f"of_the_first_alone_{rank}.pt")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True)


def test_of_a_target_that_comes_twice_a_wrong_prediction_counts():
    one, skipped = torch.ones(2, dtype=torch.int64), torch.tensor([-1.0, -1.0])
    for predictions in ([0.9, 0.1], [0.1, 0.9]):
        assert MeanAverageAccuracy()(torch.tensor(predictions), skipped, one, one) == 0


@pytest.mark.parametrize("place", [0, 2**20])
def test_places_out_of_their_range_are_refused(place):
    number = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"`place` must hold indices in 1..1048575, got {place}"):
        MeanAverageAccuracy().update(torch.ones(1), torch.ones(1), number + place, number)


def test_predictions_that_are_no_floating_point_numbers_are_refused():
    with pytest.raises(TypeError, match="`skip_predictions` must be of a floating-point dtype"):
        SkipAUC()(torch.ones(2, dtype=torch.int64), torch.ones(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SkipAccuracyByPlace(0), "`num_places` must be at least 1, got 0"),
        (lambda: SkipCalibrationError(0), "`num_bins` must be at least 1, got 0"),
        (lambda: SkipAUC(skip_threshold=-1.0), r"`skip_threshold` must be in \(-1, 1\]"),
        (lambda: SkipBrierScore(skip_threshold=math.nan), r"`skip_threshold` must be in \(-1, 1\]"),
        (
            lambda: SkipAUC()(torch.ones(2), torch.ones(3)),
            r"`target_feedback` must have shape \[N=2\], got \[3\]",
        ),
        (
            lambda: MeanAverageAccuracy()(
                torch.ones(2), torch.ones(2), torch.ones(1, dtype=torch.int64), torch.zeros(2)
            ),
            r"`place` must have shape \[N=2\]",
        ),
    ],
)
def test_bad_settings_and_shapes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
