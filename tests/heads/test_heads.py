import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional import (
    bpr_max_loss,
    chunked_sampled_softmax_loss,
    chunked_softmax_loss,
    full_softmax_loss,
    gbce_loss,
    sample_items,
    sampled_softmax_loss,
    skip_info_nce,
)
from skipcl_lightning.heads import (
    GBCE,
    BPRMax,
    FullSoftmax,
    SampledSoftmax,
    SkipInfoNCE,
    SkipMargin,
    SkipSoftmax,
    SkipUnlikelihood,
    WeightedHead,
    next_item,
)


def session_batch(**changes):
    fields = {
        "items": torch.tensor([[5, 3, 4], [2, 1, 0]]),
        "feedback": torch.tensor([[1.0, -0.5, 0.0], [-1.0, 1.0, 0.0]]),
    }
    return SessionBatch(**{**fields, **changes})


def query_and_keys(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 4, generator=generator), torch.randn(2, 3, 4, generator=generator)


@pytest.mark.parametrize(
    "settings",
    [
        {"anchors": "all"},
        {"anchors": "all", "negatives": "past"},
        {"negatives": "batch"},
        {"skip_weights": "strength"},
        {"temperature": 0.7},
    ],
)
def test_every_setting_reaches_the_formula(settings):
    query, keys = query_and_keys()
    batch = session_batch()
    loss = SkipInfoNCE(**settings)(query, keys, batch)
    torch.testing.assert_close(loss, skip_info_nce(query, keys, batch, **settings))
    assert not torch.isclose(loss, SkipInfoNCE()(query, keys, batch)) or settings.get("negatives") == "past"


def test_the_item_query_contrasts_the_item_itself():
    query, keys = query_and_keys()
    batch = session_batch()
    loss = SkipInfoNCE(query="item")(query, keys, batch)
    torch.testing.assert_close(loss, skip_info_nce(keys, keys, batch))


def test_the_threshold_is_the_batchs():
    query, keys = query_and_keys()
    assert SkipInfoNCE()(query, keys, session_batch()) > 0
    assert SkipInfoNCE()(query, keys, session_batch(skip_threshold=-0.9)) == 0


def test_a_learned_temperature_gets_a_gradient_and_stays_positive():
    head = SkipInfoNCE(learn_temperature=True)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        head(*query_and_keys(), session_batch()).backward()
        assert head.log_temperature.grad != 0
        optimizer.step()
        assert head.temperature > 0
    assert not list(SkipInfoNCE().parameters())


@pytest.mark.parametrize(("logarithm", "bound"), [(-50.0, 0.01), (50.0, 100.0)])
def test_a_learned_temperature_stays_within_bounds_and_may_return(logarithm, bound):
    head = SkipInfoNCE(learn_temperature=True)
    head.log_temperature.data.fill_(logarithm)
    assert head.temperature.item() == pytest.approx(bound)
    head.temperature.log().backward()
    assert head.log_temperature.grad.item() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"`temperature` must be in \[0.01, 100\]"):
        SkipInfoNCE(learn_temperature=True, temperature=bound * bound)
    assert SkipInfoNCE(temperature=0.001).temperature.item() == pytest.approx(0.001)


def test_a_fixed_temperature_travels_in_the_state():
    head = SkipInfoNCE(temperature=0.1)
    head.load_state_dict(SkipInfoNCE(temperature=0.5).state_dict())
    assert head.temperature.item() == pytest.approx(0.5)


def test_full_softmax_averages_over_targets_only():
    query, _ = query_and_keys()
    table = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([[3, 0, 0], [5, 1, 0]])
    expected = full_softmax_loss(query[target > 0], table, target[target > 0]).mean()
    torch.testing.assert_close(FullSoftmax()(query, table, target), expected)


@pytest.mark.parametrize(
    "head", [FullSoftmax(), SampledSoftmax(2), SampledSoftmax(2, correct_sampling=True), GBCE(2), BPRMax(2)]
)
def test_without_targets_a_next_item_loss_is_exactly_zero_with_a_zero_gradient(head):
    query, _ = query_and_keys()
    table = torch.randn(6, 4, requires_grad=True)
    loss = head(query, table, torch.zeros(2, 3, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert not table.grad.any()


def test_corrected_sampled_softmax_is_near_the_full_one_on_average():
    generator = torch.Generator().manual_seed(3)
    query, table = torch.randn(1, 4, 4, generator=generator) / 2, torch.randn(101, 4, generator=generator) / 2
    target = torch.tensor([[3, 50, 7, 99]])
    torch.manual_seed(0)
    head = SampledSoftmax(99, sampler="log_uniform", correct_sampling=True)
    mean = torch.stack([head(query, table, target) for _ in range(200)]).mean()
    torch.testing.assert_close(mean, FullSoftmax()(query, table, target), rtol=0, atol=0.05)


def test_log_uniform_samples_are_corrected_by_their_own_probability():
    generator = torch.Generator().manual_seed(3)
    query, table = torch.randn(1, 1, 4, generator=generator), torch.randn(7, 4, generator=generator)
    head = SampledSoftmax(5, sampler="log_uniform", correct_sampling=True)
    torch.manual_seed(1)
    loss = head(query, table, torch.tensor([[2]]))
    torch.manual_seed(1)
    drawn = sample_items(5, 6, sampler="log_uniform").tolist()
    own = math.exp(float(query[0, 0] @ table[2]))
    total = own
    for item in drawn:
        if item != 2:
            probability = math.log((item + 1) / item) / math.log(7)
            total += math.exp(float(query[0, 0] @ table[item])) / (5 * probability)
    assert loss.item() == pytest.approx(-math.log(own / total), rel=1e-5)


@pytest.mark.parametrize(
    ("head", "formula", "settings"),
    [
        (GBCE, gbce_loss, {"calibration": 0.3}),
        (BPRMax, bpr_max_loss, {"regularisation": 0.2}),
    ],
)
def test_settings_and_weights_of_a_sampled_loss_reach_the_formula(head, formula, settings):
    query, _ = query_and_keys()
    table = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    target, weight = torch.tensor([[3, 0, 0], [5, 1, 0]]), torch.tensor([[2.0, 1.0, 1.0], [0.5, 1.0, 3.0]])
    torch.manual_seed(1)
    loss = head(9, sampler="log_uniform", **settings)(query, table, target, weight)
    torch.manual_seed(1)
    negatives = sample_items(9, 39, sampler="log_uniform")
    losses = formula(query[target > 0], table, target[target > 0], negatives, **settings)
    torch.testing.assert_close(loss, (losses * torch.tensor([2.0, 0.5, 1.0])).sum() / 3.5)


@pytest.mark.parametrize("wrong", [-1, 6])
@pytest.mark.parametrize("head", [FullSoftmax(), FullSoftmax(1), SampledSoftmax(3), GBCE(3), BPRMax(3)])
def test_a_target_that_is_no_item_is_refused(head, wrong):
    target = torch.tensor([[1, 0, wrong]])
    with pytest.raises(ValueError, match=rf"`target` must hold indices in 1..5, got {wrong}"):
        head(torch.ones(1, 3, 2), torch.ones(6, 2), target)
    for loss in (full_softmax_loss, chunked_softmax_loss):
        with pytest.raises(ValueError, match="`target` must hold indices"):
            loss(torch.ones(2, 2), torch.ones(6, 2), target[0, ::2])
    for loss in (sampled_softmax_loss, chunked_sampled_softmax_loss):
        with pytest.raises(ValueError, match="`target` must hold indices"):
            loss(torch.ones(2, 2), torch.ones(6, 2), target[0, ::2], torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SkipInfoNCE(weight=-1.0), r"`weight` must be in \[0, inf\), got -1.0"),
        (lambda: SkipInfoNCE(query="z"), "`query` must be one of 'session', 'item', got 'z'"),
        (lambda: SampledSoftmax(0), "`num_negatives` must be at least 1"),
        (lambda: SampledSoftmax(4, sampler="zipf"), "`sampler` must be one of"),
        (lambda: GBCE(0), "`num_negatives` must be at least 1"),
        (lambda: GBCE(4, sampler="zipf"), "`sampler` must be one of"),
        (lambda: BPRMax(4, regularisation=-1.0), r"`regularisation` must be in \[0, inf\), got -1.0"),
        (lambda: GBCE(4, calibration=1.5), r"`calibration` must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_settings_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_heads_rebuild_from_their_settings():
    head = SkipInfoNCE(weight=0.3, negatives="batch", learn_temperature=True)
    assert SkipInfoNCE(**head.settings).settings == head.settings
    assert head.settings["negatives"] == "batch"


@given(
    real=st.lists(st.booleans(), min_size=1, max_size=40),
    more=st.integers(0, 30),
    step=st.sampled_from([1, 4, 128]),
)
def test_the_places_that_a_gpu_computes_at_are_those_with_a_target_first(real, more, step):
    mask = torch.tensor(real)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(next_item, "_ROUND", step)
        places, is_real = next_item._few_places(mask, sum(real) + more)
    assert len(places) == min(len(real), -(-(sum(real) + more) // step) * step)
    assert places[is_real].tolist() == [place for place, one in enumerate(real) if one]
    assert int(is_real.sum()) == sum(real)


def test_a_compiled_step_keeps_all_positions_and_weighs_those_without_a_target_with_zero(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    query = torch.ones(1, 3, 2)
    query[0, 1] = torch.nan
    target, weight = torch.tensor([[4, 0, 2]]), torch.tensor([[2.0, 3.0, 0.5]])
    found = next_item.real_positions(query, target, weight)
    assert found[0].isfinite().all()
    assert found[1].tolist() == [4, 1, 2]
    assert found[2].tolist() == [2.0, 0.0, 0.5]


class OnGPU(torch.Tensor):
    """A tensor on the CPU that says it is on a GPU."""

    device = property(lambda self: torch.device("cuda"))


def test_a_gpu_returns_few_positions_and_all_that_have_a_target(monkeypatch):
    monkeypatch.setattr(next_item, "_ROUND", 1)
    query = torch.tensor([[[1.0], [math.nan], [3.0], [math.nan]]]).as_subclass(OnGPU)
    target, weight = torch.tensor([[4, 0, 2, 0]]), torch.tensor([[2.0, 3.0, 0.5, 1.0]])
    found = next_item.real_positions(query, target, weight, most_targets=3)
    assert [tensor.tolist() for tensor in found] == [[[1.0], [3.0], [0.0]], [4, 2, 4], [2.0, 0.5, 0.0]]


def test_a_head_gets_the_item_table_only_if_it_says_so():
    assert not WeightedHead(weight=1.0).uses_item_table
    assert not SkipMargin().uses_item_table
    assert SkipInfoNCE().uses_item_table


def test_the_defaults_are_those_of_the_documentation():
    shared = {"anchors": "listened", "skip_weights": "uniform", "dislike_weight": 1.0, "like_weight": 1.0}
    passed = {**shared, "negatives": "passed", "weight": 0.1}
    assert SkipSoftmax().settings == {**passed, "num_samples": 256}
    assert SkipUnlikelihood().settings == {**passed, "num_samples": None}
    assert SkipMargin().settings == {**passed, "loss": "bpr", "margin": None}
    assert SkipInfoNCE().settings == {
        **shared,
        "weight": 0.1,
        "negatives": "session",
        "temperature": 0.1,
        "learn_temperature": False,
        "query": "session",
        "num_hardest": None,
        "bank_size": 0,
        "gather_ranks": False,
        "mined_positive_weight": 0.5,
    }
    assert SampledSoftmax().settings == {
        "num_negatives": 256,
        "sampler": "uniform",
        "correct_sampling": False,
    }
    assert BPRMax().settings == {"num_negatives": 256, "regularisation": 1.0, "sampler": "uniform"}
    assert GBCE().settings == {"num_negatives": 256, "calibration": 0.75, "sampler": "uniform"}


def test_a_head_shows_its_settings():
    shown = repr(SkipInfoNCE(weight=0.5, negatives="batch"))
    assert shown.startswith("SkipInfoNCE(weight=0.5, temperature=0.1, ")
    assert "negatives='batch'" in shown
