import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from skipcl_lightning.functional import last_position, next_item_targets, next_listened

SESSIONS = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 1.0]), min_size=0, max_size=9)


@hypothesis.given(values=SESSIONS, pad=st.integers(0, 3), threshold=st.sampled_from([-0.7, 0.0, 0.5]))
def test_next_listened_equals_a_search_through_what_follows(values, pad, threshold):
    feedback = torch.tensor([values + [0.0] * pad], dtype=torch.float32)
    valid_mask = torch.tensor([[True] * len(values) + [False] * pad], dtype=torch.bool)
    expected = [
        next((s for s in range(t + 1, len(values)) if values[s] >= threshold), -1)
        for t in range(len(values) + pad)
    ]
    assert next_listened(feedback, valid_mask, skip_threshold=threshold).tolist() == [expected]


@hypothesis.given(values=SESSIONS, pad=st.integers(0, 3))
def test_targets_skip_the_skipped_only_under_next_listened(values, pad):
    # Error 5 of the authors' code: cross-entropy pulled towards skipped tracks.
    items = list(range(1, len(values) + 1))
    batch = (
        torch.tensor([items + [0] * pad], dtype=torch.int64),
        torch.tensor([values + [0.0] * pad], dtype=torch.float32),
    )
    wanted = [
        next((items[s] for s in range(t + 1, len(values)) if values[s] >= 0), 0) for t in range(len(values))
    ]
    assert next_item_targets(*batch).tolist() == [wanted + [0] * pad]
    following = [*items[1:], 0] if items else []
    assert next_item_targets(*batch, rule="next").tolist() == [following + [0] * pad]


def test_last_position_takes_the_last_real_one_and_zeros_without_any():
    sequence = torch.tensor([[[1.0], [2.0], [torch.nan]], [[torch.nan]] * 3, [[4.0], [5.0], [6.0]]])
    valid_mask = torch.tensor([[True, True, False], [False] * 3, [True] * 3])
    assert last_position(sequence, valid_mask).tolist() == [[2.0], [0.0], [6.0]]


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="`rule` must be one of 'next_listened', 'next', got 'previous'"):
        next_item_targets(torch.ones(1, 1, dtype=torch.int64), torch.ones(1, 1), rule="previous")
