import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from skipcl_lightning.functional.ranking.metrics import (
    average_precision,
    hit_rate,
    mrr,
    ndcg,
    pairwise_wins,
    rank_percentile,
)

SCORES = st.sampled_from([-math.inf, -2.0, -1.0, 0.0, 1.0, math.inf, math.nan])
FORMULAS = [hit_rate, ndcg, mrr, average_precision]


def slow_average_precision(rank, top_k):
    relevant = [place == rank for place in range(1, top_k + 1)]
    return sum(sum(relevant[:place]) / place for place in range(1, top_k + 1) if relevant[place - 1])


@pytest.mark.parametrize("top_k", [1, 3, 10])
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 10, 11, 1000])
def test_formulas_equal_their_definitions(rank, top_k):
    hit = rank <= top_k
    expected = [float(hit), hit / math.log2(rank + 1), hit / rank, slow_average_precision(rank, top_k)]
    values = [formula(torch.tensor([rank]), top_k=top_k).item() for formula in FORMULAS]
    assert values == pytest.approx(expected, rel=1e-6)


@hypothesis.given(ranks=st.lists(st.integers(1, 30), min_size=1), top_k=st.integers(1, 30))
def test_average_precision_of_one_target_is_its_reciprocal_rank(ranks, top_k):
    ranks = torch.tensor(ranks)
    assert torch.equal(average_precision(ranks, top_k=top_k), mrr(ranks, top_k=top_k))


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_half_rank_beyond_k_is_no_hit(formula):
    values = formula(torch.tensor([2.0, 2.5]), top_k=2)
    assert values[0] > 0
    assert values[1] == 0


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_formulas_keep_the_shape_and_never_round_to_integers(formula, dtype):
    values = formula(torch.tensor([[1, 2, 3]], dtype=dtype), top_k=2)
    assert values.shape == (1, 3)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_cut_off_below_one_is_an_error(formula):
    with pytest.raises(ValueError, match="`top_k` must be at least 1, got 0"):
        formula(torch.tensor([1]), top_k=0)


def test_percentiles_run_from_first_to_last():
    assert rank_percentile(torch.tensor([1, 2, 3, 4, 5]), num_items=5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    with pytest.raises(ValueError, match="`num_items` must be at least 2, got 1"):
        rank_percentile(torch.tensor([1]), num_items=1)


@hypothesis.given(
    own=SCORES,
    skips=st.lists(st.tuples(SCORES, st.booleans()), max_size=6),
    ties=st.sampled_from(["pessimistic", "mean", "optimistic"]),
)
def test_pairwise_wins_equal_a_count_by_hand_for_every_tie_rule(own, skips, ties):
    counted = [score for score, is_skip in skips if is_skip]
    points = {"pessimistic": 0, "mean": 1, "optimistic": 2}[ties]
    expected = sum(2 if own > score else points if own == score else 0 for score in counted)
    half_points, pairs = pairwise_wins(
        torch.tensor([own]),
        torch.tensor([[score for score, _ in skips]]).reshape(1, -1),
        torch.tensor([[is_skip for _, is_skip in skips]], dtype=torch.bool).reshape(1, -1),
        ties=ties,
    )
    assert half_points.tolist() == [expected]
    assert pairs.tolist() == [len(counted)]
    assert half_points.dtype == pairs.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ties": "best"}, ValueError, "`ties` must be one of"),
        ({"skip_scores": torch.zeros(3, 2)}, ValueError, r"`skip_scores` must have shape \[N=1, L\]"),
        ({"skip_mask": torch.ones(1, 3) > 0}, ValueError, r"`skip_mask` must have shape \[N=1, L=2\]"),
        ({"skip_mask": torch.ones(1, 2)}, TypeError, "`skip_mask` must be of dtype torch.bool"),
    ],
)
def test_bad_pairs_are_named(change, error, message):
    pairs = {
        "target_scores": torch.zeros(1),
        "skip_scores": torch.zeros(1, 2),
        "skip_mask": torch.ones(1, 2) > 0,
    }
    with pytest.raises(error, match=message):
        pairwise_wins(**{**pairs, **change})
