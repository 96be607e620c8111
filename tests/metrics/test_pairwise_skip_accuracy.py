import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from skipcl_lightning.metrics import PairwiseSkipAccuracy

SCORES = st.sampled_from([-math.inf, -2.0, -1.0, 0.0, 1.0, math.inf, math.nan])
FEEDBACK = st.sampled_from([-1.0, -0.25, 0.0, 1.0, math.nan])
LENGTH = 4
PLACES = st.lists(st.tuples(SCORES, st.booleans()), min_size=LENGTH, max_size=LENGTH)
SESSIONS = st.lists(st.tuples(SCORES, PLACES, FEEDBACK), max_size=8)
POINTS_OF_A_TIE = {"pessimistic": 0, "mean": 0.5, "optimistic": 1}


def slow_accuracy(sessions, ties):
    points = [
        1.0 if own > score else POINTS_OF_A_TIE[ties] if own == score else 0.0
        for own, places, feedback in sessions
        for score, is_skip in places
        if is_skip and feedback >= 0
    ]
    return sum(points) / len(points) if points else math.nan


def as_tensors(sessions):
    places = [places for _, places, _ in sessions]
    scores = [[score for score, _ in session] for session in places]
    mask = [[is_skip for _, is_skip in session] for session in places]
    return {
        "target_scores": torch.tensor([own for own, _, _ in sessions]),
        "skip_scores": torch.tensor(scores).reshape(-1, LENGTH),
        "skip_mask": torch.tensor(mask, dtype=torch.bool).reshape(-1, LENGTH),
        "target_feedback": torch.tensor([feedback for _, _, feedback in sessions]),
    }


@hypothesis.given(sessions=SESSIONS, ties=st.sampled_from(sorted(POINTS_OF_A_TIE)))
def test_accuracy_pools_pairs_and_equals_a_count_by_hand(sessions, ties):
    value = PairwiseSkipAccuracy(ties=ties)(**as_tensors(sessions)).item()
    assert value == pytest.approx(slow_accuracy(sessions, ties), nan_ok=True)


@hypothesis.given(sessions=SESSIONS, data=st.data())
def test_no_split_into_batches_and_no_order_changes_a_bit(sessions, data):
    whole, split = PairwiseSkipAccuracy(ties="mean"), PairwiseSkipAccuracy(ties="mean")
    whole.update(**as_tensors(sessions))
    shuffled = data.draw(st.permutations(sessions))
    cut = data.draw(st.integers(0, len(sessions)))
    for part in (shuffled[:cut], shuffled[cut:]):
        split.update(**as_tensors(part))
    assert torch.equal(whole.compute().nan_to_num(-9), split.compute().nan_to_num(-9))


def test_padding_never_changes_the_accuracy():
    sessions = [(0.5, [(0.1, True), (0.9, True), (0.3, False), (0.2, True)], 1.0)]
    batch = as_tensors(sessions)
    padded = {
        **batch,
        "skip_scores": torch.cat([batch["skip_scores"], torch.tensor([[math.nan, -9.0]])], dim=1),
        "skip_mask": torch.cat([batch["skip_mask"], torch.zeros(1, 2, dtype=torch.bool)], dim=1),
    }
    assert PairwiseSkipAccuracy()(**batch) == PairwiseSkipAccuracy()(**padded)


def test_the_threshold_says_which_targets_were_listened_to():
    batch = as_tensors([(0.5, [(0.1, True)] * 4, 0.2), (0.5, [(0.9, True)] * 4, 0.8)])
    assert PairwiseSkipAccuracy()(**batch).item() == 0.5
    assert PairwiseSkipAccuracy(skip_threshold=0.5)(**batch).item() == 0


def test_without_feedback_every_session_counts():
    batch = as_tensors([(0.5, [(0.1, True)] * 4, 1.0), (0.5, [(0.9, True)] * 4, -1.0)])
    del batch["target_feedback"]
    assert PairwiseSkipAccuracy()(**batch).item() == 0.5
