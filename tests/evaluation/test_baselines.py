from collections import Counter

import pytest
import torch

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.evaluation import LastItemMarkov, Popularity, evaluate_baseline


@pytest.fixture(scope="module")
def data():
    return SessionDataModule(simulate_sessions(80, num_items=30, num_moods=3), batch_size=16, max_length=20)


@pytest.mark.parametrize("rule", ["next", "next_listened"])
def test_markov_counts_what_followed_in_training(data, rule):
    followed, popularity = Counter(), Counter()
    for batch in data.train_dataloader():
        for items, feedback in zip(batch.items.tolist(), batch.feedback.tolist(), strict=True):
            session = [(i, f) for i, f in zip(items, feedback, strict=True) if i]
            popularity.update(i for i, _ in session)
            for t, (item, _) in enumerate(session):
                later = [i for i, f in session[t + 1 :] if rule == "next" or f >= 0]
                if later:
                    followed[item, later[0]] += 1
    markov = LastItemMarkov(data.train_dataloader(), num_items=data.num_items, rule=rule)
    batch = next(iter(data.test_dataloader()))
    scores = markov.scores(batch)
    for b, length in enumerate(batch.lengths.tolist()):
        last = int(batch.items[b, length - 1])
        for item in range(1, data.num_items + 1):
            tie_break = popularity[item] / (max(popularity.values()) + 1)
            assert scores[b, item].item() == pytest.approx(followed[last, item] + tie_break, abs=1e-4)


def test_popularity_ranks_equal_a_count_by_hand(data):
    results = evaluate_baseline(
        Popularity(data.item_counts), data.test_dataloader(), num_items=data.num_items
    )
    counts = data.item_counts.tolist()
    hits, skipped = [], []
    for batch in data.test_dataloader():
        for target, feedback in zip(batch.target.tolist(), batch.target_feedback.tolist(), strict=True):
            rank = 1 + sum(count >= counts[target] for i, count in enumerate(counts) if i not in (0, target))
            (skipped if feedback < 0 else hits).append(rank <= 5)
    assert results["hit_rate@5"] == pytest.approx(sum(hits) / len(hits))
    assert results["skip_hit_rate@5"] == pytest.approx(sum(skipped) / len(skipped))
    assert results["num_listened"] == len(hits)


def test_seen_tracks_are_left_out_save_for_the_target():
    # By popularity 1, 2, 3, 4, 5; the first session has seen 1 and 2, and 3 before its window.
    batch = SessionBatch(
        torch.tensor([[1, 2], [4, 5]]),
        torch.ones(2, 2),
        target=torch.tensor([4, 4]),
        target_feedback=torch.ones(2),
        seen=torch.tensor([[3, 1, 2], [4, 5, 0]]),
    )
    popularity = Popularity(torch.tensor([0, 9, 8, 7, 6, 5]))
    ranks = {"hit_rate@1": 0.5, "hit_rate@3": 0.5, "hit_rate@4": 1.0}
    measured = evaluate_baseline(popularity, [batch], num_items=5, top_k=[1, 3, 4], exclude_seen=True)
    assert {name: measured[name] for name in ranks} == ranks


def test_a_track_that_nothing_followed_falls_back_on_popularity():
    sessions = SessionBatch(torch.tensor([[1, 2, 2, 3]]), torch.ones(1, 4))
    ends_on_3 = SessionBatch(torch.tensor([[3]]), torch.ones(1, 1))
    scores = LastItemMarkov([sessions], num_items=3).scores(ends_on_3)
    assert scores[0, 1:].argmax() == 1
    assert scores.max() < 1


def test_batches_without_targets_are_refused(data):
    with pytest.raises(ValueError, match="`batches` must have targets, got none"):
        evaluate_baseline(Popularity(data.item_counts), data.predict_dataloader(), num_items=data.num_items)
