"""The losses against shared negatives: the formula pair by pair, its gradient, chunks and precisions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.functional import (
    bpr_max_loss,
    chunked_bpr_max_loss,
    chunked_gbce_loss,
    gbce_loss,
)
from skipcl_lightning.functional.next_item.shared_negatives import (
    _find_targets,
    chunked_mean,
    shared_logits,
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


def gradients(loss, parameters):
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def scores(query, table, target, negatives):
    """The target's score, and those of the negatives that are another item."""
    products = [sum(x * y for x, y in zip(query.tolist(), row.tolist(), strict=True)) for row in table]
    return products[target], [products[item] for item in negatives.tolist() if item != target]


def slow_gbce(own, others, *, num_negatives, num_items, calibration=0.75):
    alpha = num_negatives / (num_items - 1)
    beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
    total = math.log(sigmoid(own) ** beta)
    for score in others:
        total += math.log(1 - sigmoid(score))
    return -total / (num_negatives + 1)


def slow_bpr_max(own, others, *, num_negatives, num_items, regularisation=1.0):
    if not others:
        return 0.0
    total = sum(math.exp(score) for score in others)
    likelihood = penalty = 0.0
    for score in others:
        likelihood += math.exp(score) / total * sigmoid(own - score)
        penalty += math.exp(score) / total * score**2
    return -math.log(likelihood) + regularisation * penalty


# Plain loss, chunked loss, slow loss, other settings.
LOSSES = {
    "gbce": (gbce_loss, chunked_gbce_loss, slow_gbce, {"calibration": 0.3}),
    "bpr_max": (bpr_max_loss, chunked_bpr_max_loss, slow_bpr_max, {"regularisation": 0.2}),
}
all_losses = pytest.mark.parametrize("name", LOSSES)


def slow_losses(name, parameters, target, negatives, **settings):
    query, table = (tensor.detach() for tensor in parameters)
    sizes = {"num_negatives": len(negatives), "num_items": len(table) - 1}
    slow = LOSSES[name][2]
    return [
        slow(*scores(query[n], table, int(target[n]), negatives), **sizes, **settings)
        for n in range(len(query))
    ]


@all_losses
@pytest.mark.parametrize("other", [False, True])
def test_it_is_the_formula_without_negatives_that_are_the_target(name, other):
    parameters, target, negatives, weight = inputs(9)
    settings = LOSSES[name][3] if other else {}
    assert (negatives == target[:, None]).any()
    expected = torch.tensor(slow_losses(name, parameters, target, negatives, **settings), dtype=DTYPE)
    plain, chunked = LOSSES[name][:2]
    torch.testing.assert_close(plain(*parameters, target, negatives, **settings).detach(), expected)
    mean = chunked(*parameters, target, negatives, weight, chunk_size=4, **settings)
    torch.testing.assert_close(mean.detach(), (expected * weight).sum() / weight.sum())


@given(
    num_queries=st.integers(1, 12),
    num_negatives=st.integers(1, 9),
    chunk_size=st.integers(1, 13),
    weighted=st.booleans(),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 50),
    name=st.sampled_from(sorted(LOSSES)),
)
def test_chunks_give_the_plain_loss_and_its_gradient(
    num_queries, num_negatives, chunk_size, weighted, scale, seed, name
):
    parameters, target, negatives, weight = inputs(
        num_queries, num_negatives=num_negatives, seed=seed, scale=scale
    )
    plain, chunked = LOSSES[name][:2]
    if not weighted:
        weight = torch.ones_like(weight)
    expected = (plain(*parameters, target, negatives) * weight).sum() / weight.sum()
    found = chunked(*parameters, target, negatives, weight if weighted else None, chunk_size=chunk_size)
    for one, right in zip(gradients(found, parameters), gradients(expected, parameters), strict=True):
        assert right.isfinite().all()
        torch.testing.assert_close(one, right, rtol=1e-9, atol=1e-12)


@all_losses
@pytest.mark.parametrize("chunked", [False, True])
def test_the_gradient_is_that_of_the_loss(name, chunked):
    parameters, target, negatives, weight = inputs(5)
    loss = LOSSES[name][chunked]
    settings = {"weight": weight, "chunk_size": 2} if chunked else {}
    assert torch.autograd.gradcheck(lambda q, e: loss(q, e, target, negatives, **settings), parameters)


@all_losses
def test_no_queries_give_exactly_zero_with_a_zero_gradient(name):
    parameters, target, negatives, _ = inputs(0)
    loss, _, table_gradient = gradients(LOSSES[name][1](*parameters, target, negatives), parameters)
    assert loss == 0
    assert (table_gradient == 0).all()


@all_losses
def test_a_query_of_weight_zero_changes_nothing(name):
    (query, table), target, negatives, weight = inputs(6)
    chunked = LOSSES[name][1]
    weight[4:] = 0
    found = gradients(chunked(query, table, target, negatives, weight), [query, table])
    few = query[:4].detach().requires_grad_()
    expected = gradients(chunked(few, table, target[:4], negatives, weight[:4]), [few, table])
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1][:4], expected[1])
    torch.testing.assert_close(found[2], expected[2])
    assert not found[1][4:].any()


@all_losses
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_loss_is_the_same_without_gradients(name, mode):
    parameters, target, negatives, weight = inputs(6)
    chunked = LOSSES[name][1]
    expected = chunked(*parameters, target, negatives, weight, chunk_size=4)
    with mode():
        found = chunked(*parameters, target, negatives, weight, chunk_size=4)
    assert not found.requires_grad
    torch.testing.assert_close(found.clone(), expected.detach())


@all_losses
def test_sparse_gradients_hold_only_the_used_rows(name):
    (query, table), target, negatives, _ = inputs(2)
    chunked = LOSSES[name][1]
    expected = gradients(chunked(query, table, target, negatives), (query, table))
    chunked(query, table, target, negatives, sparse_gradients=True).backward()
    used = sorted({*target.tolist(), *negatives.tolist()})
    assert table.grad.coalesce().indices().flatten().tolist() == used
    torch.testing.assert_close(table.grad.to_dense(), expected[2])


@all_losses
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_is_close_and_sums_are_exact(name, dtype, autocast):
    parameters, target, negatives, _ = inputs(64, 500, 16, 100, dtype=torch.float32)
    plain, chunked = LOSSES[name][:2]
    expected = gradients(chunked(*parameters, target, negatives), parameters)
    used = parameters if autocast else [one.detach().to(dtype).requires_grad_() for one in parameters]
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        loss = chunked(*used, target, negatives, chunk_size=7)
        losses = plain(*used, target, negatives)
    found = gradients(loss, used)
    assert [part.dtype for part in found] == [torch.float32, used[0].dtype, used[1].dtype]
    assert losses.dtype == torch.float32
    torch.testing.assert_close(found[0], expected[0], rtol=0.01, atol=0.01)
    torch.testing.assert_close(losses.mean().detach(), expected[0], rtol=0.01, atol=0.01)
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert torch.nn.functional.cosine_similarity(one.float().ravel(), other.ravel(), dim=0) > 0.999


@all_losses
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_extreme_scores_give_finite_losses_and_gradients(name, dtype):
    """Scores of +-300: a sigmoid rounds to 0 or 1, and its logarithm to minus infinity or 0."""
    parameters = [torch.tensor([[30.0], [-30.0]]), torch.tensor([[0.0], [10.0], [-10.0], [5.0]])]
    parameters = [one.to(dtype).requires_grad_() for one in parameters]
    loss = LOSSES[name][1](*parameters, torch.tensor([2, 1]), torch.tensor([1, 2, 3]))
    assert all(part.isfinite().all() for part in gradients(loss, parameters))
    assert loss > 50


@all_losses
def test_a_compiled_step_uses_the_plain_formula(name):
    parameters, target, negatives, weight = inputs(6)
    plain, chunked = LOSSES[name][:2]

    def step(query, table):
        return chunked(query, table, target, negatives, weight)

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    expected = (plain(*parameters, target, negatives) * weight).sum() / weight.sum()
    for found, right in zip(
        gradients(compiled(*parameters), parameters), gradients(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, right)


@all_losses
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": torch.ones(3)}, ValueError, "`query` must have"),
        ({"item_embeddings": torch.ones(8, 2, dtype=DTYPE)}, ValueError, "`item_embeddings`"),
        ({"target": torch.ones(4, dtype=torch.int32)}, TypeError, "`target`"),
        ({"target": torch.tensor([1, 2, 0, 3])}, ValueError, "`target` must hold indices in 1..7, got 0"),
        ({"negatives": torch.ones(2, 2, dtype=torch.int64)}, ValueError, "`negatives`"),
        ({"weight": torch.ones(3)}, ValueError, "`weight`"),
        ({"chunk_size": 0}, ValueError, "`chunk_size`"),
    ],
)
def test_bad_input_is_named(name, change, error, message):
    (query, table), target, negatives, _ = inputs(4)
    arguments = {"query": query, "item_embeddings": table, "target": target, "negatives": negatives}
    for loss in LOSSES[name][:2]:
        if loss is LOSSES[name][0] and set(change) & {"weight", "chunk_size"}:
            continue
        with pytest.raises(error, match=message):
            loss(**(arguments | change))


@pytest.mark.parametrize("calibration", [-0.1, 1.1, math.nan])
def test_a_calibration_out_of_range_is_named(calibration):
    parameters, target, negatives, _ = inputs(2)
    for loss in (gbce_loss, chunked_gbce_loss):
        with pytest.raises(ValueError, match=r"`calibration` must be in \[0, 1\]"):
            loss(*parameters, target, negatives, calibration=calibration)


@pytest.mark.parametrize(("calibration", "times"), [(0.0, 20.0), (1.0, 20 / 19)])
def test_only_a_calibrated_loss_is_least_at_the_probabilities(calibration, times):
    """Uniform draws of one item in 20: the odds at the minimum are `times` those of the data."""
    probability = torch.softmax(torch.linspace(-2, 2, 20, dtype=DTYPE), dim=0)
    least = (probability / (1 - probability) * times).log()
    table = torch.cat([torch.zeros(1, dtype=DTYPE), least])[:, None].requires_grad_()
    query, target = torch.ones(20, 1, dtype=DTYPE), torch.arange(1, 21)
    loss = sum(
        chunked_gbce_loss(query, table, target, torch.tensor([one]), probability, calibration=calibration)
        for one in range(1, 21)
    )
    loss.backward()
    torch.testing.assert_close(table.grad, torch.zeros_like(table), rtol=0, atol=1e-12)


def test_with_all_other_items_as_negatives_every_calibration_is_binary_cross_entropy():
    (query, table), _, _, _ = inputs(1)
    target, negatives = torch.tensor([3]), torch.tensor([1, 2, 4, 5, 6, 7])
    labels = torch.zeros(1, 7, dtype=DTYPE)
    labels[0, 2] = 1
    expected = torch.nn.functional.binary_cross_entropy_with_logits(query @ table[1:].T, labels)
    for calibration in (0.0, 0.4, 1.0):
        loss = gbce_loss(query, table, target, negatives, calibration=calibration)
        torch.testing.assert_close(loss, expected[None])


@pytest.mark.parametrize("num_items", [1, 3])
def test_more_negatives_than_other_items_need_no_calibration(num_items):
    (query, table), target, negatives, _ = inputs(4, num_items=num_items)
    found = gbce_loss(query, table, target, negatives, calibration=1.0)
    torch.testing.assert_close(found, gbce_loss(query, table, target, negatives, calibration=0.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logarithms_of_low_precision_scores_are_those_of_float32(dtype):
    query, table = torch.zeros(1, 2, dtype=dtype), torch.zeros(9, 2, dtype=dtype)
    arguments = query, table, torch.tensor([1]), torch.tensor([2, 3, 4])
    binary = torch.tensor([math.log(2)])
    torch.testing.assert_close(gbce_loss(*arguments, calibration=0.0), binary, rtol=1e-6, atol=0)
    torch.testing.assert_close(bpr_max_loss(*arguments), binary, rtol=1e-6, atol=0)


def test_a_query_whose_negatives_are_all_its_target_has_a_bpr_max_loss_of_zero():
    parameters, target, _, _ = inputs(3)
    negatives = target[:1].repeat(4)
    for loss in (bpr_max_loss, chunked_bpr_max_loss):
        value = loss(*parameters, target[:1].repeat(3), negatives).sum()
        value, query_gradient, table_gradient = gradients(value, parameters)
        assert value == 0
        assert not query_gradient.any()
        assert not table_gradient.any()


def test_bpr_max_is_bpr_against_one_negative():
    (query, table), _, _, _ = inputs(4)
    target, negatives = torch.tensor([1, 5, 6, 3]), torch.tensor([7])
    difference = (query * (table[target] - table[7])).sum(dim=1)
    loss = bpr_max_loss(query, table, target, negatives, regularisation=0.0)
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(difference))


@pytest.mark.parametrize("regularisation", [-0.1, math.inf, math.nan])
def test_a_regularisation_out_of_range_is_named(regularisation):
    parameters, target, negatives, _ = inputs(2)
    for loss in (bpr_max_loss, chunked_bpr_max_loss):
        with pytest.raises(ValueError, match=r"`regularisation` must be in \[0, inf\)"):
            loss(*parameters, target, negatives, regularisation=regularisation)


def test_a_loss_of_ones_own_is_a_formula_of_logits():
    table = torch.tensor([[9.0], [1.0], [2.0]])
    target, negatives = torch.tensor([2]), torch.tensor([1, 2])
    own, logits, is_target = shared_logits(torch.ones(1, 1), table, target, negatives, sparse_gradients=False)
    assert (own.tolist(), logits.tolist(), is_target.tolist()) == ([[2.0]], [[1.0, 2.0]], [[False, True]])

    def margin(own, logits, is_target):
        return (1 + logits - own).clamp(min=0).masked_fill(is_target, 0).sum(dim=1)

    found = chunked_mean(
        torch.ones(1, 1),
        torch.tensor([[9.0], [1.0], [1.5]]),
        target,
        negatives,
        None,
        formula=margin,
        sparse_gradients=False,
        chunk_size=None,
    )
    assert found == 0.5


@given(
    target=st.lists(st.integers(1, 5), max_size=9),
    negatives=st.lists(st.integers(1, 5), max_size=7),
    chunk_size=st.integers(1, 10),
)
def test_the_places_of_targets_among_the_negatives(target, negatives, chunk_size):
    found = _find_targets(
        torch.tensor(negatives, dtype=torch.int64), torch.tensor(target, dtype=torch.int64), chunk_size
    )
    places = [
        (chunk, row, column)
        for chunk, (rows, columns) in enumerate(found)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    expected = {
        (number // chunk_size, number % chunk_size, column)
        for number, item in enumerate(target)
        for column, negative in enumerate(negatives)
        if negative == item
    }
    assert sorted(places) == sorted(expected)
    assert len(found) == max(1, -(-len(target) // chunk_size))
