import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional import append_mask_token, cloze_positives, draw_cloze_mask, hide_masked


def random_batch(seed, num_items=6, batch_size=5, length=7):
    """Sessions with repeats, skips, padding, and perhaps rows without a track."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(1, num_items + 1, (batch_size, length), generator=generator)
    lengths = torch.randint(0, length + 1, (batch_size, 1), generator=generator)
    items[torch.arange(length) >= lengths] = 0
    feedback = torch.rand(batch_size, length, generator=generator) * 2 - 1
    return SessionBatch(items, torch.where(items > 0, feedback, 0)), generator


@hypothesis.given(
    seed=st.integers(0, 10_000), probability=st.floats(0.01, 1), last_probability=st.floats(0, 1)
)
def test_only_candidates_are_hidden_and_every_session_with_one_hides_one(seed, probability, last_probability):
    batch, generator = random_batch(seed)
    mask = draw_cloze_mask(
        batch.listened_mask, probability=probability, last_probability=last_probability, generator=generator
    )
    for row, candidates in zip(mask.tolist(), batch.listened_mask.tolist(), strict=True):
        assert all(candidate for hidden, candidate in zip(row, candidates, strict=True) if hidden)
        assert any(row) == any(candidates)


def test_tracks_are_hidden_as_often_as_asked():
    candidates = torch.ones(20_000, 10, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    mask = draw_cloze_mask(candidates, probability=0.3, last_probability=0.0, generator=generator)
    # A session that would hide none, as 0.7 ** 10 of them, hides its last.
    assert float(mask[:, :-1].float().mean()) == pytest.approx(0.3, abs=0.005)
    assert float(mask[:, -1].float().mean()) == pytest.approx(0.3 + 0.7**10, abs=0.01)
    mask = draw_cloze_mask(candidates, probability=0.3, last_probability=0.25, generator=generator)
    only_last = mask[:, -1] & (mask.sum(dim=1) == 1)
    by_chance = 0.75 * (0.3 * 0.7**9 + 0.7**10)
    assert float(only_last.float().mean()) == pytest.approx(0.25 + by_chance, abs=0.01)


def test_the_last_candidate_is_the_one_that_is_hidden_alone():
    candidates = torch.tensor([[True, False, True, False], [False, True, False, False], [False] * 4])
    mask = draw_cloze_mask(candidates, probability=0.5, last_probability=1.0)
    assert mask.tolist() == [[False, False, True, False], [False, True, False, False], [False] * 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probability": 0.0}, r"`probability` must be in \(0, 1\]"),
        ({"probability": float("nan")}, "`probability` must be in"),
        ({"last_probability": 1.1}, r"`last_probability` must be in \[0, 1\]"),
    ],
)
def test_bad_probabilities_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        draw_cloze_mask(
            torch.ones(1, 2, dtype=torch.bool), **{"probability": 0.2, "last_probability": 0.1, **settings}
        )


def test_what_is_hidden_leaves_neither_item_nor_feedback():
    batch, _ = random_batch(3)
    mask = draw_cloze_mask(batch.listened_mask, probability=0.5, last_probability=0.1)
    visible = hide_masked(batch.replace(cloze_mask=mask), 99)
    assert (visible.items[mask] == 99).all()
    assert not visible.feedback[mask].any()
    assert torch.equal(visible.items[~mask], batch.items[~mask])
    assert torch.equal(visible.feedback[~mask], batch.feedback[~mask])
    assert hide_masked(batch, 99) is batch


def test_a_mask_token_stands_behind_the_last_track_of_every_row():
    items = torch.tensor([[5, 3, 4], [2, 0, 0], [0, 0, 0]])
    batch = SessionBatch(items, torch.where(items > 0, 0.5, 0), cloze_mask=items == 5)
    appended = append_mask_token(batch, 9)
    assert appended.cloze_mask is None
    assert appended.items.tolist() == [[5, 3, 4, 9], [2, 9, 0, 0], [9, 0, 0, 0]]
    assert appended.feedback.tolist() == [[0.5, 0.5, 0.5, 0], [0.5, 0, 0, 0], [0, 0, 0, 0]]


@hypothesis.given(seed=st.integers(0, 10_000), probability=st.floats(0.05, 1))
def test_no_anchors_visible_input_contains_its_own_positive(seed, probability):
    batch, generator = random_batch(seed)
    mask = draw_cloze_mask(
        batch.valid_mask, probability=probability, last_probability=0.1, generator=generator
    )
    hidden = batch.replace(cloze_mask=mask)
    positives = cloze_positives(batch.items, batch.listened_mask, mask)
    visible = hide_masked(hidden, 99).items
    for b in range(len(batch)):
        for t in range(batch.items.shape[1]):
            item = int(batch.items[b, t])
            expected = bool(mask[b, t]) and float(batch.feedback[b, t]) >= 0
            expected = expected and item not in visible[b].tolist()
            assert int(positives[b, t]) == (t if expected else -1)
