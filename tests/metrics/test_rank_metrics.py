import math
import pickle

import hypothesis
import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
import torchmetrics
from hypothesis import strategies as st

from skipcl_lightning.metrics import (
    MAP,
    MRR,
    NDCG,
    DeltaHitRate,
    HitRate,
    PairwiseSkipAccuracy,
    SkipHitRate,
    SkipMRR,
    SkipRankPercentile,
    TargetCount,
)

mpl.use("agg")

NUM_ITEMS = 12
RANKS = st.integers(2, 2 * NUM_ITEMS).map(lambda doubled: doubled / 2)
FEEDBACK = st.sampled_from([-1.0, -0.5, -0.25, 0.0, 0.5, 1.0, math.nan])
TARGETS = st.lists(st.tuples(RANKS, FEEDBACK), max_size=30)
METRICS = {
    "HitRate": lambda: HitRate(3),
    "NDCG": lambda: NDCG(3),
    "MRR": lambda: MRR(3),
    "MAP": lambda: MAP(3),
    "SkipHitRate": lambda: SkipHitRate(3),
    "SkipMRR": lambda: SkipMRR(3),
    "DeltaHitRate": lambda: DeltaHitRate(3),
    "SkipRankPercentile": lambda: SkipRankPercentile(NUM_ITEMS),
    "TargetCount": lambda: TargetCount("listened"),
    "TargetCount of skips": lambda: TargetCount("skipped"),
}


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def slow_values(targets, top_k=3, threshold=0.0):
    listened = [rank for rank, feedback in targets if feedback >= threshold]
    skipped = [rank for rank, feedback in targets if feedback < threshold]
    reciprocal = [mean(1 / rank if rank <= top_k else 0 for rank in ranks) for ranks in (listened, skipped)]
    hits = [mean(rank <= top_k for rank in ranks) for ranks in (listened, skipped)]
    return {
        "HitRate": hits[0],
        "NDCG": mean(1 / math.log2(1 + rank) if rank <= top_k else 0 for rank in listened),
        "MRR": reciprocal[0],
        "MAP": reciprocal[0],
        "SkipHitRate": hits[1],
        "SkipMRR": reciprocal[1],
        "DeltaHitRate": hits[0] - hits[1],
        "SkipRankPercentile": mean((rank - 1) / (NUM_ITEMS - 1) for rank in skipped),
        "TargetCount": len(listened),
        "TargetCount of skips": len(skipped),
    }


def as_tensors(targets):
    return {
        "ranks": torch.tensor([rank for rank, _ in targets]),
        "target_feedback": torch.tensor([feedback for _, feedback in targets]),
    }


@hypothesis.given(targets=TARGETS)
def test_values_equal_a_count_by_hand_and_are_nan_where_undefined(targets):
    expected = slow_values(targets)
    for name, build in METRICS.items():
        value = build()(**as_tensors(targets)).item()
        assert value == pytest.approx(expected[name], rel=1e-6, abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize("name", METRICS)
@hypothesis.given(targets=TARGETS, data=st.data())
def test_no_split_into_batches_and_no_order_changes_a_bit(name, targets, data):
    whole, split = METRICS[name](), METRICS[name]()
    whole.update(**as_tensors(targets))
    shuffled = data.draw(st.permutations(targets))
    cut = data.draw(st.integers(0, len(targets)))
    split.update(**as_tensors(shuffled[:cut]))
    split(**as_tensors(shuffled[cut:]))  # `forward` accumulates as `update` does
    assert whole.metric_state.keys() == split.metric_state.keys()
    assert all(torch.equal(state, split.metric_state[key]) for key, state in whole.metric_state.items())
    assert torch.equal(whole.compute().nan_to_num(-9), split.compute().nan_to_num(-9))


@pytest.mark.parametrize("name", METRICS)
def test_states_are_integers_of_a_fixed_size(name):
    metric = METRICS[name]()
    sizes = {key: state.shape for key, state in metric.metric_state.items()}
    for _ in range(3):
        metric.update(ranks=torch.tensor([1.0, 1.5, 9.0]), target_feedback=torch.tensor([1.0, -1.0, -1.0]))
    assert {key: state.shape for key, state in metric.metric_state.items()} == sizes
    assert all(state.dtype == torch.int64 for state in metric.metric_state.values())


@pytest.mark.parametrize("ties", ["pessimistic", "mean", "optimistic"])
@pytest.mark.parametrize(
    ("scores", "ranks"),
    [
        ([-3.0, -1.0, -2.0, -4.0], {"pessimistic": 2, "mean": 2, "optimistic": 2}),
        ([-2.0, -2.0, -2.0, -2.0], {"pessimistic": 4, "mean": 2.5, "optimistic": 1}),
        ([0.0, math.inf, math.nan, -math.inf], {"pessimistic": 4, "mean": 4, "optimistic": 4}),
        ([math.nan, -1.0, 0.0, -math.inf], {"pessimistic": 2, "mean": 2, "optimistic": 2}),
    ],
)
def test_scores_are_ranked_by_the_metrics_own_tie_rule(scores, ranks, ties):
    metric = MRR(4, ties=ties)
    metric.update(torch.tensor([scores]), torch.tensor([2]))
    assert metric.compute().item() == pytest.approx(1 / ranks[ties])


def test_a_mean_tie_between_two_places_is_in_neither_cut_off_below():
    ranks = torch.tensor([2.5])
    assert [HitRate(top_k)(ranks=ranks).item() for top_k in (1, 2, 3)] == [0, 0, 1]


def test_ranks_that_start_at_zero_are_never_hits():
    assert HitRate(3)(ranks=torch.tensor([0, 0])).item() == 0
    assert MRR(3)(ranks=torch.tensor([0, 0])).item() == 0


def test_without_feedback_every_row_counts_in_either_population():
    ranks = torch.tensor([1, 2, 9])
    assert torch.equal(HitRate(2)(ranks=ranks), SkipHitRate(2)(ranks=ranks))
    assert SkipMRR(2)(ranks=ranks).item() == pytest.approx(0.5)
    assert TargetCount("skipped")(ranks=ranks).item() == 3


def test_the_threshold_moves_targets_between_the_populations():
    batch = {"ranks": torch.tensor([1, 5, 9]), "target_feedback": torch.tensor([0.2, 0.5, 0.8])}
    for threshold, listened in [(0.0, 3), (0.5, 2), (0.6, 1), (1.0, 0)]:
        assert TargetCount("listened", skip_threshold=threshold)(**batch).item() == listened
        assert TargetCount("skipped", skip_threshold=threshold)(**batch).item() == 3 - listened


@pytest.mark.parametrize("name", METRICS)
def test_clones_pickles_and_checkpoints_go_on_from_where_they_were(name):
    batch = {"ranks": torch.tensor([1, 2, 9, 3]), "target_feedback": torch.tensor([1.0, -1.0, -1.0, 0.3])}
    metric = METRICS[name]()
    metric.persistent(True)
    metric.update(**batch)
    restored = METRICS[name]()
    restored.persistent(True)
    restored.load_state_dict(metric.state_dict())
    restored.update(**batch)
    copies = [metric.clone(), pickle.loads(pickle.dumps(metric)), metric]  # noqa: S301 - our own bytes
    for copy in copies:
        copy.update(**batch)
        assert torch.equal(copy.compute(), restored.compute())
    metric.reset()
    metric.update(**batch)
    assert torch.equal(metric.compute(), METRICS[name]()(**batch))


@pytest.mark.parametrize("name", METRICS)
def test_constants_say_how_to_read_a_metric(name):
    metric = METRICS[name]()
    assert metric.is_differentiable is False
    assert metric.full_state_update is False
    better = {"SkipHitRate": False, "SkipMRR": False, "TargetCount": None, "TargetCount of skips": None}
    assert metric.higher_is_better is better.get(name, True)
    value = metric(ranks=torch.tensor([1, 2]), target_feedback=torch.tensor([1.0, -1.0]))
    bounds = {"DeltaHitRate": (-1.0, 1.0), "TargetCount": (0.0, None), "TargetCount of skips": (0.0, None)}
    assert (metric.plot_lower_bound, metric.plot_upper_bound) == bounds.get(name, (0.0, 1.0))
    assert metric.plot_lower_bound <= value <= (metric.plot_upper_bound or math.inf)


def test_values_can_be_plotted():
    metric = HitRate(3)
    values = [metric(ranks=torch.tensor([rank])) for rank in (1, 5)]
    figure, axes = metric.plot(values)
    assert axes.lines[0].get_ydata().tolist() == [1, 0]
    plt.close(figure)


def test_metrics_move_with_their_module():
    metric = HitRate(3)
    module = torch.nn.ModuleDict({"metric": metric}).to("meta")
    assert all(state.device.type == "meta" for state in metric.metric_state.values())
    assert not list(module.parameters())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "`preds` must be given unless `ranks` are, got None"),
        ({"target": torch.tensor([0])}, ValueError, "`preds` must be given unless `ranks` are"),
        ({"preds": torch.zeros(1, 2)}, ValueError, "`target` must be given unless `ranks` are"),
        (
            {"ranks": torch.tensor([1]), "preds": torch.zeros(1, 2), "target": torch.tensor([0])},
            ValueError,
            "`ranks` must be given without `preds` and `target`, got both",
        ),
        ({"preds": torch.zeros(2), "target": torch.tensor([0, 0])}, ValueError, "`preds` must have shape"),
        ({"preds": torch.zeros(2, 3), "target": torch.tensor([0])}, ValueError, "`target` must have shape"),
        ({"ranks": torch.tensor([[1]])}, ValueError, "`ranks` must have shape"),
        ({"ranks": torch.tensor([True])}, TypeError, "`ranks` must be of dtype torch.int64"),
        ({"ranks": torch.tensor([1.0]).half()}, TypeError, "`ranks` must be of dtype torch.int64"),
        (
            {"ranks": torch.tensor([1]), "target_feedback": torch.tensor([1.0, 1.0])},
            ValueError,
            r"`target_feedback` must have shape \[N=1\], got \[2\]",
        ),
    ],
)
def test_a_bad_batch_is_named_and_not_counted(arguments, error, message):
    metric = HitRate(3)
    with pytest.raises(error, match=message):
        metric.update(**arguments)
    assert all(not state.any() for state in metric.metric_state.values())


def test_a_difference_of_populations_needs_the_feedback():
    with pytest.raises(ValueError, match="`target_feedback` must be given, got None"):
        DeltaHitRate(3).update(ranks=torch.tensor([1]))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: HitRate(0), ValueError, "`top_k` must be at least 1, got 0"),
        (lambda: DeltaHitRate(2.0), TypeError, "`top_k` must be an integer"),
        (lambda: NDCG(ties="best"), ValueError, "`ties` must be one of"),
        (lambda: MRR(skip_threshold=-1), ValueError, r"`skip_threshold` must be in \(-1, 1\]"),
        (lambda: SkipRankPercentile(1), ValueError, "`num_items` must be at least 2"),
        (lambda: TargetCount("liked"), ValueError, "`population` must be one of 'listened', 'skipped'"),
        (lambda: PairwiseSkipAccuracy(top_k=3), ValueError, "Unexpected keyword arguments: `top_k`"),
    ],
)
def test_bad_settings_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_torchmetrics_agrees_where_its_definitions_do():
    generator = torch.Generator().manual_seed(0)
    # Distinct and positive: torchmetrics breaks ties by position and calls a score of 0 or less a miss.
    preds = torch.rand(40, 15, generator=generator) + 0.1
    target = torch.randint(0, 15, (40,), generator=generator)
    relevant = torch.nn.functional.one_hot(target, 15)
    queries = torch.arange(40)[:, None].expand(40, 15)
    for ours, theirs in [
        (HitRate(5), torchmetrics.retrieval.RetrievalHitRate(top_k=5)),
        (NDCG(5), torchmetrics.retrieval.RetrievalNormalizedDCG(top_k=5)),
        (MRR(5), torchmetrics.retrieval.RetrievalMRR(top_k=5)),
        (MAP(5), torchmetrics.retrieval.RetrievalMAP(top_k=5)),
    ]:
        value = theirs(preds.flatten(), relevant.flatten(), indexes=queries.flatten())
        torch.testing.assert_close(ours(preds, target), value)


@pytest.mark.parametrize("wrong", [-1, 4])
def test_a_target_that_is_no_column_is_named(wrong):
    with pytest.raises(ValueError, match=rf"`target` must hold indices in 0..3, got {wrong}"):
        HitRate().update(torch.zeros(2, 4), torch.tensor([0, wrong]))
