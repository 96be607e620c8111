import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.functional import (
    chunked_sampled_softmax_loss,
    sampled_softmax_loss,
    sampling_log_probability,
)

DTYPE = torch.float64


def inputs(num_queries, num_items=7, size=3, num_negatives=5, dtype=DTYPE, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    query = scale * torch.randn(num_queries, size, generator=generator, dtype=DTYPE)
    table = scale * torch.randn(num_items + 1, size, generator=generator, dtype=DTYPE)
    target = torch.randint(1, num_items + 1, (num_queries,), generator=generator)
    negatives = torch.randint(1, num_items + 1, (num_negatives,), generator=generator)
    weight = torch.rand(num_queries, generator=generator, dtype=DTYPE) + 0.1
    parameters = [tensor.to(dtype).requires_grad_() for tensor in (query, table)]
    return parameters, target, negatives, weight.to(dtype)


def corrections(negatives, correct):
    return sampling_log_probability(negatives, 7, sampler="log_uniform").to(DTYPE) if correct else None


def plain(parameters, target, negatives, weight, correction=None):
    losses = sampled_softmax_loss(*parameters, target, negatives, negative_log_probability=correction)
    return (losses * weight).sum() / weight.sum()


def gradients(loss, parameters):
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


@given(
    num_queries=st.integers(1, 12),
    num_negatives=st.integers(1, 9),
    chunk_size=st.integers(1, 13),
    weighted=st.booleans(),
    correct=st.booleans(),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 50),
)
def test_it_is_the_plain_loss_and_its_gradient(
    num_queries, num_negatives, chunk_size, weighted, correct, scale, seed
):
    parameters, target, negatives, weight = inputs(
        num_queries, num_negatives=num_negatives, seed=seed, scale=scale
    )
    if not weighted:
        weight = torch.ones_like(weight)
    correction = corrections(negatives, correct)
    expected = gradients(plain(parameters, target, negatives, weight, correction), parameters)
    loss = chunked_sampled_softmax_loss(
        *parameters,
        target,
        negatives,
        weight if weighted else None,
        negative_log_probability=correction,
        chunk_size=chunk_size,
    )
    for found, right in zip(gradients(loss, parameters), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)


def test_it_is_the_formula():
    parameters, target, negatives, weight = inputs(6)
    query, table = (tensor.detach() for tensor in parameters)
    total = 0.0
    for n in range(6):
        own = math.exp(dot(query[n], table[target[n]]))
        others = [math.exp(dot(query[n], table[i])) for i in negatives.tolist() if i != target[n]]
        total -= weight[n].item() * math.log(own / (own + sum(others)))
    found = chunked_sampled_softmax_loss(*parameters, target, negatives, weight, chunk_size=4)
    assert found.item() == pytest.approx(total / weight.sum().item(), abs=1e-12)


@pytest.mark.parametrize("correct", [False, True])
def test_the_gradient_is_that_of_the_loss(correct):
    parameters, target, negatives, weight = inputs(5)
    correction = corrections(negatives, correct)
    assert torch.autograd.gradcheck(
        lambda q, e: chunked_sampled_softmax_loss(
            q, e, target, negatives, weight, negative_log_probability=correction, chunk_size=2
        ),
        parameters,
    )


def test_what_comes_after_the_loss_scales_the_gradient():
    parameters, target, negatives, _ = inputs(5)
    loss = chunked_sampled_softmax_loss(*parameters, target, negatives)
    once = torch.autograd.grad(loss, parameters, retain_graph=True)
    thrice = torch.autograd.grad(3 * loss, parameters)
    for one, three in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * one, three)


@pytest.mark.parametrize("wanted", ["query", "table", "neither"])
def test_only_what_is_learned_gets_a_gradient(wanted):
    (query, table), target, negatives, _ = inputs(5)
    query.requires_grad_(wanted == "query")
    table.requires_grad_(wanted == "table")
    loss = chunked_sampled_softmax_loss(query, table, target, negatives)
    assert loss.requires_grad == (wanted != "neither")
    if loss.requires_grad:
        loss.backward()
    assert (query.grad is not None, table.grad is not None) == (wanted == "query", wanted == "table")


def test_no_queries_give_exactly_nothing():
    parameters, target, negatives, _ = inputs(0)
    loss, _, table_gradient = gradients(
        chunked_sampled_softmax_loss(*parameters, target, negatives), parameters
    )
    assert loss == 0
    assert (table_gradient == 0).all()


def test_a_query_whose_negatives_all_are_its_target_loses_nothing():
    parameters, target, _, _ = inputs(3)
    negatives = target[:1].repeat(4)
    loss, query_gradient, _ = gradients(
        chunked_sampled_softmax_loss(*parameters, target[:1].repeat(3), negatives), parameters
    )
    assert loss == 0
    assert (query_gradient == 0).all()


def test_sparse_gradients_hold_the_rows_used_alone():
    (query, table), target, negatives, _ = inputs(2)
    expected = gradients(chunked_sampled_softmax_loss(query, table, target, negatives), (query, table))
    loss = chunked_sampled_softmax_loss(query, table, target, negatives, sparse_gradients=True)
    loss.backward()
    used = sorted({*target.tolist(), *negatives.tolist()})
    assert table.grad.coalesce().indices().flatten().tolist() == used
    torch.testing.assert_close(table.grad.to_dense(), expected[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_comes_near_and_sums_are_exact(dtype):
    parameters, target, negatives, _ = inputs(64, 500, 16, 100, dtype=torch.float32)
    expected = gradients(chunked_sampled_softmax_loss(*parameters, target, negatives), parameters)
    low = [tensor.detach().to(dtype).requires_grad_() for tensor in parameters]
    found = gradients(chunked_sampled_softmax_loss(*low, target, negatives, chunk_size=7), low)
    assert found[0].dtype == torch.float32
    assert [part.dtype for part in found[1:]] == [dtype, dtype]
    torch.testing.assert_close(found[0], expected[0], rtol=0.01, atol=0.01)
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert torch.nn.functional.cosine_similarity(one.float().ravel(), other.ravel(), dim=0) > 0.999


def test_under_autocast_products_are_low_and_parameters_get_their_own_type():
    parameters, target, negatives, _ = inputs(64, 500, 16, 100, dtype=torch.float32)
    expected = gradients(chunked_sampled_softmax_loss(*parameters, target, negatives), parameters)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked_sampled_softmax_loss(*parameters, target, negatives)
    found = gradients(loss, parameters)
    assert [part.dtype for part in found] == [torch.float32] * 3
    assert not torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0], rtol=0.01, atol=0.01)


def test_within_a_compiled_step_it_is_the_plain_formula():
    parameters, target, negatives, weight = inputs(6)

    def step(query, table):
        return chunked_sampled_softmax_loss(query, table, target, negatives, weight)

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    expected = gradients(plain(parameters, target, negatives, weight), parameters)
    for found, right in zip(gradients(compiled(*parameters), parameters), expected, strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": torch.ones(3)}, ValueError, "`query` must have"),
        ({"item_embeddings": torch.ones(8, 2, dtype=DTYPE)}, ValueError, "`item_embeddings`"),
        ({"target": torch.ones(4, dtype=torch.int32)}, TypeError, "`target`"),
        ({"negatives": torch.ones(2, 2, dtype=torch.int64)}, ValueError, "`negatives`"),
        ({"negative_log_probability": torch.ones(3)}, ValueError, "`negative_log_probability`"),
        ({"weight": torch.ones(3)}, ValueError, "`weight`"),
        ({"chunk_size": 0}, ValueError, "`chunk_size`"),
    ],
)
def test_bad_input_is_named(change, error, message):
    (query, table), target, negatives, _ = inputs(4)
    arguments = {"query": query, "item_embeddings": table, "target": target, "negatives": negatives}
    with pytest.raises(error, match=message):
        chunked_sampled_softmax_loss(**(arguments | change))


def test_float16_holds_the_gradients_of_improbable_negatives():
    """A probability of 1 / K times a weight of 1 / N is below its smallest number."""
    (query, table), _, negatives, _ = inputs(4096, 5000, num_negatives=2000, dtype=torch.float32)
    target = torch.randint(1, 9, (4096,), generator=torch.Generator().manual_seed(0))
    expected = gradients(chunked_sampled_softmax_loss(query, table, target, negatives), [query, table])
    with torch.autocast("cpu", dtype=torch.float16):
        loss = chunked_sampled_softmax_loss(query, table, target, negatives)
    found = gradients(loss, [query, table])
    for one, right in ((found[1], expected[1]), (found[2], expected[2]), (found[2][9:], expected[2][9:])):
        assert (one - right).norm() < 0.01 * right.norm()
