import itertools
import math

import polars as pl
import pytest
import torch

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import SessionDataModule, SplitBySession, simulate_sessions
from skipcl_lightning.evaluation import (
    ItemAndLastSkipRate,
    ItemSkipRate,
    LastSkipRate,
    compare_skip_predictions,
)

SMOOTHING = 3.0


@pytest.fixture(scope="module")
def data():
    # Sessions are longer than `max_length`, and their places must not be cut.
    log = simulate_sessions(60, num_items=25, num_moods=3)
    return SessionDataModule(log, batch_size=16, max_length=4)


def sessions_of(data):
    """(item, skipped) of each session by its index, from the log itself."""
    sessions = {}
    rows = data.log.lazy().collect().sort("session_id", "position")
    for session, item, feedback in rows.select("session_id", "item_id", "feedback").iter_rows():
        sessions.setdefault(session, []).append((data.vocabulary.encode([item])[0].item(), feedback < 0))
    return {index: sessions[name] for index, name in enumerate(data.session_ids)}


def slow_probabilities(data, by):
    """The probability of each test session's last track, track by track."""
    training = {index: tracks[:-2] for index, tracks in sessions_of(data).items()}
    tracks = [skipped for session in training.values() for _, skipped in session]
    overall = (sum(tracks) + 1) / (len(tracks) + 2)

    def smooth(outcomes):
        return (sum(outcomes) + SMOOTHING * overall) / (len(outcomes) + SMOOTHING)

    found = {}
    for index, session in sessions_of(data).items():
        (_, last), (target, _) = session[-2:]
        own = [y for other in training.values() for item, y in other if item == target]
        following = [
            after
            for other in training.values()
            for (_, before), (_, after) in itertools.pairwise(other)
            if before == last
        ]
        item, last = smooth(own), smooth(following)
        odds = item / (1 - item) * last / (1 - last) / (overall / (1 - overall))
        found[index] = {"item": item, "last": last, "both": odds / (1 + odds)}[by]
    return found


PREDICTORS = {"item": ItemSkipRate, "last": LastSkipRate, "both": ItemAndLastSkipRate}


@pytest.mark.parametrize("by", PREDICTORS)
def test_a_predictor_equals_a_slow_loop_over_the_log(data, by):
    predictor, expected = PREDICTORS[by](data, smoothing=SMOOTHING), slow_probabilities(data, by)
    seen = 0
    for batch in data.test_dataloader():
        probability = predictor.skip_probability(batch)
        assert probability.dtype == torch.float64
        for index, value in zip(batch.session_index.tolist(), probability.tolist(), strict=True):
            assert value == pytest.approx(expected[index])
            seen += 1
    assert seen == len(expected)


def by_hand():
    items = torch.tensor([[1, 2, 1], [2, 3, 0]])
    feedback = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, 0.0]])

    class Training:
        num_items = 4

        def training_sessions(self):
            yield SessionBatch(items, feedback)

    return Training()


def test_rates_by_hand():
    overall = (3 + 1) / (5 + 2)
    end = SessionBatch(
        torch.tensor([[3], [3], [0]]),
        torch.tensor([[1.0], [-1.0], [0.0]]),
        target=torch.tensor([1, 4, 2]),
        target_feedback=torch.ones(3),
    )
    items = ItemSkipRate(by_hand(), smoothing=1.0).skip_probability(end)
    assert items.tolist() == pytest.approx([(1 + overall) / 3, overall, (2 + overall) / 3])
    # After a listened track: a skip. After skips: one of each. At the start: one of each.
    last = LastSkipRate(by_hand(), smoothing=1.0).skip_probability(end)
    assert last.tolist() == pytest.approx([(1 + overall) / 2, (1 + overall) / 3, (1 + overall) / 3])


def test_a_liked_skip_is_no_skip_and_a_dislike_is_one():
    class Liked:
        num_items = 2

        def training_sessions(self):
            items, likes = torch.tensor([[1, 2]]), torch.tensor([[1.0, -1.0]])
            yield SessionBatch(items, torch.tensor([[-1.0, 1.0]]), explicit_feedback=likes)

    batch = SessionBatch(
        torch.tensor([[1]]),
        torch.tensor([[-1.0]]),
        target=torch.tensor([2]),
        target_feedback=torch.ones(1),
        explicit_feedback=torch.ones(1, 1),
    )
    assert ItemSkipRate(Liked(), smoothing=1.0).skip_probability(batch).item() == pytest.approx((1 + 0.5) / 2)
    assert LastSkipRate(Liked(), smoothing=1.0).skip_probability(batch).item() == pytest.approx((1 + 0.5) / 2)


def test_training_without_a_skip_yields_finite_probabilities():
    class Heard:
        num_items = 2

        def training_sessions(self):
            yield SessionBatch(torch.tensor([[1, 2]]), torch.ones(1, 2))

    batch = SessionBatch(
        torch.tensor([[1]]), torch.ones(1, 1), target=torch.tensor([2]), target_feedback=torch.ones(1)
    )
    for predictor in PREDICTORS.values():
        assert 0 < predictor(Heard()).skip_probability(batch).item() < 0.5


def test_a_table_measures_all_predictors_on_the_same_targets():
    log = simulate_sessions(80, num_items=25, num_moods=3)
    data = SessionDataModule(log, batch_size=16, max_length=4, split=SplitBySession(targets="every"))

    class Oracle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def skip_probability(self, batch):
            assert not self.training
            return 0.1 + 0.8 * (batch.target_feedback < 0).double() * self.weight

    oracle = Oracle()
    predictors = {name: predictor(data) for name, predictor in PREDICTORS.items()} | {"oracle": oracle}
    table = compare_skip_predictions(predictors, data)
    assert table["name"].to_list() == ["item", "last", "both", "oracle"]
    assert table["targets"].n_unique() == table["skipped"].n_unique() == 1
    best = table.row(3, named=True)
    assert best["skip_auc"] == best["mean_average_accuracy"] == best["first_prediction_accuracy"] == 1
    assert best["skip_brier_score"] == pytest.approx(0.01)
    assert best["skip_calibration_error"] == pytest.approx(0.1)
    assert (table["skip_brier_score"][:3] < 0.25).all()
    assert oracle.training
    validation = compare_skip_predictions({"oracle": oracle}, data, split="validation")
    assert validation["skip_auc"].to_list() == [1]


def test_targets_that_training_never_saw_are_left_out():
    # The skipped ones among them would be missing anyway, and all others be listened to.
    rows = [
        (s, p, f"t{p}" if p % 2 else f"rare{s}-{p}", (s + p // 2) % 2) for s in range(40) for p in range(8)
    ]
    log = pl.DataFrame(rows, schema=["session_id", "position", "item_id", "feedback"], orient="row")
    log = log.with_columns(feedback=1.0 - 2 * pl.col("feedback"))
    split = SplitBySession(0.3, 0.3, targets="every")
    by_rule = {rule: SessionDataModule(log, split=split, cold_targets=rule) for rule in ("miss", "score")}
    known, skipped = 0, 0
    for batch in by_rule["score"].test_dataloader():
        warm = by_rule["score"].item_counts[batch.target] > 0
        known, skipped = known + int(warm.sum()), skipped + int((warm & (batch.target_feedback < 0)).sum())
    (cold,) = (int(batch.cold_target.sum()) for batch in by_rule["miss"].test_dataloader())
    assert cold > 10
    table = compare_skip_predictions({"last": LastSkipRate(by_rule["miss"])}, by_rule["miss"])
    assert table["targets"].item() == known
    assert table["skipped"].item() == skipped / known == pytest.approx(0.5, abs=0.1)


def test_places_are_those_of_the_whole_session():
    log = pl.DataFrame(
        {
            "session_id": [session for session in range(12) for _ in range(8)],
            "position": [*range(8)] * 12,
            "item_id": [1, 2, 3, 4] * 24,
            "feedback": [1.0] * 96,
        }
    )
    split = SplitBySession(validation_share=0.25, test_share=0.25, targets="every")
    data = SessionDataModule(log, max_length=2, split=split)

    class RightFromTheThird:
        def skip_probability(self, batch):
            return torch.where((batch.seen_items > 0).sum(dim=1) < 3, 1.0, 0.0)

    # Places that were cut to `max_length` would coincide, and only one target would count.
    table = compare_skip_predictions({"late": RightFromTheThird()}, data).row(0, named=True)
    assert table["targets"] == 3 * 7
    assert table["mean_average_accuracy"] == pytest.approx(sum((i - 2) / i for i in range(3, 8)) / 7)
    assert table["first_prediction_accuracy"] == 0
    assert table["skip_auc"] is None  # nobody skipped


def test_bad_arguments_are_named(data):
    for predictor in PREDICTORS.values():
        for smoothing in (0.0, -1.0, math.nan):
            with pytest.raises(ValueError, match=r"`smoothing` must be in \(0, inf\)"):
                predictor(data, smoothing=smoothing)
    without = SessionBatch(torch.tensor([[1]]), torch.ones(1, 1))
    for predictor in (ItemSkipRate(data), ItemAndLastSkipRate(data)):
        with pytest.raises(ValueError, match="`batch` must have targets, got none"):
            predictor.skip_probability(without)
    with pytest.raises(ValueError, match="`split` must be one of 'validation', 'test', got 'train'"):
        compare_skip_predictions({}, data, split="train")
    for other in ("best.ckpt", torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=r"`predictors` must be models by name, got .* Write one as `{"):
            compare_skip_predictions(other, data)
        with pytest.raises(
            TypeError, match=r"must have `skip_probability\(batch\)`, got .* without as 'mine'"
        ):
            compare_skip_predictions({"mine": other}, data)
