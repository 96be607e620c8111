import warnings

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from skipcl_lightning.functional import candidate_ranks, sample_candidates

COUNTS = torch.tensor([7, 6, 0, 3, 1])


@pytest.fixture(autouse=True)
def _without_the_warning():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Ranks among sampled candidates")
        yield


def shares(candidates, row, num_items):
    return [float((candidates[row] == item).float().mean()) for item in range(num_items + 1)]


def test_uniform_candidates_are_all_items_but_the_target_alike():
    generator = torch.Generator().manual_seed(0)
    candidates = sample_candidates(torch.tensor([1, 3, 5]), 20_000, 5, generator=generator)
    for row, target in enumerate((1, 3, 5)):
        expected = [0 if item in (0, target) else 1 / 4 for item in range(6)]
        assert shares(candidates, row, 5) == pytest.approx(expected, abs=0.02)


def test_popular_candidates_come_as_often_as_they_are_played():
    generator = torch.Generator().manual_seed(0)
    counts = COUNTS.clone()
    candidates = sample_candidates(
        torch.tensor([4, 1]), 20_000, 4, sampler="popularity", item_counts=counts, generator=generator
    )
    # A drawn target leaves its place empty, as 0; padding's own count means nothing.
    assert shares(candidates, 0, 4) == pytest.approx([0.1, 0.6, 0, 0.3, 0], abs=0.02)
    assert shares(candidates, 1, 4) == pytest.approx([0.6, 0, 0, 0.3, 0.1], abs=0.02)
    assert torch.equal(counts, COUNTS)


@hypothesis.given(seed=st.integers(0, 10_000), ties=st.sampled_from(["pessimistic", "mean", "optimistic"]))
def test_ranks_equal_a_count_by_hand(seed, ties):
    generator = torch.Generator().manual_seed(seed)
    own, scores = (torch.randint(-1, 2, size, generator=generator).float() for size in ((3,), (3, 5)))
    candidates = torch.randint(0, 3, (3, 5), generator=generator)
    ranks = candidate_ranks(own, scores, candidates, ties=ties).tolist()
    for n in range(3):
        real = [s for s, item in zip(scores[n].tolist(), candidates[n].tolist(), strict=True) if item]
        above, equal = sum(s > own[n] for s in real), sum(s == own[n] for s in real)
        share = {"pessimistic": 1, "mean": 1 / 2, "optimistic": 0}[ties]
        assert ranks[n] == 1 + above + share * equal


def test_a_target_without_a_score_is_last():
    assert candidate_ranks(
        torch.tensor([torch.nan]), torch.zeros(1, 4), torch.ones(1, 4).long()
    ).tolist() == [5]


def test_it_warns_with_the_reason_and_the_source():
    with pytest.warns(UserWarning, match="even in expectation .*Krichene and Rendle.*KDD 2020"):
        sample_candidates(torch.tensor([1]), 3, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_candidates": 0}, "`num_candidates` must be at least 1"),
        ({"num_items": 1}, "`num_items` must be at least 2"),
        ({"sampler": "log"}, "`sampler` must be one of"),
        ({"sampler": "popularity"}, "`item_counts` must be given .* got 'popularity' without them"),
        ({"item_counts": COUNTS}, "`item_counts` must be given .* got 'uniform' with them"),
        (
            {"sampler": "popularity", "item_counts": torch.zeros(5, dtype=torch.int64)},
            "`item_counts` must have a count above 0, got none",
        ),
        (
            {"sampler": "popularity", "item_counts": COUNTS[:3]},
            r"`item_counts` must have shape \[V\+1=5\], got \[3\]",
        ),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        sample_candidates(**{"target": torch.tensor([1]), "num_candidates": 2, "num_items": 4, **change})


def test_integer_scores_are_refused():
    candidates = torch.tensor([[4, 7]])
    with pytest.raises(TypeError, match="`target_scores` must be of a floating-point dtype"):
        candidate_ranks(torch.tensor([1]), torch.rand(1, 2), candidates)
    with pytest.raises(TypeError, match="`scores` must be of a floating-point dtype"):
        candidate_ranks(torch.rand(1), torch.tensor([[1, 2]]), candidates)
