import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from slow_contrast import batch_of, random_sessions, slow_anchors

from skipcl_lightning.functional import (
    opposing_contrast,
    rejected_sequence,
    session_contrast,
    skip_margin,
    skip_softmax,
    skip_unlikelihood,
)

SWITCHES = {
    "anchors": st.sampled_from(["listened", "all"]),
    "negatives": st.sampled_from(["session", "past", "passed"]),
    "skip_weights": st.sampled_from(["uniform", "strength"]),
}
SAMPLES = torch.tensor([3, 1, 7, 7])


def dot(one, other):
    return sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))


def cosine(one, other):
    return dot(one, other) / math.sqrt(dot(one, one)) / math.sqrt(dot(other, other))


def slow_bpr(query, table, items, b, t, anchor):
    p, _, negatives = anchor
    own = dot(query[b, t], table[items[b, p]])
    pairs = {s: math.log1p(math.exp(dot(query[b, t], table[items[b, s]]) - own)) for s in negatives}
    return sum(negatives[s] * pairs[s] for s in pairs) / sum(negatives.values())


def slow_hinge(query, table, items, b, t, anchor):
    p, _, negatives = anchor
    own = dot(query[b, t], table[items[b, p]])
    pairs = {s: max(0.0, 0.7 - own + dot(query[b, t], table[items[b, s]])) for s in negatives}
    return sum(negatives[s] * pairs[s] for s in pairs) / sum(negatives.values())


def slow_softmax(query, table, items, b, t, anchor):
    p, _, negatives = anchor
    own = math.exp(dot(query[b, t], table[items[b, p]]))
    total = own + sum(w * math.exp(dot(query[b, t], table[items[b, s]])) for s, w in negatives.items())
    return -math.log(own / total)


def slow_sampled_softmax(query, table, items, b, t, anchor):
    p, _, negatives = anchor
    own = math.exp(dot(query[b, t], table[items[b, p]]))
    total = own + sum(w * math.exp(dot(query[b, t], table[items[b, s]])) for s, w in negatives.items())
    total += sum(math.exp(dot(query[b, t], table[k])) for k in SAMPLES.tolist() if k != items[b, p])
    return -math.log(own / total)


def slow_unlikelihood(query, table, items, b, t, anchor):
    _, _, negatives = anchor
    total = sum(math.exp(dot(query[b, t], row)) for row in table[1:])
    pairs = {s: math.exp(dot(query[b, t], table[items[b, s]])) / total for s in negatives}
    return sum(-negatives[s] * math.log(1 - pairs[s]) for s in pairs) / sum(negatives.values())


def slow_sampled_unlikelihood(query, table, items, b, t, anchor):
    _, _, negatives = anchor
    loss = 0.0
    for s, weight in negatives.items():
        own = math.exp(dot(query[b, t], table[items[b, s]]))
        others = [math.exp(dot(query[b, t], table[k])) for k in SAMPLES.tolist() if k != items[b, s]]
        mean = sum(others) / len(others)
        loss -= weight * math.log(1 - own / (own + (len(table) - 2) * mean))
    return loss / sum(negatives.values())


LOSSES = {
    "bpr": (skip_margin, slow_bpr, {}),
    "hinge": (skip_margin, slow_hinge, {"loss": "hinge", "margin": 0.7}),
    "softmax": (skip_softmax, slow_softmax, {}),
    "softmax with samples": (skip_softmax, slow_sampled_softmax, {"samples": SAMPLES}),
    "unlikelihood": (skip_unlikelihood, slow_unlikelihood, {}),
    "unlikelihood with samples": (skip_unlikelihood, slow_sampled_unlikelihood, {"samples": SAMPLES}),
}


def compute(name, query, table, batch, *, reduction="none", negatives="session", **contrast):
    function, _, settings = LOSSES[name]
    given = () if function is skip_margin else (table,)
    return function(
        query,
        table[batch.items],
        batch,
        *given,
        **settings,
        reduction=reduction,
        negatives=negatives,
        **contrast,
    )


@pytest.mark.parametrize("name", LOSSES)
@hypothesis.given(
    seed=st.integers(0, 10_000), switches=st.fixed_dictionaries(SWITCHES), explicit=st.booleans()
)
@hypothesis.settings(max_examples=40)
def test_losses_equal_the_slow_loops(name, seed, switches, explicit):
    query, table, items, feedback, said = random_sessions(seed, explicit=explicit)
    batch = batch_of(items, feedback, said)
    losses = compute(name, query, table, batch, like_weight=2.0, **switches)
    expected = {
        place: anchor
        for place, anchor in slow_anchors(items, feedback, said, like_weight=2.0, **switches).items()
        if anchor[2]
    }
    slow = {place: LOSSES[name][1](query, table, items, *place, anchor) for place, anchor in expected.items()}
    for b in range(4):
        for t in range(7):
            assert losses[b, t].item() == pytest.approx(slow.get((b, t), 0.0), rel=1e-6)
    total = sum(expected[place][1] * loss for place, loss in slow.items())
    count = sum(weight for _, weight, _ in expected.values())
    mean = compute(name, query, table, batch, like_weight=2.0, reduction="mean", **switches)
    assert mean.item() == pytest.approx(total / count if count else 0.0, rel=1e-6)


@hypothesis.given(seed=st.integers(0, 10_000))
@hypothesis.settings(max_examples=40)
def test_the_contrast_of_opposing_sequences_equals_the_slow_loop(seed):
    query, table, items, feedback, said = random_sessions(seed)
    opposing = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    contrast = session_contrast(batch_of(items, feedback, said))
    losses, _ = opposing_contrast(query, table[items], opposing, items, contrast, temperature=0.5)
    sequence = rejected_sequence(items, contrast)
    for b in range(4):
        rejected = [
            s
            for s in range(7)
            if items[b, s] and (said[b, s] < 0 or (feedback[b, s] < 0 and said[b, s] == 0))
        ]
        assert sequence.items[b].tolist() == items[b, rejected].tolist() + [0] * (7 - len(rejected))
        for t in range(7):
            anchor = slow_anchors(items, feedback, said).get((b, t))
            before = [] if anchor is None else [n for n, s in enumerate(rejected) if s < anchor[0]]
            if not before:
                assert losses[b, t] == 0
                continue
            own = math.exp(cosine(query[b, t], table[items[b, anchor[0]]]) / 0.5)
            total = own + sum(math.exp(cosine(query[b, t], opposing[b, n]) / 0.5) for n in before)
            assert losses[b, t].item() == pytest.approx(-math.log(own / total), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_nan_and_the_order_of_sessions_change_nothing(name):
    query, table, items, feedback, _ = random_sessions(5, explicit=False)
    losses = compute(name, query, table, batch_of(items, feedback))
    assert losses.any()
    order = torch.tensor([2, 0, 3, 1])
    wide_items = torch.cat([items, torch.zeros(4, 2, dtype=torch.int64)], dim=1)[order]
    wide_feedback = torch.cat([feedback, torch.zeros(4, 2, dtype=torch.float64)], dim=1)[order]
    wide_query = torch.cat([query, torch.full((4, 2, 5), math.nan, dtype=torch.float64)], dim=1)[order]
    wide_query[wide_items == 0] = math.nan
    wide_query.requires_grad_()
    again = compute(name, wide_query, table, batch_of(wide_items, wide_feedback))
    torch.testing.assert_close(again[:, :7], losses[order])
    again.sum().backward()
    assert wide_query.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "hinge"])
def test_gradients_pass_gradcheck(name):
    query, table, items, feedback, said = random_sessions(1, sessions=3)
    batch = batch_of(items, feedback, said)

    def loss(query, table):
        return compute(name, query, table, batch, reduction="sum")

    assert loss(query, table) > 0
    assert torch.autograd.gradcheck(loss, (query.requires_grad_(), table.requires_grad_()))


@pytest.mark.parametrize("name", LOSSES)
def test_without_anchors_losses_are_zero_with_a_zero_gradient(name):
    query = torch.randn(1, 3, 5, requires_grad=True)
    items = torch.tensor([[1, 2, 3]])
    loss = compute(name, query, torch.randn(8, 5), batch_of(items, torch.ones(1, 3)), reduction="mean")
    loss.backward()
    assert loss == 0
    assert not query.grad.any()


def test_a_probability_of_one_has_a_finite_unlikelihood():
    query = torch.full((1, 3, 1), 60.0, requires_grad=True)
    table = torch.tensor([[0.0], [0.0], [1.0], [0.0]])
    items = torch.tensor([[1, 2, 3]])
    sessions = items, torch.tensor([[1.0, -1.0, 1.0]])
    losses = skip_unlikelihood(query, table[items], sessions, table, reduction="none")
    losses.sum().backward()
    assert losses.isfinite().all()
    assert losses[0, 0] > 10
    assert query.grad.isfinite().all()


def test_a_compiled_unlikelihood_has_the_values_of_a_plain_one(monkeypatch):
    query, table, items, feedback, _ = random_sessions(0)
    arguments = query, table[items], (items, feedback), table
    plain = skip_unlikelihood(*arguments, negatives="session", reduction="none")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert plain.any()
    compiled = skip_unlikelihood(*arguments, negatives="session", reduction="none")
    assert torch.allclose(compiled, plain)


def test_samples_need_the_item_table():
    query, table, items, feedback, _ = random_sessions(0)
    with pytest.raises(ValueError, match="`item_embeddings` must be given for sampled items"):
        skip_softmax(query, table[items], (items, feedback), samples=SAMPLES)
    with pytest.raises(ValueError, match="`item_embeddings` must be given for probabilities"):
        skip_unlikelihood(query, table[items], (items, feedback))


@pytest.mark.parametrize("name", ["query", "keys", "opposing", "items"])
def test_opposing_sequences_name_the_tensor_that_does_not_fit(name):
    query, table, items, feedback, _ = random_sessions(0)
    tensors = {"query": query, "keys": table[items], "opposing": query, "items": items}
    tensors[name] = tensors[name][:, :, None]
    with pytest.raises(ValueError, match=f"`{name}` must have"):
        opposing_contrast(**tensors, contrast=session_contrast((items, feedback)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "square"}, "`loss` must be one of 'bpr', 'hinge', got 'square'"),
        ({"loss": "hinge", "margin": 0.0}, r"`margin` must be in \(0, inf\)"),
        ({"margin": 0.5}, "`margin` must be None for 'bpr', got 0.5"),
        ({"negatives": "batch"}, "`negatives` must be one of 'session', 'past', 'passed', got 'batch'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    query, table, items, feedback, _ = random_sessions(0)
    with pytest.raises(ValueError, match=message):
        skip_margin(query, table[items], (items, feedback), **settings)


def test_a_skip_without_a_usable_sample_contributes_nothing():
    items, feedback = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1.0, -1.0, -1.0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_()
    query = torch.randn(1, 4, 5, generator=generator, dtype=torch.float64)
    # All samples are the first skip: only the second one has other items to compare with.
    settings = {"samples": torch.tensor([2, 2]), "negatives": "session", "reduction": "none"}
    losses = skip_unlikelihood(query, table[items], (items, feedback), table, **settings)
    skip, sample = (math.exp(dot(query[0, 0], table[item])) for item in (3, 2))
    # V - 1 = 4 other items are estimated by the one sample.
    assert losses[0, 0].item() == pytest.approx(-math.log(1 - skip / (skip + 4 * sample)))
    short = items[:, [0, 1, 3]], feedback[:, [0, 1, 3]]
    losses = skip_unlikelihood(query[:, :3], table[short[0]], short, table, **settings)
    assert not losses.any()
    losses.sum().backward()
    assert not table.grad.any()
