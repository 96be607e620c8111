import math
import sys
from collections import Counter

import pytest
import torch

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import SessionDataModule, SplitBySession, simulate_sessions
from skipcl_lightning.evaluation import (
    BPR,
    WRMF,
    ItemSkipRate,
    LastItemMarkov,
    Popularity,
    SessionKNN,
    SessionPopularity,
    evaluate,
)


@pytest.fixture(scope="module")
def data():
    return SessionDataModule(simulate_sessions(80, num_items=30, num_moods=3), batch_size=16, max_length=4)


def training_tracks(data):
    """(item, feedback) of each training session by its index, from the log itself: all but the last two."""
    log = data.log.lazy().collect() if hasattr(data.log, "lazy") else data.log
    sessions = {}
    for session, item, feedback in (
        log.sort("session_id", "position").select("session_id", "item_id", "feedback").iter_rows()
    ):
        sessions.setdefault(session, []).append((data.vocabulary.encode([item])[0].item(), feedback))
    return {
        index: sessions[session][:-2] for index, session in enumerate(data.session_ids) if session in sessions
    }


class Counted:
    """What a baseline reads of a data module, for sessions by hand."""

    def __init__(self, items, num_items, **settings):
        self.num_items = num_items
        index = torch.arange(len(items))
        self.batch = SessionBatch(items, torch.ones(items.shape), session_index=index, **settings)
        self.session_ids = index
        self.item_counts = torch.bincount(items.flatten(), minlength=num_items + 1)

    def training_sessions(self):
        return iter([self.batch])

    transition_counts = SessionDataModule.transition_counts


@pytest.mark.parametrize("rule", ["next", "next_listened"])
def test_markov_counts_what_followed_in_training(data, rule):
    followed, popularity = Counter(), Counter()
    for session in training_tracks(data).values():
        popularity.update(i for i, _ in session)
        for t, (item, _) in enumerate(session):
            later = [i for i, f in session[t + 1 :] if rule == "next" or f >= 0]
            if later:
                followed[item, later[0]] += 1
    # Sessions are longer than what a model is given, and all of them counts.
    assert max(map(len, training_tracks(data).values())) > data.max_length + 1
    markov = LastItemMarkov(data, rule=rule)
    batch = next(iter(data.test_dataloader()))
    scores = markov.scores(batch)
    for b, length in enumerate(batch.lengths.tolist()):
        last = int(batch.items[b, length - 1])
        for item in range(1, data.num_items + 1):
            tie_break = popularity[item] / (max(popularity.values()) + 1)
            assert scores[b, item].item() == pytest.approx(followed[last, item] + tie_break, abs=1e-4)


def test_popularity_ranks_equal_a_count_by_hand(data):
    report = evaluate(Popularity(data.item_counts), data, num_resamples=0)
    counts = data.item_counts.tolist()
    hits, skipped = [], []
    for batch in data.test_dataloader():
        for target, feedback in zip(batch.target.tolist(), batch.target_feedback.tolist(), strict=True):
            rank = 1 + sum(count >= counts[target] for i, count in enumerate(counts) if i not in (0, target))
            (skipped if feedback < 0 else hits).append(rank <= 5)
    assert report["hit_rate@5"] == pytest.approx(sum(hits) / len(hits))
    assert report["skip_hit_rate@5"] == pytest.approx(sum(skipped) / len(skipped))
    assert report.populations["listened"] == len(hits)


def test_a_sessions_own_favourites_come_first_by_how_often_they_were_played(data):
    baseline = SessionPopularity(data.item_counts)
    batch = next(iter(data.test_dataloader()))
    scores = baseline.scores(batch)
    counts = data.item_counts.tolist()
    for b in range(len(batch)):
        own = Counter(batch.seen_items[b][batch.seen_items[b] > 0].tolist())
        expected = sorted(range(1, len(counts)), key=lambda item: (-own[item], -counts[item], item))
        assert scores[b, 1:].argsort(descending=True, stable=True).add(1).tolist() == expected


def test_favourites_count_from_the_first_track_on():
    batch = SessionBatch(torch.tensor([[1, 2]]), torch.ones(1, 2), seen=torch.tensor([[3, 3, 3, 1, 2]]))
    scores = SessionPopularity(torch.tensor([0, 1, 1, 1])).scores(batch)
    assert scores[0].argmax() == 3
    assert scores[0, 3] == pytest.approx(3.5)


def slow_neighbours(data, batch, num_neighbours):
    """The definition, session by session."""
    sessions = {}
    popularity = Counter()
    for index, session in training_tracks(data).items():
        sessions[index] = {item for item, _ in session}
        popularity.update(item for item, _ in session)
    scores = torch.zeros(len(batch), data.num_items + 1, dtype=torch.float64)
    for b, index in enumerate(batch.session_index.tolist()):
        query = set(batch.seen_items[b][batch.seen_items[b] > 0].tolist())
        similar = [
            (len(query & other) / math.sqrt(len(query) * len(other)), number)
            for number, other in sessions.items()
            if number != index
        ]
        for similarity, number in sorted(similar, reverse=True)[:num_neighbours]:
            for item in sessions[number]:
                scores[b, item] += similarity
    for item, count in popularity.items():
        scores[:, item] += 1e-6 * count / (max(popularity.values()) + 1)
    return scores


@pytest.mark.parametrize("num_neighbours", [1, 5, 1000])
def test_neighbours_are_scored_as_by_the_definition(data, num_neighbours):
    batch = next(iter(data.test_dataloader()))
    knn = SessionKNN(data, num_neighbours=num_neighbours)
    torch.testing.assert_close(knn.scores(batch), slow_neighbours(data, batch, num_neighbours))


def test_factors_of_a_session_solve_the_weighted_least_squares(data):
    model = WRMF(
        data,
        num_factors=4,
        regularisation=0.1,
        confidence=2.0,
    )
    batch = next(iter(data.test_dataloader()))
    items = torch.from_numpy(model.model.item_factors).double()
    scores = model.scores(batch)
    for b in range(len(batch)):
        counts = torch.bincount(
            batch.seen_items[b][batch.seen_items[b] > 0], minlength=data.num_items + 1
        ).double()
        # Confidence 1 + alpha · count; preference 1 where played, 0 elsewhere.
        weight = 1 + 2.0 * counts
        matrix = items.T @ (weight[:, None] * items) + 0.1 * torch.eye(4, dtype=torch.float64)
        right = items.T @ (weight * (counts > 0))
        expected = items @ torch.linalg.solve(matrix, right)
        torch.testing.assert_close(scores[b].double(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("factorisation", [WRMF, BPR])
def test_factorisations_have_64_factors_by_default(data, factorisation):
    assert factorisation(data, num_iterations=1).model.factors == 64


def test_factorisations_find_the_two_halves_of_a_catalogue():
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(1, 6, (40, 4), generator=generator)
    items[20:] += 5
    halves = Counted(items, num_items=10)
    models = {
        "wrmf": WRMF(halves, num_factors=2),
        "bpr": BPR(halves, num_factors=4, learning_rate=0.1, num_iterations=300),
    }
    for name, model in models.items():
        scores = model.scores(halves.batch)[:, 1:]
        own_half = torch.stack([scores[:20, :5].mean(), scores[20:, 5:].mean()])
        other_half = torch.stack([scores[:20, 5:].mean(), scores[20:, :5].mean()])
        assert (own_half > other_half + 0.1).all(), name


def test_every_baseline_is_measured_by_the_same_evaluation(data):
    counts = data.item_counts
    models = [
        Popularity(counts),
        SessionPopularity(counts),
        LastItemMarkov(data),
        SessionKNN(data),
        WRMF(data, num_factors=4),
        BPR(data, num_factors=4),
    ]
    reports = [evaluate(model, data, num_resamples=0) for model in models]
    assert all(0 <= report["hit_rate@10"] <= 1 for report in reports)
    assert len({report.name for report in reports}) == 6
    assert all(report.populations == reports[0].populations for report in reports)


def test_sessions_of_other_data_are_not_known_to_bpr(data):
    model = BPR(data, num_factors=2, num_iterations=1)
    batch = next(iter(data.test_dataloader()))
    with pytest.raises(ValueError, match=r"`batch` must hold the .* sessions that were trained on"):
        model.scores(batch.replace(session_index=None))
    with pytest.raises(ValueError, match=r"`batch` must hold the .* sessions that were trained on"):
        model.scores(batch.replace(session_index=batch.session_index + 10_000))


def test_bpr_refuses_sessions_that_were_held_out_whole():
    log = simulate_sessions(60, num_items=30, num_moods=3)
    held_out = SessionDataModule(log, split=SplitBySession(validation_share=0.2, test_share=0.2))
    model = BPR(held_out, num_factors=2, num_iterations=1)
    with pytest.raises(ValueError, match="`batch` must hold the 36 sessions that were trained on"):
        model.scores(next(iter(held_out.test_dataloader())))


def test_every_training_session_is_read_whole_and_once(data, monkeypatch):
    monkeypatch.setattr("skipcl_lightning.data.datamodule._MOST_POSITIONS", 40)
    expected = training_tracks(data)
    found = {}
    for batch in data.training_sessions():
        assert batch.items.numel() <= max(40, int(batch.lengths.max()))
        for row, index in enumerate(batch.session_index.tolist()):
            assert index not in found
            found[index] = list(zip(batch.items[row].tolist(), batch.feedback[row].tolist(), strict=True))
            found[index] = [(item, pytest.approx(feedback)) for item, feedback in found[index] if item]
    assert found == expected


def test_the_missing_extra_is_named(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    for build in (WRMF, BPR):
        with pytest.raises(ImportError, match=r'pip install "skipcl-lightning\[baselines\]"'):
            build(data)


def test_a_track_that_nothing_followed_falls_back_on_popularity():
    sessions = Counted(torch.tensor([[1, 2, 2, 3]]), num_items=3)
    ends_on_3 = SessionBatch(torch.tensor([[3]]), torch.ones(1, 1))
    scores = LastItemMarkov(sessions).scores(ends_on_3)
    assert scores[0, 1:].argmax() == 1
    assert scores.max() < 1


def test_counts_that_float32_cannot_tell_apart_are_told_apart():
    counts = torch.tensor([0, 2**24, 2**24 + 1])
    batch = SessionBatch(torch.tensor([[0]]), torch.zeros(1, 1))
    for baseline in (Popularity(counts), SessionPopularity(counts)):
        scores = baseline.scores(batch)
        assert scores[0, 2] > scores[0, 1]


@pytest.mark.parametrize(
    ("baseline", "setting"),
    [
        *((BPR, {"learning_rate": value}) for value in (0, -0.5, math.nan)),
        *((each, {"num_factors": 0}) for each in (BPR, WRMF)),
        *((each, {"num_iterations": 0}) for each in (BPR, WRMF)),
        (BPR, {"regularisation": -0.1}),
        (WRMF, {"regularisation": 0}),
        (WRMF, {"confidence": 0}),
        (SessionKNN, {"num_neighbours": 0}),
        (ItemSkipRate, {"smoothing": 0}),
    ],
)
def test_settings_out_of_range_are_errors(data, baseline, setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must be"):
        baseline(data, **setting)


@pytest.mark.parametrize("baseline", [Popularity, SessionPopularity])
def test_counts_of_another_shape_or_dtype_are_errors(baseline):
    for counts in (torch.ones(2, 3, dtype=torch.int64), torch.ones(3)):
        with pytest.raises((TypeError, ValueError), match="`item_counts` must"):
            baseline(counts)
