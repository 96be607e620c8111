"""Intervals where a session has several targets, which depend on each other."""

import numpy as np
import polars as pl
import pytest
import torch
from small_evaluation import make_data

from skipcl_lightning.data import SessionDataModule, SplitBySession
from skipcl_lightning.evaluation import Popularity, compare, evaluate
from skipcl_lightning.evaluation.statistics import Ratio, bootstrap

NUM_ITEMS = 20


class FirstItem:
    """Ranks one item before all others, whatever the session."""

    def __init__(self, data):
        self.scored = torch.zeros(data.num_items + 1)
        self.scored[int(data.vocabulary.encode(["hit"])[0])] = 1.0

    def scores(self, batch):
        return self.scored.expand(len(batch), -1)


def sessions_that_differ(targets, seed, num_sessions=300):
    """Sessions whose own share of hits is drawn from Beta(.3, .3), so that its mean is exactly one half."""
    random = np.random.default_rng(seed)
    rows = []
    for session in range(num_sessions):
        share = random.beta(0.3, 0.3)
        for position in range(int(random.integers(3, 16))):
            hit = position > 0 and random.random() < share
            rows.append((session, position, "hit" if hit else f"miss-{random.integers(NUM_ITEMS)}"))
    log = pl.DataFrame(rows, schema=["session_id", "position", "item_id"], orient="row")
    split = SplitBySession(validation_share=0.1, test_share=0.6, targets=targets, seed=seed)
    return SessionDataModule(log.with_columns(feedback=pl.lit(1.0)), split=split, max_length=20)


def of(report, metric):
    return report.metrics.filter(pl.col("metric") == metric).row(0, named=True)


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["last", "every"])
def test_the_95_percent_interval_covers_the_true_hit_rate_in_93_to_97_of_100_simulations(targets):
    covered = []
    for seed in range(1000):
        data = sessions_that_differ(targets, seed)
        row = of(evaluate(FirstItem(data), data, top_k=(1,), num_resamples=500, seed=seed), "hit_rate@1")
        covered.append(row["low"] <= 0.5 <= row["high"])
    # The standard error of this share is .007.
    assert 0.93 <= np.mean(covered) <= 0.97


def slow_interval(frame, confidence, num_resamples, seed):
    """The same resamples, session by session and target by target."""
    names = list(dict.fromkeys(frame["session_id"]))
    hits = {name: [] for name in names}
    for name, rank in frame.select("session_id", "rank").iter_rows():
        hits[name].append(rank <= 1)
    random = np.random.default_rng(seed)
    means = []
    for _ in range(num_resamples):
        drawn = [hits[names[number]] for number in random.integers(0, len(names), len(names))]
        pooled = [hit for session in drawn for hit in session]
        means.append(sum(pooled) / len(pooled))
    return np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)])


def test_intervals_resample_whole_sessions():
    data = sessions_that_differ("every", seed=0)
    report = evaluate(FirstItem(data), data, top_k=(1,), num_resamples=300, confidence=0.9, seed=7)
    row = of(report, "hit_rate@1")
    low, high = slow_interval(report.sessions, 0.9, 300, 7)
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-12)
    share = row["value"]
    of_targets = 2 * 1.645 * np.sqrt(share * (1 - share) / row["targets"])
    assert row["high"] - row["low"] > 1.5 * of_targets


def test_a_report_counts_targets_and_sessions():
    data = sessions_that_differ("every", seed=1)
    report = evaluate(FirstItem(data), data, top_k=(1,), num_resamples=0)
    row = of(report, "hit_rate@1")
    batches = list(data.test_dataloader())
    assert row["targets"] == sum(map(len, batches)) > row["sessions"]
    assert row["sessions"] == len(torch.cat([batch.session_index for batch in batches]).unique())
    assert report.populations["targets"] == row["targets"]
    assert report.populations["sessions"] == row["sessions"]
    assert f"{row['targets']:,} targets of {row['sessions']:,} sessions" in report.describe_protocol()


def test_comparisons_resample_whole_sessions():
    data = sessions_that_differ("every", seed=2)
    reports = [
        evaluate(model, data, top_k=(1,), num_resamples=300)
        for model in (Popularity(data.item_counts.flip(0)), FirstItem(data))
    ]
    row = compare(*reports).filter(pl.col("metric") == "hit_rate@1").row(0, named=True)
    joined = (
        reports[1]
        .sessions.select("session_id", after=pl.col("rank") <= 1)
        .with_columns(before=reports[0].sessions["rank"] <= 1)
    )
    by_session = joined.group_by("session_id", maintain_order=True).agg(
        (pl.col("after").sum().cast(int) - pl.col("before").sum().cast(int)).alias("gain"), pl.len()
    )
    gain, size = by_session["gain"].to_numpy(), by_session["len"].to_numpy()
    # The linearised variance of a ratio of sums over clusters.
    residual = gain - gain.sum() / size.sum() * size
    error = np.sqrt((residual**2).sum()) / size.sum()
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_with_one_target_a_session_both_counts_agree():
    data = make_data()
    report = evaluate(Popularity(data.item_counts), data, num_resamples=0)
    frame = report.metrics
    assert frame["targets"].equals(frame["sessions"])


def test_rows_of_unknown_sessions_are_refused(monkeypatch):
    data = make_data()
    batches = [batch.replace(session_index=None) for batch in data.test_dataloader()]
    monkeypatch.setattr(data, "whole_set", lambda *_, **__: batches)
    with pytest.raises(ValueError, match="`batch` must have `session_index`, got None"):
        evaluate(Popularity(data.item_counts), data, num_resamples=0)


def test_segments_resample_whole_sessions_too():
    data = sessions_that_differ("every", seed=3)
    report = evaluate(FirstItem(data), data, top_k=(1,), num_resamples=300, confidence=0.9)
    rows = report.segments.filter((pl.col("metric") == "hit_rate@1") & (pl.col("targets") >= 100))
    column = {"session length": "length_segment", "skip rate of the session": "skip_segment"}
    checked = 0
    for row in rows.filter(pl.col("segmented_by").is_in(list(column))).iter_rows(named=True):
        part = report.sessions.filter(pl.col(column[row["segmented_by"]]).cast(str) == row["segment"])
        assert row["sessions"] == part["session_id"].n_unique()
        if row["sessions"] < 50:
            continue
        low, high = slow_interval(part, 0.9, 300, 0)
        assert row["high"] - row["low"] == pytest.approx(high - low, abs=1e-12)
        checked += 1
    assert checked


def test_two_sessions_are_enough_for_an_interval_and_one_is_not():
    ratio = Ratio.of(np.array([0.0, 1.0]), np.ones(2))
    settings = {"confidence": 0.9, "num_resamples": 100, "seed": 0}
    assert bootstrap({"mean": ratio}, sessions=np.arange(2), **settings)["mean"] == (0, 1)
    assert np.isnan(bootstrap({"mean": ratio}, sessions=np.zeros(2, dtype=int), **settings)["mean"]).all()
