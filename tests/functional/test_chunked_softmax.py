import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.functional import chunked_softmax_loss, full_softmax_loss
from skipcl_lightning.heads import FullSoftmax

DTYPE = torch.float64


def inputs(num_queries, num_items=7, size=3, dtype=DTYPE, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    query = scale * torch.randn(num_queries, size, generator=generator, dtype=torch.float64)
    table = scale * torch.randn(num_items + 1, size, generator=generator, dtype=torch.float64)
    target = torch.randint(1, num_items + 1, (num_queries,), generator=generator)
    weight = torch.rand(num_queries, generator=generator, dtype=torch.float64) + 0.1
    return query.to(dtype).requires_grad_(), table.to(dtype).requires_grad_(), target, weight.to(dtype)


def plain(query, table, target, weight):
    losses = full_softmax_loss(query, table, target)
    return (losses * weight).sum() / weight.sum()


def gradients(loss, *tensors):
    return [loss.detach(), *torch.autograd.grad(loss, tensors)]


@given(
    num_queries=st.integers(1, 12),
    num_items=st.integers(1, 9),
    chunk_size=st.integers(1, 13),
    weighted=st.booleans(),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 50),
)
def test_it_is_the_plain_loss_and_its_gradient(num_queries, num_items, chunk_size, weighted, scale, seed):
    query, table, target, weight = inputs(num_queries, num_items, seed=seed, scale=scale)
    if not weighted:
        weight = torch.ones_like(weight)
    expected = gradients(plain(query, table, target, weight), query, table)
    loss = chunked_softmax_loss(query, table, target, weight if weighted else None, chunk_size=chunk_size)
    for found, right in zip(gradients(loss, query, table), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("length", [1.0, 4.0, 12.0])
def test_float32_is_right_to_a_hundred_thousandth(length):
    query, table, target, weight = inputs(50, 400, size=16, seed=1)
    with torch.no_grad():
        query *= 2
        table *= length / 4
    expected = gradients(plain(query, table, target, weight), query, table)
    single = [tensor.detach().float().requires_grad_() for tensor in (query, table)]
    found = gradients(chunked_softmax_loss(*single, target, weight.float(), chunk_size=9), *single)
    for one, right in zip(found, expected, strict=True):
        assert (one.double() - right).abs().max() < 1e-5 * right.abs().max()


def test_a_long_item_far_from_all_queries_costs_no_digits():
    query, table, target, weight = inputs(6, dtype=torch.float32)
    with torch.no_grad():
        query[:, 0] = 0
        query[3] *= 0.01
        table[5] = torch.tensor([5000.0, 0.0, 0.0])  # long, and at a right angle to all queries
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, table)]
    expected = gradients(plain(*exact, target, weight.double()), *exact)
    for chunk_size in (1, 4):
        loss = chunked_softmax_loss(query, table, target, weight, chunk_size=chunk_size)
        for one, right in zip(gradients(loss, query, table), expected, strict=True):
            torch.testing.assert_close(one.double(), right, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_loss():
    query, table, target, weight = inputs(5)
    assert torch.autograd.gradcheck(
        lambda q, e: chunked_softmax_loss(q, e, target, weight, chunk_size=2), (query, table)
    )


def test_what_comes_after_the_loss_scales_the_gradient():
    query, table, target, _ = inputs(5)
    once = gradients(chunked_softmax_loss(query, table, target), query, table)
    thrice = gradients(3 * chunked_softmax_loss(query, table, target), query, table)
    for one, three in zip(once[1:], thrice[1:], strict=True):
        torch.testing.assert_close(3 * one, three)


@pytest.mark.parametrize("wanted", ["query", "table", "neither"])
def test_only_what_is_learned_gets_a_gradient(wanted):
    query, table, target, _ = inputs(5)
    query.requires_grad_(wanted == "query")
    table.requires_grad_(wanted == "table")
    loss = chunked_softmax_loss(query, table, target)
    assert loss.requires_grad == (wanted != "neither")
    if loss.requires_grad:
        loss.backward()
    assert (query.grad is not None, table.grad is not None) == (wanted == "query", wanted == "table")


def test_no_queries_give_exactly_nothing():
    query, table, target, _ = inputs(0)
    loss, _, table_gradient = gradients(chunked_softmax_loss(query, table, target), query, table)
    assert loss == 0
    assert (table_gradient == 0).all()


def test_the_padding_row_is_no_candidate_and_gets_no_gradient():
    query, table, target, _ = inputs(4)
    with torch.no_grad():
        table[0] = 1e6
    loss, _, table_gradient = gradients(chunked_softmax_loss(query, table, target), query, table)
    assert torch.isfinite(loss)
    assert (table_gradient[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_comes_near_and_sums_are_exact(dtype):
    query, table, target, _ = inputs(64, 500, size=16, dtype=torch.float32)
    expected = gradients(chunked_softmax_loss(query, table, target), query, table)
    low = [tensor.detach().to(dtype).requires_grad_() for tensor in (query, table)]
    found = gradients(chunked_softmax_loss(*low, target, chunk_size=7), *low)
    assert found[0].dtype == torch.float32
    assert [part.dtype for part in found[1:]] == [dtype, dtype]
    torch.testing.assert_close(found[0], expected[0], rtol=0.01, atol=0.01)
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert torch.nn.functional.cosine_similarity(one.float().ravel(), other.ravel(), dim=0) > 0.999


def test_under_autocast_products_are_low_and_parameters_get_their_own_type():
    query, table, target, _ = inputs(64, 500, size=16, dtype=torch.float32)
    expected = gradients(chunked_softmax_loss(query, table, target), query, table)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked_softmax_loss(query, table, target)
    found = gradients(loss, query, table)
    assert [part.dtype for part in found] == [torch.float32] * 3
    assert not torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("chunk_size", [2048, 500])
def test_float16_holds_the_gradients_of_improbable_items(chunk_size):
    """A probability of 1 / V times a weight of 1 / N is below its smallest number."""
    query, table, _, _ = inputs(2048, 10_000, size=4, dtype=torch.float32)
    target = torch.randint(1, 9, (2048,), generator=torch.Generator().manual_seed(0))
    expected = gradients(chunked_softmax_loss(query, table, target), query, table)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = chunked_softmax_loss(query, table, target, chunk_size=chunk_size)
    found = gradients(loss, query, table)
    # Products are in float32, so the loss is exact.
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    for one, right in ((found[1], expected[1]), (found[2], expected[2]), (found[2][9:], expected[2][9:])):
        assert (one - right).norm() < 0.01 * right.norm()


def test_within_a_compiled_step_it_is_the_plain_formula():
    query, table, target, weight = inputs(6)

    def step(query, table):
        return chunked_softmax_loss(query, table, target, weight)

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    expected = gradients(plain(query, table, target, weight), query, table)
    for found, right in zip(gradients(compiled(query, table), query, table), expected, strict=True):
        torch.testing.assert_close(found, right)


def test_the_head_looks_at_positions_with_a_target_only():
    query, table, target, weight = inputs(6)
    head = FullSoftmax(chunk_size=2)
    padded = torch.cat([target, torch.zeros(2, dtype=torch.int64)]).reshape(2, 4)
    queries = torch.cat([query, torch.full((2, 3), torch.nan, dtype=DTYPE)]).reshape(2, 4, 3)
    weights = torch.cat([weight, torch.full((2,), 99.0, dtype=DTYPE)]).reshape(2, 4)
    torch.testing.assert_close(head(queries, table, padded, weights), plain(query, table, target, weight))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": torch.ones(3)}, ValueError, "`query` must have"),
        ({"item_embeddings": torch.ones(8, 2, dtype=DTYPE)}, ValueError, "`item_embeddings`"),
        ({"target": torch.ones(4, dtype=torch.int64)}, ValueError, "`target`"),
        ({"target": torch.ones(5)}, TypeError, "`target`"),
        ({"weight": torch.ones(4)}, ValueError, "`weight`"),
        ({"chunk_size": 0}, ValueError, "`chunk_size` must be at least 1"),
        ({"chunk_size": 2.0}, TypeError, "`chunk_size` must be an integer"),
    ],
)
def test_wrong_arguments_are_errors(change, error, message):
    query, table, target, _ = inputs(5)
    arguments = {"query": query, "item_embeddings": table, "target": target}
    with pytest.raises(error, match=message):
        chunked_softmax_loss(**arguments | change)


def second_derivative(loss, query):
    (gradient,) = torch.autograd.grad(loss.square(), query, create_graph=True)
    return torch.autograd.grad(gradient.sum(), query)[0]


def test_a_second_derivative_is_refused_by_torchs_function_and_right_without_it(monkeypatch):
    query, table, target, _ = inputs(2)
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        with pytest.raises(RuntimeError, match=r"."):
            second_derivative(chunked_softmax_loss(query, table, target), query)
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    found = second_derivative(chunked_softmax_loss(query, table, target), query)
    expected = second_derivative(plain(query, table, target, torch.ones(2, dtype=DTYPE)), query)
    torch.testing.assert_close(found, expected)
