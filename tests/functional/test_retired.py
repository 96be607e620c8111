"""Items that are no candidates of any query: ranks and lists are those without them, by a slow loop."""

import pytest
import torch

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional import SparseScores, rank_batch, target_ranks, top_k_items

ITEMS = 12


def case(seed):
    """Small whole numbers, so that scores tie and are exact."""
    torch.manual_seed(seed)
    queries, table = torch.randint(-2, 3, (6, 3)).float(), torch.randint(-2, 3, (ITEMS + 1, 3)).float()
    target = torch.randint(1, ITEMS + 1, (6,))
    retired = torch.rand(ITEMS + 1) < 0.4
    retired[0] = False
    exclude = torch.randint(0, ITEMS + 1, (6, 3))
    chosen = [torch.randperm(ITEMS)[:4].add(1).sort().values for _ in queries]
    added = SparseScores(torch.stack(chosen), torch.randint(0, 4, (6, 4)).float())
    return queries, table, target, retired, exclude, added


def scores_by_hand(query, table, added, row):
    scores = {
        item: sum(a * b for a, b in zip(query, table[item], strict=True)) for item in range(1, ITEMS + 1)
    }
    for item, more in zip(added.items[row].tolist(), added.scores[row].tolist(), strict=True):
        scores[item] += more
    return scores


@pytest.mark.parametrize("ties", ["pessimistic", "mean", "optimistic"])
@pytest.mark.parametrize("seed", range(10))
def test_ranks_are_those_among_the_others(seed, ties):
    queries, table, target, retired, exclude, added = case(seed)
    found = target_ranks(queries, table, target, exclude=exclude, added=added, retired=retired, ties=ties)
    for row, own in enumerate(target.tolist()):
        scores = scores_by_hand(queries[row].tolist(), table.tolist(), added, row)
        gone = {item for item in scores if retired[item]} | set(exclude[row].tolist()) - {own}
        others = [scores[item] for item in scores if item not in gone and item != own]
        above, tied = sum(one > scores[own] for one in others), sum(one == scores[own] for one in others)
        expected = 1 + above + tied * {"pessimistic": 1, "mean": 0.5, "optimistic": 0}[ties]
        assert found[row] == (ITEMS if retired[own] else expected)


@pytest.mark.parametrize("chunk_size", [1, 2**24])
@pytest.mark.parametrize("seed", range(5))
def test_lists_hold_the_best_of_the_others(seed, chunk_size):
    queries, table, _, retired, exclude, added = case(seed)
    items, values = top_k_items(
        queries, table, ITEMS, exclude=exclude, added=added, retired=retired, chunk_size=chunk_size
    )
    for row in range(len(queries)):
        scores = scores_by_hand(queries[row].tolist(), table.tolist(), added, row)
        kept = {item for item in scores if not retired[item]} - set(exclude[row].tolist())
        best = sorted(kept, key=lambda item: (-scores[item], item))
        assert items[row].tolist() == best + [0] * (ITEMS - len(best))
        assert values[row, : len(best)].tolist() == [scores[item] for item in best]


def test_a_retired_target_is_a_miss_and_a_retired_candidate_none():
    table = torch.tensor([[0.0], [4.0], [3.0], [2.0], [1.0]])
    batch = SessionBatch(
        torch.tensor([[1], [1], [1]]),
        torch.ones(3, 1),
        target=torch.tensor([1, 2, 3]),
        target_feedback=torch.ones(3),
        cold_target=torch.tensor([False, False, True]),
    )
    retired = torch.tensor([False, True, False, False, False])
    found = rank_batch(torch.ones(3, 1), table, batch, retired=retired)
    assert found.ranks.tolist() == [4, 1, 4]
    assert found.target_scores.tolist() == [-torch.inf, 3, -torch.inf]
    candidates = torch.tensor([[2, 4], [1, 4], [1, 4]])
    found = rank_batch(torch.ones(3, 1), table, batch, retired=retired, candidates=candidates)
    assert found.ranks.tolist() == [3, 1, 3]


@pytest.mark.parametrize(
    ("retired", "error"), [(torch.zeros(4, dtype=torch.bool), ValueError), (torch.zeros(5), TypeError)]
)
def test_a_wrong_mask_is_named(retired, error):
    with pytest.raises(error, match="`retired` must"):
        top_k_items(torch.ones(1, 1), torch.ones(5, 1), 2, retired=retired)
