import math

import pytest
import torch

from skipcl_lightning.functional import (
    full_softmax_loss,
    sample_items,
    sampled_softmax_loss,
    sampling_log_probability,
)


def random_problem(*, queries: int = 5, num_items: int = 11, size: int = 4):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(queries, size, generator=generator, dtype=torch.float64)
    table = torch.randn(num_items + 1, size, generator=generator, dtype=torch.float64) / 2
    target = torch.randint(1, num_items + 1, (queries,), generator=generator)
    return query, table, target


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def test_full_softmax_equals_the_formula_and_ignores_the_padding_row():
    query, table, target = random_problem()
    table[0] = 1e6
    losses = full_softmax_loss(query, table, target)
    for n, q in enumerate(query):
        total = sum(math.exp(dot(q, table[i])) for i in range(1, len(table)))
        assert losses[n].item() == pytest.approx(
            -math.log(math.exp(dot(q, table[target[n]])) / total), abs=1e-9
        )


@pytest.mark.parametrize("correct", [False, True])
def test_sampled_softmax_equals_the_formula_with_positives_masked_out(correct):
    query, table, target = random_problem()
    negatives = torch.tensor([1, int(target[0]), 7, 7])
    log_probability = sampling_log_probability(negatives, 11, sampler="log_uniform").double()
    losses = sampled_softmax_loss(
        query, table, target, negatives, negative_log_probability=log_probability if correct else None
    )
    for n, q in enumerate(query):
        own = math.exp(dot(q, table[target[n]]))
        total = own
        for item in negatives.tolist():
            expected_count = 4 * math.log((item + 1) / item) / math.log(12) if correct else 1.0
            total += 0.0 if item == target[n] else math.exp(dot(q, table[item])) / expected_count
        assert losses[n].item() == pytest.approx(-math.log(own / total), abs=1e-6)


@pytest.mark.parametrize("sampler", ["uniform", "log_uniform"])
def test_the_log_q_correction_estimates_the_full_softmax(sampler):
    # The wrong sign of the correction would miss by far; see tensorflow/recommenders #219.
    query, table, target = random_problem(num_items=300)
    generator = torch.Generator().manual_seed(1)
    negatives = torch.cat([sample_items(299, 300, sampler=sampler, generator=generator) for _ in range(2000)])
    log_probability = sampling_log_probability(negatives, 300, sampler=sampler).double()
    estimate = sampled_softmax_loss(query, table, target, negatives, negative_log_probability=log_probability)
    torch.testing.assert_close(estimate, full_softmax_loss(query, table, target), rtol=0, atol=0.02)


@pytest.mark.parametrize("sampler", ["uniform", "log_uniform"])
def test_samples_follow_their_stated_probability(sampler):
    generator = torch.Generator().manual_seed(2)
    draws = torch.cat([sample_items(9, 10, sampler=sampler, generator=generator) for _ in range(20_000)])
    assert draws.min() >= 1
    assert draws.max() <= 10
    frequency = torch.bincount(draws, minlength=11)[1:] / len(draws)
    stated = sampling_log_probability(torch.arange(1, 11), 10, sampler=sampler).exp()
    assert stated.sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(frequency, stated, rtol=0, atol=0.005)


@pytest.mark.parametrize("log_q", [False, True])
def test_gradients_pass_gradcheck(log_q):
    query, table, target = random_problem(queries=3, num_items=6)
    negatives = torch.tensor([1, 2, 5])
    correction = sampling_log_probability(negatives, 6).double() if log_q else None

    def loss(query, table):
        return sampled_softmax_loss(query, table, target, negatives, negative_log_probability=correction)

    assert torch.autograd.gradcheck(loss, (query.requires_grad_(), table.requires_grad_()))


def test_more_negatives_than_the_catalogue_is_an_error_with_the_way_out():
    with pytest.raises(ValueError, match=r"`num_samples` must be at most 9, got 10. .* use the full softmax"):
        sample_items(10, 10)


def test_bf16_losses_are_finite():
    query, table, target = random_problem()
    negatives = torch.tensor([1, 2, 3, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full = full_softmax_loss(query.float(), table.float(), target)
        sampled = sampled_softmax_loss(query.float(), table.float(), target, negatives)
    assert full.isfinite().all()
    assert sampled.isfinite().all()
