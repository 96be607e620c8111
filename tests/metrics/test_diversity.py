import math

import hypothesis
import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import strategies as st
from torchmetrics import MetricCollection

from skipcl_lightning.functional import mean_self_information, self_information
from skipcl_lightning.metrics import CatalogueCoverage, Novelty

mpl.use("agg")

NUM_ITEMS = 7
COUNTS = torch.tensor([0, 5, 0, 1, 2, 0, 9, 3])
LISTS = st.lists(st.lists(st.integers(0, NUM_ITEMS), min_size=4, max_size=4), max_size=12)


def as_tensor(lists):
    return torch.tensor(lists, dtype=torch.int64).reshape(-1, 4)


@hypothesis.given(lists=LISTS, top_k=st.integers(1, 4))
def test_values_equal_a_count_by_hand_and_are_nan_of_nothing(lists, top_k):
    coverage, novelty = CatalogueCoverage(NUM_ITEMS, top_k), Novelty(COUNTS, top_k)
    recommended = [item for row in lists for item in row[:top_k] if item]
    total = sum(COUNTS.tolist()) + NUM_ITEMS
    bits = [-math.log2((int(COUNTS[item]) + 1) / total) for item in recommended]
    expected = len(set(recommended)) / NUM_ITEMS if recommended else math.nan
    assert coverage(as_tensor(lists)).item() == pytest.approx(expected, nan_ok=True)
    expected = sum(bits) / len(bits) if bits else math.nan
    assert novelty(as_tensor(lists)).item() == pytest.approx(expected, rel=1e-5, nan_ok=True)


@hypothesis.given(lists=LISTS, data=st.data())
def test_no_split_into_batches_and_no_order_changes_a_bit(lists, data):
    shuffled = as_tensor(data.draw(st.permutations(lists)))
    cut = data.draw(st.integers(0, len(lists)))
    for build in (lambda: CatalogueCoverage(NUM_ITEMS, 3), lambda: Novelty(COUNTS, 3)):
        whole, split = build(), build()
        whole.update(as_tensor(lists))
        split.update(shuffled[:cut])
        split(shuffled[cut:])
        assert torch.equal(whole.compute().nan_to_num(-9), split.compute().nan_to_num(-9))
        states = whole.metric_state, split.metric_state
        assert all(torch.equal(state, states[1][name]) for name, state in states[0].items())
        assert all(state.shape == (NUM_ITEMS + 1,) for state in states[0].values())


def test_they_share_one_count_of_the_same_lists_and_only_of_those():
    metrics = MetricCollection(
        {
            "coverage": CatalogueCoverage(NUM_ITEMS, 3),
            "novelty": Novelty(COUNTS, 3),
            "coverage of the first": CatalogueCoverage(NUM_ITEMS, 1),
        }
    )
    metrics.update(torch.tensor([[1, 1, 1]]))
    metrics.update(torch.tensor([[1, 2, 3]]))
    groups = {frozenset(group) for group in metrics.compute_groups.values()}
    assert groups == {frozenset({"coverage", "novelty"}), frozenset({"coverage of the first"})}
    values = metrics.compute()
    assert values["coverage"].item() == pytest.approx(3 / 7)
    assert values["coverage of the first"].item() == pytest.approx(1 / 7)


def test_all_items_alike_carry_the_information_of_their_number():
    information = self_information(torch.tensor([0] + [3] * 8))
    assert information.tolist() == pytest.approx([0] + [3] * 8)
    assert mean_self_information(torch.arange(9), information).item() == pytest.approx(3)


def test_information_stays_out_of_the_state_dict():
    metric = Novelty(COUNTS, 2)
    metric.persistent(True)
    assert list(metric.state_dict()) == ["recommended_2"]
    assert metric(torch.tensor([[6, 6]])).item() == pytest.approx(-math.log2(10 / 27), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_of_another_precision_changes_no_value(dtype):
    lists = torch.randint(1, 7, (20_000, 2))
    parent = torch.nn.ModuleList([Novelty(COUNTS, 2)]).to(dtype)
    assert torch.equal(parent[0](lists), Novelty(COUNTS, 2)(lists))


def test_they_plot():
    for metric in (CatalogueCoverage(NUM_ITEMS, 2), Novelty(COUNTS, 2)):
        metric.update(torch.tensor([[1, 2]]))
        figure, _ = metric.plot()
        assert figure.axes
        plt.close(figure)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: CatalogueCoverage(0), ValueError, "`num_items` must be at least 1"),
        (lambda: CatalogueCoverage(5, 0), ValueError, "`top_k` must be at least 1"),
        (lambda: Novelty(torch.ones(5)), TypeError, "`item_counts` must be of dtype torch.int64"),
        (
            lambda: CatalogueCoverage(5, 3).update(torch.ones(2, 2, dtype=torch.int64)),
            ValueError,
            "`recommended` must have at least `top_k` = 3 columns, got 2",
        ),
        (
            lambda: CatalogueCoverage(5, 1).update(torch.ones(2, dtype=torch.int64)),
            ValueError,
            r"`recommended` must have shape \[N, K\], got \[2\]",
        ),
    ],
)
def test_bad_arguments_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_higher_is_better():
    assert CatalogueCoverage.higher_is_better is True
    assert Novelty.higher_is_better is True
