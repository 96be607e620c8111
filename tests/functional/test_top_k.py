import math
import sys

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from skipcl_lightning.functional.ranking.ranks import target_ranks
from skipcl_lightning.functional.ranking.top_k import top_k_items

SEARCH = sys.modules["skipcl_lightning.functional.ranking.top_k"]
# Exact products, so that the slow reference sees the same ties.
NUMBERS = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0, math.nan])


def slow_top_k(query, table, top_k, exclude):
    scored = []
    for item in range(1, len(table)):
        score = sum(x * y for x, y in zip(query, table[item], strict=True))
        if item not in exclude and not math.isnan(score):
            scored.append((-score, item))
    best = sorted(scored)[:top_k]
    missing = top_k - len(best)
    return [item for _, item in best] + [0] * missing, [-score for score, _ in best] + [-math.inf] * missing


@hypothesis.given(data=st.data(), top_k=st.integers(1, 6), chunk_size=st.sampled_from([1, 14, 10_000]))
def test_scores_equal_an_exhaustive_search_in_any_chunks(data, top_k, chunk_size):
    row = st.lists(NUMBERS, min_size=2, max_size=2)
    queries = data.draw(st.lists(row, min_size=1, max_size=5))
    table = data.draw(st.lists(row, min_size=7, max_size=7))
    exclude = data.draw(
        st.lists(
            st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=len(queries), max_size=len(queries)
        )
    )
    items, scores = top_k_items(
        torch.tensor(queries),
        torch.tensor(table),
        top_k,
        exclude=torch.tensor(exclude),
        chunk_size=chunk_size,
    )
    for n, query in enumerate(queries):
        expected_items, expected_scores = slow_top_k(query, table, top_k, exclude[n])
        assert scores[n].tolist() == expected_scores
        chosen = items[n].tolist()
        # Only which items tie for the last place is not promised.
        clear = [place for place in range(top_k) if expected_scores[place] > expected_scores[-1]]
        assert [chosen[place] for place in clear] == [expected_items[place] for place in clear]
        real = [item for item in chosen if item]
        assert len(set(real)) == len(real) == sum(map(bool, expected_items))
        assert not set(real) & set(exclude[n])


def test_equal_scores_are_ordered_by_index():
    items, _ = top_k_items(torch.ones(1, 1), torch.ones(301, 1), 300)
    assert items.tolist() == [list(range(1, 301))]


def test_the_place_in_the_list_is_the_rank():
    generator = torch.Generator().manual_seed(0)
    queries, table = torch.randn(11, 8, generator=generator), torch.randn(51, 8, generator=generator)
    items, _ = top_k_items(queries, table, 50)
    for place in range(50):
        assert target_ranks(queries, table, items[:, place]).tolist() == [place + 1] * 11


def test_the_padding_row_is_never_an_item():
    for padding in (100.0, math.nan, math.inf):
        table = torch.tensor([[padding], [-5.0], [-6.0]])
        items, scores = top_k_items(torch.ones(1, 1), table, 2, exclude=torch.zeros(1, 3, dtype=torch.int64))
        assert items.tolist() == [[1, 2]]
        assert scores.tolist() == [[-5.0, -6.0]]


def test_a_nan_query_gets_no_items():
    items, scores = top_k_items(torch.tensor([[math.nan], [1.0]]), torch.tensor([[0.0], [1.0], [2.0]]), 1)
    assert items.tolist() == [[0], [2]]
    assert scores.tolist() == [[-math.inf], [2.0]]


def test_arguments_are_left_as_they_were_and_need_no_gradient():
    queries = torch.randn(3, 2, requires_grad=True)
    table, exclude = torch.randn(6, 2, requires_grad=True), torch.tensor([[1, 0], [2, 3], [0, 0]])
    before = [tensor.detach().clone() for tensor in (queries, table, exclude)]
    _, scores = top_k_items(queries, table, 2, exclude=exclude)
    assert not scores.requires_grad
    assert all(
        torch.equal(tensor, old) for tensor, old in zip((queries, table, exclude), before, strict=True)
    )


def test_bf16_and_autocast_lose_no_more_than_the_embeddings_did():
    queries, table = torch.randn(3, 16).bfloat16(), torch.randn(9, 16).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        items, scores = top_k_items(queries, table, 3)
    expected_items, expected_scores = top_k_items(queries.float(), table.float(), 3)
    assert scores.dtype == torch.float32
    assert torch.equal(items, expected_items)
    assert torch.equal(scores, expected_scores)


def test_no_queries_yield_no_items():
    items, scores = top_k_items(torch.zeros(0, 2), torch.zeros(4, 2), 3)
    assert items.shape == scores.shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 4}, "`top_k` must be at most 3, got 4"),
        ({"top_k": 0}, "`top_k` must be at least 1, got 0"),
        ({"chunk_size": 0}, "`chunk_size` must be at least 1, got 0"),
        ({"exclude": torch.zeros(2, 1, dtype=torch.int64)}, r"`exclude` must have shape \[N=1, S\]"),
        ({"queries": torch.zeros(1, 3)}, r"`item_embeddings` must have shape \[V\+1, D=3\]"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"queries": torch.zeros(1, 2), "item_embeddings": torch.zeros(4, 2), "top_k": 1}
    with pytest.raises(ValueError, match=message):
        top_k_items(**{**arguments, **change})


def by_float64(queries, table, top_k):
    scores = (queries.double() @ table[1:].double().T).float()
    values, columns = scores.sort(dim=1, descending=True, stable=True)
    return columns[:, :top_k] + 1, values[:, :top_k]


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_a_search_in_float32_finds_what_float64_finds(scale):
    torch.manual_seed(0)
    queries, table = torch.randn(5, 8) * scale, torch.randn(500, 8)
    found = SEARCH._search_in_float32(queries, table, 9, None, None, 2**24)
    assert found[2].all()
    for got, expected in zip(found[:2], by_float64(queries, table, 9), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_search_in_float32_gives_up_where_rounding_may_decide():
    torch.manual_seed(0)
    near = torch.ones(500, 8) + 1e-7 * torch.rand(500, 8)
    queries = torch.randn(3, 8)
    assert not SEARCH._search_in_float32(queries, near, 9, None, None, 2**24)[2].any()
    scores = top_k_items(queries, near, 9)[1]
    torch.testing.assert_close(scores, by_float64(queries, near, 9)[1], rtol=0, atol=0)
    for broken in (torch.nan, torch.inf, 3e38):
        table = torch.randn(500, 8)
        table[7, 2] = broken
        assert not SEARCH._search_in_float32(queries, table, 9, None, None, 2**24)[2].any()
        table = table[:20]  # all are kept
        if broken != 3e38:
            assert not SEARCH._search_in_float32(queries, table, 9, None, None, 2**24)[2].any()


def test_a_search_in_float32_keeps_to_exclusions_and_retired_items():
    torch.manual_seed(0)
    queries, table = torch.randn(2, 8), torch.randn(300, 8)
    exclude = by_float64(queries, table, 250)[0]
    retired = torch.zeros(300, dtype=torch.bool).index_fill(0, torch.tensor([4, 9]), True)
    items, scores, _ = SEARCH._search_in_float32(queries, table, 60, exclude, retired, 2**24)
    every = torch.arange(1, 300)
    for row in range(2):
        left = set(every.tolist()) - set(exclude[row].tolist()) - {4, 9}
        assert set(items[row].tolist()) == left | {0}
        assert (scores[row] == -torch.inf).sum() == 60 - len(left)


@pytest.mark.parametrize("chunk_size", [500, 1100, 2**24])
def test_only_the_queries_that_float32_cannot_tell_apart_are_searched_again(chunk_size, monkeypatch):
    torch.manual_seed(0)
    # The second half of the numbers is nearly the same for all items, the first is not.
    table = torch.cat([torch.randn(500, 4), 1 + 1e-7 * torch.rand(500, 4)], dim=1)
    queries = torch.randn(5, 8)
    queries[[1, 4], :4] = 0.0
    queries[[0, 2, 3], 4:] = 0.0
    exclude = by_float64(queries, table, 2)[0]
    again = []
    search = SEARCH._search_in_float64

    def watched(queries, *arguments):
        again.append(len(queries))
        return search(queries, *arguments)

    monkeypatch.setattr(SEARCH, "_search_in_float64", watched)
    items, scores = top_k_items(queries, table, 9, exclude=exclude, chunk_size=chunk_size)
    assert again == [2]
    expected_items, expected = by_float64(queries, table, 11)
    torch.testing.assert_close(scores, expected[:, 2:], rtol=0, atol=0)
    assert torch.equal(items[[0, 2, 3]], expected_items[[0, 2, 3], 2:])
