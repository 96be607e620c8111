import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from skipcl_lightning.functional import fit_temperature


def loss(logits, outcomes, temperature):
    """The formula, target by target."""
    total = 0.0
    for logit, outcome in zip(logits, outcomes, strict=True):
        scaled = logit / temperature
        # log(1 + exp(x)) - y x, without overflow
        total += max(scaled, 0) + math.log1p(math.exp(-abs(scaled))) - outcome * scaled
    return total / len(logits)


LOGITS = st.floats(-8, 8).map(lambda x: round(x, 3))
TARGETS = st.lists(st.tuples(LOGITS, st.sampled_from([0.0, 0.25, 1.0])), min_size=1, max_size=12)


@hypothesis.given(targets=TARGETS)
def test_no_temperature_of_a_grid_has_a_lower_loss(targets):
    logits, outcomes = zip(*targets, strict=True)
    temperature = fit_temperature(torch.tensor(logits), torch.tensor(outcomes))
    assert temperature.dtype == torch.float64
    assert 0.01 <= temperature.item() <= 100
    found = loss(logits, outcomes, temperature.item())
    grid = [0.01 * 1.05**step for step in range(189)]  # to 96
    assert all(found <= loss(logits, outcomes, one) + 1e-7 for one in grid)


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_the_temperature_of_simulated_outcomes_is_found(true):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    outcome = torch.rand(200_000, generator=generator, dtype=torch.float64) < (logits / true).sigmoid()
    assert fit_temperature(logits, outcome).item() == pytest.approx(true, rel=0.03)


@hypothesis.given(targets=TARGETS, factor=st.sampled_from([0.5, 2.0, 4.0]))
def test_logits_of_another_scale_have_a_temperature_of_that_scale(targets, factor):
    logits, outcomes = (torch.tensor(column, dtype=torch.float64) for column in zip(*targets, strict=True))
    plain, scaled = fit_temperature(logits, outcomes), fit_temperature(factor * logits, outcomes)
    # At the ends, the temperature is cut.
    hypothesis.assume(0.05 < plain < 20)
    torch.testing.assert_close(scaled, factor * plain, rtol=1e-6, atol=0)


@hypothesis.given(targets=TARGETS)
def test_it_does_not_depend_on_the_order_or_on_repetition(targets):
    logits, outcomes = (torch.tensor(column, dtype=torch.float64) for column in zip(*targets, strict=True))
    plain = fit_temperature(logits, outcomes)
    again = fit_temperature(logits.flip(0).repeat(2), outcomes.flip(0).repeat(2))
    hypothesis.assume(0.05 < plain < 20)
    torch.testing.assert_close(plain, again, rtol=1e-6, atol=0)
    assert torch.equal(plain, fit_temperature(logits, outcomes))


def test_logits_that_say_nothing_and_logits_that_say_everything_meet_the_ends():
    logits = torch.tensor([1.0, -1.0])
    assert fit_temperature(logits, torch.tensor([False, True])) == 100
    assert fit_temperature(torch.zeros(2), torch.tensor([False, True])) == 100
    assert fit_temperature(logits, torch.tensor([True, False])) == 0.01


def test_half_precision_is_fitted_in_float64():
    logits = torch.tensor([2.0, 2.0, 2.0, 2.0], dtype=torch.bfloat16)
    found = fit_temperature(logits, torch.tensor([True, True, True, False]))
    assert found.item() == pytest.approx(2 / math.log(3), rel=1e-12)


def test_no_target_and_a_wrong_dtype_are_named():
    with pytest.raises(ValueError, match="`logits` must hold at least one target, got none"):
        fit_temperature(torch.zeros(0), torch.zeros(0))
    with pytest.raises(TypeError, match=r"`outcome` must be of dtype torch\.bool or floating point, got"):
        fit_temperature(torch.zeros(1), torch.zeros(1, dtype=torch.int64))
