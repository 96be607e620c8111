import math
import sys
from fractions import Fraction
from unittest import mock

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional import rank_batch, rank_scored_batch, score_ranks, target_ranks
from skipcl_lightning.functional.ranking import ranks as module
from skipcl_lightning.functional.ranking.ranks import (
    compare_exactly,
    error_unit,
    full_precision,
    scale_queries,
)

SCORES = st.sampled_from([-math.inf, -2.0, -1.0, 0.0, 1.0, math.inf, math.nan])
RANKS = sys.modules["skipcl_lightning.functional.ranking.ranks"]
TIES = ["pessimistic", "mean", "optimistic"]


def slow_rank(scores, target, ties):
    own = scores[target]
    others = scores[:target] + scores[target + 1 :]
    if math.isnan(own):
        return len(scores)
    above = sum(math.isnan(score) or score > own for score in others)
    equal = sum(score == own for score in others)
    return 1 + above + {"pessimistic": equal, "mean": equal / 2, "optimistic": 0}[ties]


@pytest.fixture(scope="module", autouse=True, params=[False, True], ids=["in float32", "in float64"])
def is_wide(request):
    """Every test twice: as a CPU counts, and as a GPU does where there are few scores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RANKS, "_is_better_wide", lambda queries, item_embeddings: request.param)
        yield request.param


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_have_ranks_beyond_the_integers_of_their_dtype(dtype):
    scores = (torch.arange(5_000) / 5_000).repeat(2, 1).to(dtype)
    target = torch.tensor([0, 2_500])
    for ties in TIES:
        ranks = score_ranks(scores, target, ties=ties)
        assert ranks.tolist() == score_ranks(scores.double(), target, ties=ties).tolist()


def test_a_batch_without_targets_has_no_ranks():
    batch = SessionBatch(torch.tensor([[1, 2]]), torch.ones(1, 2))
    with pytest.raises(ValueError, match="`batch` must have targets, got none"):
        rank_batch(torch.ones(1, 3), torch.ones(4, 3), batch)
    with pytest.raises(ValueError, match="`batch` must have targets, got none"):
        rank_scored_batch(torch.ones(1, 4), batch)


def rounded_score(query, item):
    """The inner product without any rounding, then rounded as scores are: to float64, then to float32."""
    exact = sum(Fraction(float(q)) * Fraction(float(e)) for q, e in zip(query, item, strict=True))
    return float(np.float32(float(exact)))


@hypothesis.given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.0, 1e-8, 1e-7, 1e-5, 1.0]),
    scale=st.sampled_from([1e-25, 1e-12, 1.0, 1e8, 1e20]),
    table_scale=st.sampled_from([1e-12, 1.0, 1e12]),
    ties=st.sampled_from(TIES),
    chunk_size=st.sampled_from([1, 17, 64, None]),
    group=st.sampled_from([4, 5, 256]),
)
def test_ranks_equal_unrounded_arithmetic_however_close_the_scores(
    seed, spread, scale, table_scale, ties, chunk_size, group
):
    generator = torch.Generator().manual_seed(seed)
    # Rows about as far apart as a float32 product is off, some of them equal.
    table = torch.randn(1, 5, generator=generator) + spread * torch.randn(40, 5, generator=generator)
    table[20:25] = table[10:15]
    queries = torch.randn(4, 5, generator=generator)
    # Scores near 0 lose most of their digits.
    queries[0] -= table[10] * (queries[0] @ table[10]) / (table[10] @ table[10])
    queries, table = scale * queries, table_scale * table
    target = torch.tensor([10, 20, 3, 39])
    exclude = torch.randint(0, 40, (4, 6), generator=generator)
    with mock.patch.object(module, "_GROUP", group):
        ranks = target_ranks(queries, table, target, exclude=exclude, ties=ties, chunk_size=chunk_size)
    ranks = ranks.tolist()
    for n in range(4):
        left_out = set(exclude[n].tolist()) - {int(target[n])}
        scores = [
            -math.inf if item in left_out else rounded_score(queries[n], table[item]) for item in range(40)
        ]
        assert ranks[n] == slow_rank(scores[1:], int(target[n]) - 1, ties)


@pytest.mark.parametrize("columns", [256, 700, 2048])
@pytest.mark.parametrize("many_ties", [False, True])
def test_ranks_among_many_items_are_those_of_their_scores(columns, many_ties):
    generator = torch.Generator().manual_seed(0)
    if many_ties:
        table = torch.randint(-2, 3, (2701, 16), generator=generator).float()
        queries = torch.randint(-2, 3, (40, 16), generator=generator).float()
    else:
        # So many dimensions that some scores are near some targets, in some of the groups.
        table, queries = (
            torch.randn(2701, 300, generator=generator),
            torch.randn(40, 300, generator=generator),
        )
        table[7::97] = table[7].clone()
    target = torch.randint(1, 2701, (40,), generator=generator)
    target[:5] = 7
    scores = (queries.double() @ table[1:].double().T).float()
    for ties in TIES:
        ranks = target_ranks(queries, table, target, ties=ties, chunk_size=40 * columns)
        assert torch.equal(ranks, score_ranks(scores, target - 1, ties=ties))


def test_a_row_that_is_not_finite_does_not_blur_its_neighbours():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(1, 5, generator=generator) + 1e-7 * torch.randn(40, 5, generator=generator)
    for value in (math.nan, math.inf):
        table[30] = value
        queries = torch.randn(6, 5, generator=generator)
        target = torch.arange(1, 7)
        ranks = target_ranks(queries, table, target).tolist()
        for n in range(6):
            scores = [
                float((queries[n] * row).sum()) if item == 30 else rounded_score(queries[n], row)
                for item, row in enumerate(table)
            ]
            assert ranks[n] == slow_rank(scores[1:], n, "pessimistic")


def test_products_that_may_overflow_on_the_way_are_ranked_by_their_exact_values():
    # Partial sums of the second are 4e38, which float32 does not hold; its score is 2e38.
    table = torch.tensor([[0.0, 0.0, 0.0], [3e18, 0.0, 0.0], [2e18, 2e18, -2e18], [1e18, 0.0, 0.0]])
    ranks = target_ranks(torch.full((3, 3), 1e20), table, torch.tensor([1, 2, 3]))
    assert ranks.tolist() == [1, 2, 3]


def test_sums_of_one_product_in_another_order_tie():
    # Half way between two float32 numbers, where the last bit of a float64 sum decides on the rounding.
    middle = 1 + 2.0**-24
    own = torch.tensor([[middle + 2.0**-52]], dtype=torch.float64)
    scores = torch.tensor([[middle - 2.0**-52, middle - 2.0**-40]], dtype=torch.float64)
    assert float(own.float()) != float(scores[0, 0].float())
    is_below, is_tied = compare_exactly(scores, own, torch.ones(1, 2, dtype=torch.float64), 4)
    assert is_tied.tolist() == [[True, False]]
    assert is_below.tolist() == [[False, True]]


def test_products_are_of_full_precision_meanwhile():
    before = torch.backends.mkldnn.matmul.fp32_precision
    with full_precision(torch.device("cpu")):
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@hypothesis.given(data=st.data(), ties=st.sampled_from(TIES))
def test_what_is_not_finite_is_ranked_as_numbers_are(data, ties):
    value = st.sampled_from([-math.inf, -1.0, 0.0, 1.0, 2.0, math.inf, math.nan])
    vectors = st.lists(value, min_size=2, max_size=2)
    table = data.draw(st.lists(vectors, min_size=4, max_size=4))
    query = data.draw(vectors)
    scores = [query[0] * item[0] + query[1] * item[1] for item in table]
    ranks = target_ranks(
        torch.tensor([query]), torch.tensor([[9.0, 9.0], *table]), torch.tensor([2]), ties=ties
    )
    assert ranks.tolist() == [slow_rank(scores, 1, ties)]


def test_a_lower_precision_of_products_is_not_taken_and_stays_as_it_was():
    table = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    queries = torch.randn(30, 16, generator=torch.Generator().manual_seed(1))
    target = torch.arange(1, 31)
    expected = target_ranks(queries, table, target)
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        assert torch.equal(target_ranks(queries, table, target), expected)
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_ranked_by_their_own_values(dtype):
    generator = torch.Generator().manual_seed(0)
    queries, table = (torch.randn(n, 8, generator=generator).to(dtype) for n in (20, 101))
    target = torch.randint(1, 101, (20,), generator=generator)
    scores = (queries.double() @ table.double().T).float()
    expected = 101 - 1 - (scores[:, 1:] < scores.gather(1, target[:, None])).sum(dim=1)
    assert torch.equal(target_ranks(queries, table, target), expected)


@pytest.mark.parametrize("columns", [1, 7, 2**20 + 3])
def test_rows_longer_than_a_block_are_counted_whole(columns):
    scores = torch.arange(columns, dtype=torch.float32).repeat(2, 1)
    target = torch.tensor([columns - 1, columns // 2])
    assert score_ranks(scores, target).tolist() == [1, columns - columns // 2]


@pytest.mark.parametrize("ties", TIES)
def test_a_nan_query_ranks_last(ties):
    queries = torch.tensor([[math.nan, 1.0]])
    assert target_ranks(queries, torch.randn(8, 2), torch.tensor([3]), ties=ties).tolist() == [7]
    exclude = torch.tensor([[1, 2]])
    ranks = target_ranks(queries, torch.randn(8, 2), torch.tensor([3]), exclude=exclude, ties=ties)
    assert ranks.tolist() == [7]


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


def test_what_is_settled_on_the_way_counts_as_what_is_settled_at_the_end(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    # One item in a hundred is a tie: too few for a product of all of them.
    table = torch.randn(2001, 6, generator=generator)
    table[torch.randperm(2000, generator=generator)[:20] + 1] = table[1].clone()
    queries = torch.randn(50, 6, generator=generator)
    target = torch.ones(50, dtype=torch.int64)
    for ties in TIES:
        expected = target_ranks(queries, table, target, ties=ties)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_MOST_OPEN", 3)
            assert torch.equal(target_ranks(queries, table, target, ties=ties, chunk_size=5000), expected)
    assert len(expected.unique()) > 20


@hypothesis.given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-30, 1e-18, 1.0, 1e15]),
    table_scale=st.sampled_from([1e-19, 1e-10, 1.0, 1e14, 1e18, 1e29]),
    longest=st.sampled_from([1.0, 1e4]),
)
def test_differences_are_off_by_less_than_they_are_said_to_be(seed, scale, table_scale, longest):
    generator = torch.Generator().manual_seed(seed)
    queries = scale * torch.randn(3, 7, generator=generator, dtype=torch.float64)
    table = table_scale * torch.randn(20, 7, generator=generator, dtype=torch.float64)
    table[13] *= longest  # one item is longer than the rest of its block
    own = (queries * table[13]).sum(dim=1, keepdim=True)
    unit = error_unit(queries.norm(dim=1, keepdim=True), own, table)
    hypothesis.assume(unit.isfinite().all())
    scaled, offset = scale_queries(queries, own, unit)
    found = torch.addmm(offset, scaled, table.float().T)
    for n in range(3):
        for i in range(20):
            exact = sum(
                Fraction(float(q)) * Fraction(float(e)) for q, e in zip(queries[n], table[i], strict=True)
            )
            difference = (exact - Fraction(float(own[n]))) / Fraction(float(unit[n]))
            if abs(difference) < 2**20:  # far away, the sign is what counts
                assert abs(float(found[n, i]) - float(difference)) < 0.8 + 2e-6 * abs(float(difference))


def test_the_unit_covers_what_vanishes_near_zero():
    zero = torch.zeros(1, 1, dtype=torch.float64)
    assert float(error_unit(zero, zero, torch.zeros(2, 5))) >= 5 * torch.finfo(torch.float32).tiny


def test_many_targets_without_a_score_take_no_product_of_their_own(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("settled pair by pair")

    monkeypatch.setattr(module.RankCount, "_add_near", refuse)
    queries = torch.full((5, 3), math.nan)
    assert target_ranks(queries, torch.randn(30, 3), torch.arange(1, 6)).tolist() == [29] * 5
