import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional import prediction_targets, skip_prediction_loss

FEEDBACK = st.sampled_from([-1.0, -0.25, 0.0, 0.5, 1.0])
LIKES = st.sampled_from([-1.0, 0.0, 0.0, 0.5])
SESSIONS = st.lists(
    st.lists(st.tuples(st.integers(1, 6), FEEDBACK, LIKES, st.booleans()), max_size=5),
    min_size=1,
    max_size=4,
)


def as_batch(sessions, *, padding=0, hidden=False, threshold=0.0):
    length = max([len(one) for one in sessions] + [1]) + padding
    columns = [torch.zeros(len(sessions), length, dtype=t) for t in (torch.int64, *[torch.float32] * 2)]
    columns.append(torch.zeros(len(sessions), length, dtype=torch.bool))
    for row, session in enumerate(sessions):
        for place, values in enumerate(session):
            for column, value in zip(columns, values, strict=True):
                column[row, place] = value
    items, feedback, explicit, mask = columns
    return SessionBatch(
        items,
        feedback,
        explicit_feedback=explicit,
        cloze_mask=mask if hidden else None,
        skip_threshold=threshold,
    )


def vectors(rows, length, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, length, 3, generator=generator, dtype=dtype),
        torch.randn(rows, length, 3, generator=generator, dtype=dtype),
        torch.randn(rows, length, generator=generator, dtype=dtype),
    )


def slow_loss(query, keys, bias, sessions, *, hidden, graded, dislike_weight, like_weight, threshold=0.0):
    """(mean, loss of each position) from the formula, position by position."""
    total, weights, each = 0.0, 0.0, {}
    for b, session in enumerate(sessions):
        for t in range(len(session)):
            s = t if hidden else t + 1
            if s >= len(session) or (hidden and not session[t][3]):
                continue
            _, feedback, explicit, _ = session[s]
            if graded:
                label = 0.0 if explicit < 0 else 1.0 if explicit > 0 else (1 + feedback) / 2
            else:
                label = 0.0 if explicit < 0 or (feedback < threshold and not explicit > 0) else 1.0
            weight = dislike_weight if explicit < 0 else like_weight if explicit > 0 else 1.0
            logit = sum(float(query[b, t, m]) * float(keys[b, s, m]) for m in range(3)) + float(bias[b, s])
            probability = 1 / (1 + math.exp(-logit))
            each[b, t] = -label * math.log(probability) - (1 - label) * math.log(1 - probability)
            total, weights = total + weight * each[b, t], weights + weight
    return (total / weights if weights else 0.0), each


@given(
    sessions=SESSIONS,
    seed=st.integers(0, 99),
    hidden=st.booleans(),
    graded=st.booleans(),
    dislike_weight=st.sampled_from([1.0, 3.0]),
    like_weight=st.sampled_from([1.0, 0.5]),
)
def test_the_loss_equals_a_loop_over_positions(sessions, seed, **settings):
    batch = as_batch(sessions, hidden=settings["hidden"])
    tensors = vectors(*batch.items.shape, seed)
    expected, each = slow_loss(*tensors, sessions, **settings)
    del settings["hidden"]
    found = skip_prediction_loss(*tensors, batch, **settings)
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    by_position = skip_prediction_loss(*tensors, batch, reduction="none", **settings)
    for position in torch.cartesian_prod(*map(torch.arange, batch.items.shape)).tolist():
        assert by_position[tuple(position)].item() == pytest.approx(
            each.get(tuple(position), 0.0), rel=1e-4, abs=1e-6
        )


@given(sessions=SESSIONS, seed=st.integers(0, 99), hidden=st.booleans(), padding=st.integers(1, 3))
def test_padding_and_the_order_of_sessions_change_nothing(sessions, seed, hidden, padding):
    batch = as_batch(sessions, hidden=hidden)
    tensors = vectors(*batch.items.shape, seed)
    plain = skip_prediction_loss(*tensors, batch)
    longer = as_batch(sessions, hidden=hidden, padding=padding)
    # What stands at padding must not matter, NaN included.
    filled = []
    for tensor in tensors:
        wider = torch.full((*longer.items.shape, *tensor.shape[2:]), math.nan)
        wider[:, : tensor.shape[1]] = tensor.masked_fill(
            (batch.items == 0).reshape(*batch.items.shape, *[1] * (tensor.dim() - 2)), math.nan
        )
        filled.append(wider.flip(0).requires_grad_())
    loss = skip_prediction_loss(*filled, as_batch(sessions[::-1], hidden=hidden, padding=padding))
    torch.testing.assert_close(loss, plain)
    loss.backward()
    assert all(tensor.grad.isfinite().all() for tensor in filled)


@given(sessions=SESSIONS, seed=st.integers(0, 99), hidden=st.booleans())
def test_sessions_padded_on_the_left_have_the_loss_of_those_padded_on_the_right(sessions, seed, hidden):
    batch = as_batch(sessions, hidden=hidden)
    tensors = vectors(*batch.items.shape, seed)

    def to_the_left(tensor):
        return torch.stack([row.roll(-len(one), 0) for row, one in zip(tensor, sessions, strict=True)])

    names = ("items", "feedback", "explicit_feedback") + ("cloze_mask",) * hidden
    moved = batch.replace(**{name: to_the_left(getattr(batch, name)) for name in names})
    left = skip_prediction_loss(*map(to_the_left, tensors), moved)
    torch.testing.assert_close(left, skip_prediction_loss(*tensors, batch))


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("sessions", [[[]], [[(3, 1.0, 0.0, False)]], [[(3, 1.0, 0.0, False)], []]])
def test_a_batch_without_a_next_item_has_exactly_no_loss_and_no_gradient(sessions, hidden):
    batch = as_batch(sessions, hidden=hidden)
    tensors = [tensor.requires_grad_() for tensor in vectors(*batch.items.shape, 0)]
    loss = skip_prediction_loss(*tensors, batch)
    loss.backward()
    assert loss == 0
    assert not any(tensor.grad.any() for tensor in tensors)


def test_a_batch_of_no_session_and_one_of_no_position_have_no_loss():
    for shape in ((0, 3), (2, 0)):
        batch = SessionBatch(torch.zeros(shape, dtype=torch.int64), torch.zeros(shape))
        assert skip_prediction_loss(*vectors(*shape, 0), batch) == 0


def test_gradients_are_those_of_finite_differences():
    sessions = [[(1, 1.0, 0.0, True), (2, -0.25, 1.0, True), (3, 0.5, -1.0, False)], [(4, -1.0, 0.0, True)]]
    for settings in ({"hidden": False}, {"hidden": True}):
        batch = as_batch(sessions, **settings)
        tensors = [tensor.requires_grad_() for tensor in vectors(2, 3, 0, torch.float64)]

        def loss(*tensors, batch=batch):
            return skip_prediction_loss(*tensors, batch, graded=True, dislike_weight=2.0)

        assert torch.autograd.gradcheck(loss, tensors)


def test_padding_is_never_predicted_even_if_it_is_hidden():
    mask = torch.tensor([[True, False, True]])
    hidden = SessionBatch(torch.tensor([[4, 5, 0]]), torch.tensor([[-1.0, 1.0, 0.0]]), cloze_mask=mask)
    assert prediction_targets(hidden).weight.tolist() == [[1, 0, 0]]


def test_the_threshold_says_what_was_listened_to():
    sessions = torch.tensor([[1, 2]]), torch.tensor([[1.0, 0.3]])
    low, high = (SessionBatch(*sessions, skip_threshold=threshold) for threshold in (0.0, 0.5))
    assert prediction_targets(low).label.tolist() == [[1, 0]]
    assert prediction_targets(high).label.tolist() == [[0, 0]]
    assert prediction_targets(high).weight.tolist() == [[1, 0]]


def test_half_precision_and_autocast_are_computed_in_float32():
    batch = as_batch([[(1, 1.0, 0.0, False), (2, -1.0, 0.0, False)]])
    tensors = vectors(1, 2, 0)
    halves = [tensor.bfloat16() for tensor in tensors]
    expected = skip_prediction_loss(*(tensor.float() for tensor in halves), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given_tensors in (halves, [tensor.float() for tensor in halves]):
            found = skip_prediction_loss(*given_tensors, batch)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dislike_weight": 0.0}, r"`dislike_weight` must be in \(0, inf\)"),
        ({"like_weight": math.nan}, r"`like_weight` must be in \(0, inf\)"),
        ({"reduction": "max"}, "`reduction` must be one of"),
        ({"item_bias": torch.zeros(2, 2)}, r"`item_bias` must have shape \[B=1, L=2\]"),
        ({"item_vectors": torch.zeros(1, 2, 4)}, r"`item_vectors` must have shape \[B=1, L=2, M=3\]"),
    ],
)
def test_bad_arguments_are_named(change, message):
    query, keys, bias = vectors(1, 2, 0)
    sessions = torch.tensor([[1, 2]]), torch.ones(1, 2)
    arguments = {"session_vectors": query, "item_vectors": keys, "item_bias": bias, "sessions": sessions}
    with pytest.raises(ValueError, match=message):
        skip_prediction_loss(**{**arguments, **change})
