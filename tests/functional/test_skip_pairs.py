import torch

from skipcl_lightning.functional import skip_pair_scores


def test_pairs_and_scores_equal_a_count_by_hand():
    generator = torch.Generator().manual_seed(0)
    query, table = torch.randn(6, 3, generator=generator), torch.randn(7, 3, generator=generator)
    items = torch.randint(0, 7, (6, 8), generator=generator).sort(dim=1, descending=True).values
    skipped = (torch.rand(6, 8, generator=generator) < 0.5) & (items > 0)
    target = torch.randint(1, 7, (6,), generator=generator)
    target_scores, scores, pairs = skip_pair_scores(query, table, target, items, skipped)
    for n in range(6):
        listened = {int(i) for i, s in zip(items[n], skipped[n], strict=True) if not s}
        torch.testing.assert_close(target_scores[n], query[n] @ table[target[n]])
        for place, item in enumerate(items[n].tolist()):
            expected = bool(skipped[n, place]) and item not in listened and item != target[n]
            assert bool(pairs[n, place]) == expected
            torch.testing.assert_close(scores[n, place], query[n] @ table[item])
    assert pairs.any()
    assert (skipped & ~pairs).any()


def test_equal_rows_tie_exactly_under_autocast_too():
    table = torch.randn(1, 13, generator=torch.Generator().manual_seed(0)).repeat(40, 1)
    query = torch.randn(5, 13, generator=torch.Generator().manual_seed(1))
    items = torch.arange(1, 31).repeat(5, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target_scores, scores, _ = skip_pair_scores(query, table, torch.full((5,), 39), items, items > 0)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, target_scores[:, None].expand_as(scores))
