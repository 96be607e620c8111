import itertools
import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from slow_contrast import batch_of
from torch import Tensor

from skipcl_lightning.functional import cloze_positives, skip_info_nce

SWITCHES = list(
    itertools.product(
        ["listened", "all"], ["session", "past", "batch"], ["uniform", "strength"], [0.0, -0.4, 0.3]
    )
)


def random_sessions(
    seed: int, *, sessions: int = 4, length: int = 7, num_items: int = 9, dtype=torch.float64
):
    """Query, keys, items and feedback with repeated items, unknown feedback and padding on the right."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(num_items + 1, 5, generator=generator, dtype=dtype)
    items = torch.randint(1, num_items + 1, (sessions, length), generator=generator)
    lengths = torch.randint(0, length + 1, (sessions,), generator=generator)
    items[torch.arange(length) >= lengths[:, None]] = 0
    levels = torch.tensor([-1.0, -0.5, -0.25, 0.0, 0.25, 1.0], dtype=dtype)
    feedback = levels[torch.randint(0, len(levels), items.shape, generator=generator)]
    feedback[items == 0] = 0
    query = torch.randn(sessions, length, 5, generator=generator, dtype=dtype)
    return query, table[items], items, feedback


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))


def slow_losses(  # noqa: C901 - the formula's loops, one inside the other, as a reader would check them
    query, keys, items, feedback, *, anchors, negatives, skip_weights, threshold, temperature, positives=None
):
    """The formula, anchor by anchor, in plain Python: {(session, position): loss}."""
    query, keys, items, feedback = (tensor.tolist() for tensor in (query, keys, items, feedback))
    losses = {}
    for b, session in enumerate(items):
        real = [t for t, item in enumerate(session) if item != 0]
        listened = [t for t in real if feedback[b][t] >= threshold]
        for t in listened if anchors == "listened" else real:
            later = [s for s in listened if s > t] if positives is None else [positives[b][t]]
            if not later or later[0] < 0:
                continue
            p = later[0]
            numerator = math.exp(cosine(query[b][t], keys[b][p]) / temperature)
            total, count = 0.0, 0
            for c in range(len(items)) if negatives == "batch" else [b]:
                for s, item in enumerate(items[c]):
                    if item == 0 or feedback[c][s] >= threshold:
                        continue
                    if item in [session[u] for u in listened] or item == session[p]:
                        continue
                    if negatives == "past" and s >= p:
                        continue
                    strength = (threshold - feedback[c][s]) / (threshold + 1)
                    weight = strength if skip_weights == "strength" else 1.0
                    total += weight * math.exp(cosine(query[b][t], keys[c][s]) / temperature)
                    count += 1
            if count:
                losses[b, t] = -math.log(numerator / (numerator + total))
    return losses


@pytest.mark.parametrize(("anchors", "negatives", "skip_weights", "threshold"), SWITCHES)
@pytest.mark.parametrize("seed", range(4))
def test_loss_equals_the_slow_loop_in_every_switch_combination(
    anchors, negatives, skip_weights, threshold, seed
):
    data = random_sessions(seed)
    switches = {"anchors": anchors, "negatives": negatives, "skip_weights": skip_weights}
    expected = slow_losses(*data, **switches, threshold=threshold, temperature=0.5)
    settings = {**switches, "temperature": 0.5}
    query, keys, *sessions = data
    data = query, keys, batch_of(*sessions, threshold=threshold)

    each = skip_info_nce(*data, **settings, reduction="none")
    for b, t in itertools.product(range(each.shape[0]), range(each.shape[1])):
        assert each[b, t].item() == pytest.approx(expected.get((b, t), 0.0), abs=1e-6)
    total = sum(expected.values())
    assert skip_info_nce(*data, **settings, reduction="sum").item() == pytest.approx(total, abs=1e-6)
    mean = total / max(len(expected), 1)
    assert skip_info_nce(*data, **settings).item() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("negatives", ["session", "past", "batch"])
@pytest.mark.parametrize("seed", range(4))
def test_hidden_positions_are_their_own_positives(negatives, seed):
    query, keys, items, feedback = random_sessions(seed)
    positions = torch.arange(items.shape[1]).expand_as(items)
    hidden = (items != 0) & (positions % 2 == 0)
    listened = (items != 0) & (feedback >= 0)
    positives = cloze_positives(items, listened, hidden)
    assert (positives >= 0).any()
    switches = {"anchors": "listened", "negatives": negatives, "skip_weights": "uniform"}
    expected = slow_losses(
        query, keys, items, feedback, **switches, threshold=0, temperature=0.5, positives=positives.tolist()
    )
    batch = batch_of(items, feedback, cloze_mask=hidden)
    each = skip_info_nce(query, keys, batch, **switches, temperature=0.5, reduction="none")
    for b, t in itertools.product(range(each.shape[0]), range(each.shape[1])):
        assert each[b, t].item() == pytest.approx(expected.get((b, t), 0.0), abs=1e-6)


def test_the_slow_loop_meets_anchors_and_masked_collisions():
    settings = {"anchors": "all", "negatives": "session", "skip_weights": "uniform", "threshold": 0.0}
    assert any(slow_losses(*random_sessions(seed), **settings, temperature=0.5) for seed in range(4))
    own = torch.arange(7).expand(4, 7).tolist()
    settings["anchors"] = "listened"
    assert all(
        any(
            slow_losses(
                *random_sessions(s), **{**settings, "negatives": n}, temperature=0.5, positives=own
            ).values()
            for s in range(4)
        )
        for n in ("session", "past", "batch")
    )
    _, _, items, feedback = random_sessions(0)
    skipped, listened = (feedback < 0) & (items > 0), (feedback >= 0) & (items > 0)
    collisions = (items[:, :, None] == items[:, None]) & skipped[:, :, None] & listened[:, None]
    assert collisions.any()


@pytest.mark.parametrize("negatives", ["session", "past", "batch"])
@pytest.mark.parametrize("skip_weights", ["uniform", "strength"])
def test_gradients_pass_gradcheck(negatives, skip_weights):
    query, keys, items, feedback = random_sessions(1, sessions=3, length=7, num_items=40)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss(query: Tensor, keys: Tensor, temperature: Tensor) -> Tensor:
        return skip_info_nce(
            query,
            keys,
            (items, feedback),
            negatives=negatives,
            skip_weights=skip_weights,
            temperature=temperature,
        )

    # A zero vector has no direction, so padded keys get the contents of a real one.
    keys[items == 0] = 1.0
    assert loss(query, keys, temperature) > 0
    inputs = (query.requires_grad_(), keys.requires_grad_(), temperature)
    assert torch.autograd.gradcheck(loss, inputs)


@hypothesis.given(
    seed=st.integers(0, 10_000),
    pad=st.integers(0, 4),
    negatives=st.sampled_from(["session", "past", "batch"]),
    anchors=st.sampled_from(["listened", "all"]),
)
def test_padding_batch_order_and_item_numbers_change_nothing(seed, pad, negatives, anchors):
    query, keys, items, feedback = random_sessions(seed)
    settings = {"negatives": negatives, "anchors": anchors}
    reference = skip_info_nce(query, keys, (items, feedback), **settings)

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(items), generator=generator)
    numbers = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randperm(20, generator=generator) + 1])
    noise = torch.full((len(items), pad, query.shape[2]), float("nan"), dtype=query.dtype)
    blank = torch.zeros(len(items), pad)
    changed = skip_info_nce(
        torch.cat([query, noise], dim=1)[order],
        torch.cat([keys, noise], dim=1)[order],
        (
            numbers[torch.cat([items, blank.long()], dim=1)][order],
            torch.cat([feedback, blank.to(feedback.dtype)], dim=1)[order],
        ),
        **settings,
    )
    torch.testing.assert_close(changed, reference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("negatives", ["session", "past", "batch"])
def test_nan_at_padding_reaches_no_gradient(negatives):
    query, keys, items, feedback = random_sessions(1, num_items=40)
    for tensor in (query, keys):
        tensor[items == 0] = torch.nan
        tensor.requires_grad_()
    loss = skip_info_nce(query, keys, (items, feedback), negatives=negatives)
    loss.backward()
    assert (items == 0).any()
    assert loss > 0
    assert query.grad.isfinite().all()
    assert keys.grad.isfinite().all()


@pytest.mark.parametrize("negatives", ["session", "past", "batch"])
@pytest.mark.parametrize(
    "feedback",
    [[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], [-1.0, -1.0, 1.0], [1.0, -1.0, -1.0]],
    ids=["no skips", "all skipped", "nothing listened after a listened one", "trailing skips"],
)
def test_without_anchors_the_loss_is_exactly_zero_with_a_zero_gradient(feedback, negatives):
    query = torch.randn(1, 3, 4, requires_grad=True)
    keys = torch.randn(1, 3, 4, requires_grad=True)
    loss = skip_info_nce(
        query, keys, (torch.tensor([[1, 2, 3]]), torch.tensor([feedback])), negatives=negatives
    )
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(query.grad, torch.zeros_like(query))
    assert torch.equal(keys.grad, torch.zeros_like(keys))


def test_each_query_meets_the_skips_of_its_own_session_only():
    # Error 1 of the authors' code: other sessions' skips stood where the own ones should.
    query, keys, items, feedback = random_sessions(2, sessions=8, num_items=40)
    each = skip_info_nce(query, keys, (items, feedback), reduction="none")
    keys[4:] = keys[4:].flip(2)
    items[4:] = torch.where(items[4:] > 0, items[4:] % 40 + 1, 0)
    again = skip_info_nce(query, keys, (items, feedback), reduction="none")
    assert each[:4].any()
    assert torch.equal(each[:4], again[:4])
    assert not torch.equal(each[4:], again[4:])


def test_a_trailing_position_has_no_positive_instead_of_the_first_track():
    # Error 2 of the authors' code.
    query, keys = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    each = skip_info_nce(
        query,
        keys,
        (torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])),
        anchors="all",
        reduction="none",
    )
    assert each[0, :2].all()
    assert each[0, 2] == 0


def test_listened_slots_are_no_negatives_and_the_mean_counts_anchors_only():
    # Error 3 of the authors' code: zero vectors joined the sum, skipped and padded queries the mean.
    generator = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(1, 4, 6, generator=generator) for _ in range(2))
    loss = skip_info_nce(
        query, keys, (torch.tensor([[1, 2, 3, 0]]), torch.tensor([[1.0, -1.0, 1.0, 0.0]])), temperature=0.5
    )
    positive, negative = (torch.cosine_similarity(query[0, 0], keys[0, s], dim=0) / 0.5 for s in (2, 1))
    torch.testing.assert_close(loss, torch.log1p(torch.exp(negative - positive)))


def test_half_precision_is_contrasted_in_float32():
    query, keys, items, feedback = random_sessions(3, dtype=torch.float32)
    exact = skip_info_nce(query.bfloat16().float(), keys.bfloat16().float(), (items, feedback))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = skip_info_nce(query.bfloat16(), keys.bfloat16(), (items, feedback))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, exact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchors": "every"}, "`anchors` must be one of 'listened', 'all', got 'every'"),
        ({"negatives": "hard"}, "`negatives` must be one of"),
        ({"skip_weights": "none"}, "`skip_weights` must be one of"),
        ({"reduction": "max"}, "`reduction` must be one of"),
        ({"temperature": 0.0}, r"`temperature` must be in \(0, inf\), got 0.0"),
        ({"temperature": math.nan}, "`temperature` must be in"),
        ({"keys": torch.zeros(4, 7, 3)}, r"`keys` must have shape \[B=4, L=7, D=5\], got \[4, 7, 3\]"),
        ({"sessions": (torch.ones(4, 7).long(), torch.zeros(4, 6))}, "`feedback` must have shape"),
        ({"sessions": (torch.ones(4, 6).long(), torch.zeros(4, 6))}, "`items` must have shape"),
    ],
)
def test_bad_arguments_are_named(change, message):
    query, keys, *sessions = random_sessions(0)
    arguments = {"query": query, "keys": keys, "sessions": tuple(sessions)}
    with pytest.raises(ValueError, match=message):
        skip_info_nce(**{**arguments, **change})


def test_integer_feedback_is_a_type_error():
    query, keys, items, _ = random_sessions(0)
    with pytest.raises(TypeError, match=r"`feedback` must be of a floating-point dtype, got torch.int64"):
        skip_info_nce(query, keys, (items, items))
