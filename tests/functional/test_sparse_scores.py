import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional import (
    SparseScores,
    look_up_scores,
    rank_batch,
    score_ranks,
    target_ranks,
    top_k_items,
)
from skipcl_lightning.functional.ranking.sparse_scores import add_scores

NUM_ITEMS, SIZE = 12, 3


def draw(seed, rows=5):
    """Queries, a table with equal rows, and additional scores of some items, dense and sparse."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(-2, 3, (NUM_ITEMS + 1, SIZE), generator=generator).float()
    queries = torch.randint(-2, 3, (rows, SIZE), generator=generator).float()
    items, scores, dense = [], [], torch.zeros(rows, NUM_ITEMS + 1)
    for row in range(rows):
        count = int(torch.randint(0, 6, (), generator=generator))
        chosen = sorted((torch.randperm(NUM_ITEMS, generator=generator)[:count] + 1).tolist())
        values = torch.randint(-3, 4, (count,), generator=generator).float().tolist()
        items.append([0] * (6 - count) + chosen)
        scores.append([9.0] * (6 - count) + values)  # padding's score has no meaning
        for item, value in zip(chosen, values, strict=True):
            dense[row, item] = value
    return queries, table, SparseScores(torch.tensor(items), torch.tensor(scores)), dense, generator


@hypothesis.given(seed=st.integers(0, 2**31), ties=st.sampled_from(["pessimistic", "mean", "optimistic"]))
def test_ranks_are_those_of_the_dense_sum(seed, ties):
    queries, table, added, dense, generator = draw(seed)
    target = torch.randint(1, NUM_ITEMS + 1, (len(queries),), generator=generator)
    exclude = torch.randint(0, NUM_ITEMS + 1, (len(queries), 4), generator=generator)
    scores = queries @ table.T + dense
    expected = score_ranks(scores[:, 1:], target - 1, ties=ties)
    assert torch.equal(target_ranks(queries, table, target, added=added, ties=ties), expected)
    kept = scores.clone()
    for row in range(len(queries)):
        for item in exclude[row].tolist():
            if item not in (0, int(target[row])):
                kept[row, item] = -torch.inf
    expected = score_ranks(kept[:, 1:], target - 1, ties=ties)
    found = target_ranks(queries, table, target, added=added, exclude=exclude, ties=ties, chunk_size=7)
    assert torch.equal(found, expected)


@hypothesis.given(seed=st.integers(0, 2**31), top_k=st.integers(1, NUM_ITEMS))
def test_the_best_items_are_those_of_the_dense_sum(seed, top_k):
    queries, table, added, dense, generator = draw(seed)
    exclude = torch.randint(0, NUM_ITEMS + 1, (len(queries), 4), generator=generator)
    for excluded in (None, exclude):
        items, scores = top_k_items(queries, table, top_k, exclude=excluded, added=added)
        for row in range(len(queries)):
            out = {0} | set(() if excluded is None else excluded[row].tolist())
            sums = {
                i: float(queries[row] @ table[i] + dense[row, i])
                for i in range(NUM_ITEMS + 1)
                if i not in out
            }
            best = sorted(sums.values(), reverse=True)[:top_k]
            assert scores[row].tolist() == best + [-torch.inf] * (top_k - len(best))
            assert [sums[item] for item in items[row].tolist() if item] == best
            assert len(set(items[row, : len(best)].tolist())) == len(best)


def test_nothing_added_changes_nothing():
    queries, table, _, _, _ = draw(3)
    target = torch.tensor([1, 4, 7, 2, 12])
    for nothing in (
        SparseScores(torch.zeros(5, 0, dtype=torch.int64), torch.zeros(5, 0)),
        SparseScores(torch.zeros(5, 2, dtype=torch.int64), torch.ones(5, 2)),
    ):
        assert torch.equal(
            target_ranks(queries, table, target, added=nothing), target_ranks(queries, table, target)
        )
        for with_it, without in zip(
            top_k_items(queries, table, 4, added=nothing), top_k_items(queries, table, 4), strict=True
        ):
            assert torch.equal(with_it, without)
        assert not look_up_scores(nothing, target[:, None]).any()


def test_a_target_whose_score_is_nan_is_last():
    queries, table, added, _, _ = draw(1)
    table[3] = torch.nan
    assert target_ranks(queries, table, torch.full((5,), 3), added=added).tolist() == [NUM_ITEMS] * 5


def test_pairs_and_candidates_get_the_added_scores_too():
    queries, table, added, dense, _ = draw(8)
    items = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 7, 8], [9, 1, 2], [3, 4, 5]])
    target = torch.tensor([10, 11, 12, 3, 6])
    feedback = torch.tensor([-1.0, -1.0, 1.0]).repeat(5, 1)
    batch = SessionBatch(items, feedback, target=target, target_feedback=torch.ones(5))
    scores = queries @ table.T + dense
    candidates = torch.tensor([[1, 2, 3, 4]]).repeat(5, 1)
    ranked = rank_batch(queries, table, batch, added=added, candidates=candidates)
    own = scores.gather(1, target[:, None])
    assert torch.equal(ranked.target_scores, own.squeeze(1))
    real = items > 0
    assert torch.equal(ranked.skip_scores[real], scores.gather(1, items)[real])
    expected = (
        1 + (scores.gather(1, candidates) >= own).sum(dim=1) - (candidates == target[:, None]).sum(dim=1)
    )
    rows = (candidates != target[:, None]).all(dim=1)
    assert torch.equal(ranked.ranks[rows], expected[rows])


@pytest.mark.parametrize(
    ("added", "error", "message"),
    [
        (
            SparseScores(torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, 1)),
            ValueError,
            "`added.items` must",
        ),
        (SparseScores(torch.zeros(5, 1), torch.zeros(5, 1)), TypeError, "`added.items` must"),
        (
            SparseScores(torch.zeros(5, 1, dtype=torch.int64), torch.zeros(5, 2)),
            ValueError,
            "`added.scores` must",
        ),
    ],
)
def test_bad_scores_are_named(added, error, message):
    queries, table, *_ = draw(0)
    with pytest.raises(error, match=message):
        target_ranks(queries, table, torch.ones(5, dtype=torch.int64), added=added)
    with pytest.raises(error, match=message):
        top_k_items(queries, table, 2, added=added)


@hypothesis.given(seed=st.integers(0, 2**31))
def test_a_sum_holds_each_item_once_in_order(seed):
    *_, first, first_dense, _ = draw(seed)
    *_, second, second_dense, _ = draw(seed + 1)
    total = add_scores(first, second, weights=(2.0, 0.5))
    every = torch.arange(NUM_ITEMS + 1).expand(len(first_dense), -1)
    assert torch.equal(look_up_scores(total, every), 2 * first_dense + 0.5 * second_dense)
    for row in total.items.tolist():
        items = [item for item in row if item]
        assert row == [0] * (len(row) - len(items)) + sorted(set(items))
