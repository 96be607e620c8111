import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from skipcl_lightning.functional import score_ranks, target_ranks

SCORES = st.sampled_from([-math.inf, -2.0, -1.0, 0.0, 1.0, math.inf, math.nan])
TIES = ["pessimistic", "mean", "optimistic"]


def slow_rank(scores, target, ties):
    own = scores[target]
    others = scores[:target] + scores[target + 1 :]
    if math.isnan(own):
        return len(scores)
    above = sum(math.isnan(score) or score > own for score in others)
    equal = sum(score == own for score in others)
    return 1 + above + {"pessimistic": equal, "mean": equal / 2, "optimistic": 0}[ties]


@hypothesis.given(
    scores=st.lists(SCORES, min_size=1, max_size=8), target=st.integers(0, 7), ties=st.sampled_from(TIES)
)
def test_ranks_equal_a_count_by_hand_for_every_tie_rule(scores, target, ties):
    target = min(target, len(scores) - 1)
    ranks = score_ranks(torch.tensor([scores]), torch.tensor([target]), ties=ties)
    assert ranks.tolist() == [slow_rank(scores, target, ties)]


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("chunk_size", [1, 40, 10_000])
def test_catalogue_ranks_equal_the_slow_count_in_any_chunks(ties, chunk_size):
    generator = torch.Generator().manual_seed(0)
    # Small integers: products are exact, and ties abound.
    queries = torch.randint(-2, 3, (9, 3), generator=generator).float()
    table = torch.randint(-2, 3, (18, 3), generator=generator).float()
    target = torch.randint(1, 18, (9,), generator=generator)
    exclude = torch.randint(0, 18, (9, 5), generator=generator)
    exclude[0] = target[0]
    ranks = target_ranks(queries, table, target, exclude=exclude, ties=ties, chunk_size=chunk_size).tolist()
    for n in range(9):
        scores = (queries[n] @ table.T).tolist()
        for item in exclude[n].tolist():
            if item not in (0, target[n]):
                scores[item] = -math.inf
        assert ranks[n] == slow_rank(scores[1:], int(target[n]) - 1, ties)


@pytest.mark.parametrize("num_items", [1, 7, 33, 1001])
def test_collapsed_embeddings_rank_last(num_items):
    table = torch.randn(1, 13, generator=torch.Generator().manual_seed(0)).repeat(num_items + 1, 1)
    queries = torch.randn(5, 13, generator=torch.Generator().manual_seed(1))
    target = torch.arange(5) % num_items + 1
    assert target_ranks(queries, table, target).tolist() == [num_items] * 5


@pytest.mark.parametrize("ties", TIES)
def test_a_nan_query_ranks_last(ties):
    queries = torch.tensor([[math.nan, 1.0]])
    assert target_ranks(queries, torch.randn(8, 2), torch.tensor([3]), ties=ties).tolist() == [7]


def test_bf16_autocast_does_not_make_false_ties():
    table = torch.tensor([[0.0], [1.0], [1.0001], [1.0002]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert target_ranks(torch.ones(1, 1), table, torch.tensor([3])).tolist() == [1]


def test_a_repeated_target_is_ranked_though_it_is_excluded():
    table = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    exclude = torch.tensor([[2, 3, 2, 0]])
    assert target_ranks(torch.ones(1, 1), table, torch.tensor([2]), exclude=exclude).tolist() == [1]


@pytest.mark.parametrize("padding", [math.nan, math.inf, 100.0])
def test_the_padding_row_is_no_competitor(padding):
    table = torch.tensor([[padding], [1.0], [2.0]])
    assert target_ranks(torch.ones(2, 1), table, torch.tensor([2, 1])).tolist() == [1, 2]


def test_arguments_are_left_as_they_were_and_need_no_gradient():
    queries, table = torch.randn(3, 2, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    target, exclude = torch.tensor([1, 2, 3]), torch.tensor([[1, 0], [2, 3], [0, 0]])
    before = [tensor.detach().clone() for tensor in (queries, table, target, exclude)]
    ranks = target_ranks(queries, table, target, exclude=exclude, ties="mean")
    assert not ranks.requires_grad
    after = (queries, table, target, exclude)
    assert all(torch.equal(tensor, old) for tensor, old in zip(after, before, strict=True))


def test_no_queries_yield_no_ranks():
    assert target_ranks(torch.zeros(0, 2), torch.zeros(4, 2), torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ties": "best"}, "`ties` must be one of"),
        ({"chunk_size": 0}, "`chunk_size` must be at least 1, got 0"),
        ({"item_embeddings": torch.zeros(1, 2)}, "`item_embeddings` must have at least 2 rows, got 1"),
        (
            {"item_embeddings": torch.zeros(4, 3)},
            r"`item_embeddings` must have shape \[V\+1, D=2\], got \[4, 3\]",
        ),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "queries": torch.zeros(1, 2),
        "item_embeddings": torch.zeros(4, 2),
        "target": torch.tensor([1]),
    }
    with pytest.raises(ValueError, match=message):
        target_ranks(**{**arguments, **change})
