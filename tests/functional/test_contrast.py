import dataclasses
import itertools

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from slow_contrast import batch_of, random_sessions, slow_anchors

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional import (
    ContrastSettings,
    next_item_targets,
    session_contrast,
    target_positions,
)
from skipcl_lightning.functional.skip_losses.contrast import ContrastOptions, weighted_mean

SWITCHES = {
    "anchors": st.sampled_from(["listened", "all"]),
    "negatives": st.sampled_from(["session", "past", "passed"]),
    "skip_weights": st.sampled_from(["uniform", "strength"]),
    "threshold": st.sampled_from([0.0, -0.4, 0.3]),
    "dislike_weight": st.sampled_from([1.0, 2.5]),
    "like_weight": st.sampled_from([1.0, 3.0]),
}


@hypothesis.given(seed=st.integers(0, 10_000), switches=st.fixed_dictionaries(SWITCHES), hidden=st.booleans())
def test_anchors_positives_and_negatives_are_those_of_the_definition(seed, switches, hidden):
    _, _, items, feedback, said = random_sessions(seed)
    positives = mask = None
    if hidden:
        switches["anchors"] = "listened"
        mask = (items != 0) & (torch.arange(7) % 2 == 0)
        visible = [
            {item for item, m in zip(*row, strict=True) if not m}
            for row in zip(items.tolist(), mask, strict=True)
        ]
        positives = torch.full_like(items, -1)
        for b, t in itertools.product(range(4), range(7)):
            listened = feedback[b, t] >= switches["threshold"] and said[b, t] >= 0
            if mask[b, t] and listened and int(items[b, t]) not in visible[b]:
                positives[b, t] = t
    threshold = switches["threshold"]
    settings = {name: value for name, value in switches.items() if name != "threshold"}
    batch = batch_of(items, feedback, said, threshold=threshold, cloze_mask=mask)
    contrast = session_contrast(batch, **settings)
    expected = slow_anchors(items, feedback, said, positives=positives, **switches)
    for b, t in itertools.product(range(4), range(7)):
        assert bool(contrast.anchor_mask[b, t]) == ((b, t) in expected)
        if (b, t) not in expected:
            assert contrast.anchor_weight[b, t] == 0
            continue
        p, weight, negatives = expected[b, t]
        assert contrast.positive_position[b, t] == p
        assert contrast.anchor_weight[b, t] == weight
        assert contrast.negative_mask[b, t].nonzero().flatten().tolist() == sorted(negatives)
        for s, strength in negatives.items():
            assert contrast.log_weight[b, s].exp().item() == pytest.approx(strength)


def test_unknown_is_neither_liked_nor_disliked():
    _, _, items, feedback, _ = random_sessions(3)
    without = session_contrast((items, feedback))
    unknown = session_contrast(batch_of(items, feedback, torch.zeros_like(feedback)))
    assert all(torch.equal(*pair) for pair in zip(without, unknown, strict=True))


def test_what_stands_at_padding_is_not_rejected():
    items = torch.tensor([[1, 2, 0]])
    said = torch.tensor([[0.0, -1.0, -1.0]])
    contrast = session_contrast(batch_of(items, torch.tensor([[1.0, 1.0, -1.0]]), said))
    assert contrast.rejected_mask.tolist() == [[False, True, False]]
    assert contrast.kept_items.tolist() == [[1, 0, 0]]


def test_a_track_that_is_elsewhere_liked_is_not_pushed_away():
    items, feedback = torch.tensor([[1, 2, 2, 3]]), torch.tensor([[1.0, -1.0, -1.0, 1.0]])
    said = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    contrast = session_contrast(batch_of(items, feedback, said))
    assert contrast.rejected_mask.tolist() == [[False, True, False, False]]
    assert not contrast.negative_mask.any()


def test_a_mean_of_weights_below_one_is_a_mean():
    assert weighted_mean(torch.tensor([2.0, 6.0]), torch.tensor([0.1, 0.3])).item() == pytest.approx(5.0)


def test_a_liked_skip_is_neither_pushed_away_nor_a_target():
    items, feedback = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
    said = torch.tensor([[0.0, 1.0, 0.0]])
    contrast = session_contrast(batch_of(items, feedback, said))
    assert not contrast.negative_mask.any()
    assert contrast.positive_position[0, 0] == 2


@pytest.mark.parametrize(("rule", "expected"), [("next_listened", [3, 3, 0]), ("next", [0, 3, 0])])
def test_a_disliked_track_is_never_a_target(rule, expected):
    items, feedback = torch.tensor([[1, 2, 3]]), torch.ones(1, 3)
    said = torch.tensor([[0.0, -0.2, 1.0]])
    assert next_item_targets(items, feedback, explicit_feedback=said, rule=rule).tolist() == [expected]
    positions = target_positions(items, feedback, explicit_feedback=said, rule=rule)
    assert positions.tolist() == [[{3: 2, 0: -1}[item] for item in expected]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchors": "every"}, "`anchors` must be one of 'listened', 'all', got 'every'"),
        ({"negatives": "hard"}, "`negatives` must be one of 'session', 'past', 'passed', 'batch'"),
        ({"skip_weights": "none"}, "`skip_weights` must be one of"),
        ({"dislike_weight": 0.0}, r"`dislike_weight` must be in \(0, inf\), got 0.0"),
        ({"like_weight": -1.0}, "`like_weight` must be in"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ContrastSettings(**change)
    with pytest.raises(ValueError, match=message):
        session_contrast((torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 3)), **change)


def test_the_keyword_arguments_are_those_of_the_frozen_settings():
    declared = {field.name: field.type for field in dataclasses.fields(ContrastSettings)}
    assert declared == ContrastOptions.__annotations__
    settings = ContrastSettings(negatives="past", like_weight=2.0)
    assert ContrastSettings(**settings.options) == settings
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.negatives = "session"


def test_sessions_are_a_batch_or_a_pair():
    items, feedback = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
    pair, batch = session_contrast((items, feedback)), session_contrast(SessionBatch(items, feedback))
    assert all(torch.equal(*both) for both in zip(pair, batch, strict=True))
    with pytest.raises(TypeError, match=r"`sessions` must be a SessionBatch or the pair"):
        session_contrast(items)
    with pytest.raises(TypeError, match=r"`feedback` must be of a floating-point dtype"):
        session_contrast((items, items))


def test_all_positions_as_anchors_are_refused_where_items_are_hidden():
    batch = batch_of(torch.tensor([[1, 2]]), torch.ones(1, 2), cloze_mask=torch.tensor([[True, False]]))
    with pytest.raises(ValueError, match="`anchors` must be 'listened' for a bidirectional backbone"):
        session_contrast(batch, anchors="all")
