import numpy as np
import polars as pl
import pytest

from skipcl_lightning.data import prepare_sessions, simulate_sessions
from skipcl_lightning.data.simulate import Catalogue


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    return simulate_sessions().collect()


def share_skipped(table: pl.DataFrame) -> float:
    return (table["feedback"] < 0).mean()


def test_the_same_seed_gives_the_same_table_and_another_another():
    first = simulate_sessions(50, seed=3).collect()
    assert simulate_sessions(50, seed=3).collect().equals(first)
    assert not simulate_sessions(50, seed=4).collect().equals(first)


def test_lengths_positions_and_the_rate_of_skips_are_as_stated(log):
    lengths = log.group_by("session_id").len()["len"]
    assert (lengths.min(), lengths.max(), lengths.len()) == (10, 20, 4000)
    first = log.group_by("session_id").agg(
        pl.col("position").min().alias("low"), pl.col("position").max().alias("high"), pl.len()
    )
    assert (first["low"] == 1).all()
    assert (first["high"] == first["len"]).all()
    assert share_skipped(log) == pytest.approx(0.41, abs=0.01)


def test_the_stated_probabilities_are_the_frequencies_of_skips(log):
    bins = log.with_columns(pl.col("skip_probability").round(1).alias("bin")).group_by("bin").agg(
        pl.col("skip_probability").mean().alias("stated"),
        (pl.col("feedback") < 0).mean().alias("found"),
        pl.len(),
    )  # fmt: skip
    assert bins.height >= 5
    for stated, found, rows in bins.select("stated", "found", "len").rows():
        assert found == pytest.approx(stated, abs=4 * np.sqrt(0.25 / rows))


def test_the_probability_is_the_stated_function_of_the_distance_between_moods(log):
    apart = (log["item_mood"] - log["session_mood"]).to_numpy()
    distance = np.array([min(abs(steps), 20 - abs(steps)) / 10 for steps in apart.tolist()])
    expected = 1 / (1 + np.exp(-9 * (distance - 0.245)))
    assert np.allclose(log["skip_probability"].to_numpy(), expected)


def test_popularity_is_skewed_unless_its_exponent_is_zero(log):
    def share_of_top_tenth(table):
        counts = table["item_id"].value_counts(sort=True)["count"]
        return counts[: len(counts) // 10].sum() / counts.sum()

    assert share_of_top_tenth(log) > 0.3
    assert share_of_top_tenth(simulate_sessions(popularity_exponent=0.0).collect()) < 0.2


def test_items_are_drawn_in_proportion_to_their_popularity_within_moods_and_over_all():
    random = np.random.default_rng(0)
    catalogue = Catalogue.make(random, num_items=7, num_moods=3, exponent=1.0)
    popularity = dict(zip(catalogue.by_mood.tolist(), np.diff(catalogue.cumulative), strict=True))
    assert sorted(popularity.values()) == pytest.approx([1 / rank for rank in range(7, 0, -1)])
    assert catalogue.cumulative[0] == 0
    for mood in (None, 0, 1, 2):
        drawn = (
            catalogue.draw_any(random, 20_000)
            if mood is None
            else catalogue.draw(random, np.full(20_000, mood))
        )
        members = [item for item in range(7) if mood in (None, catalogue.moods[item])]
        total = sum(popularity[item] for item in members)
        found = np.bincount(drawn, minlength=7) / 20_000
        for item in range(7):
            assert found[item] == pytest.approx(popularity[item] / total * (item in members), abs=0.015)


def test_an_item_has_one_mood_and_every_mood_its_items(log):
    moods = log.select("item_id", "item_mood").unique()
    assert moods["item_id"].is_unique().all()
    assert moods["item_mood"].value_counts()["count"].max() == 50


def test_a_track_can_come_twice_at_once_and_the_next_is_often_the_same_successor(log):
    pairs = log.select(
        "item_id", pl.col("item_id").shift(-1).over("session_id").alias("next"), "feedback"
    ).drop_nulls()
    assert (pairs["item_id"] == pairs["next"]).any()
    listened = (
        pairs.filter(pl.col("feedback") > 0).group_by("item_id").agg(pl.col("next").mode().first(), pl.len())
    )
    hits = pairs.filter(pl.col("feedback") > 0).join(listened, on="item_id", suffix="_usual")
    assert (hits["next"] == hits["next_usual"]).mean() > 0.45


def test_a_heeded_skip_moves_the_player_away_from_the_mood_and_an_unheeded_one_does_not():
    def stays(response):
        table = simulate_sessions(response_probability=response, explore_probability=0.0).collect()
        pairs = table.with_columns(
            pl.col("item_mood").shift(-1).over("session_id").alias("next")
        ).drop_nulls()
        return (
            pairs.filter(pl.col("feedback") < 0).select((pl.col("item_mood") == pl.col("next")).mean()).item()
        )

    assert stays(1.0) == 0
    assert stays(0.0) == 1


def test_feedback_is_graded_and_far_misses_are_skipped_earlier(log):
    skips = log.filter(pl.col("feedback") < 0)
    assert skips["feedback"].is_between(-1, -0.1).all()
    near, far = (skips.filter(pl.col("skip_probability").is_between(*ends)) for ends in [(0, 0.4), (0.9, 1)])
    assert far["feedback"].mean() < near["feedback"].mean() - 0.05
    listened = log.filter(pl.col("feedback") >= 0)["feedback"]
    assert listened.is_between(0.5, 1).all()
    assert (listened == 1).mean() == pytest.approx(0.8, abs=0.02)


def test_the_bias_moves_the_rate_of_skips():
    rates = [share_skipped(simulate_sessions(500, skip_bias=bias).collect()) for bias in (-3.0, 0.0, 3.0)]
    assert rates[0] < 0.25 < rates[1] < 0.6 < rates[2]


def test_without_drift_a_session_keeps_its_mood():
    table = simulate_sessions(200, drift_probability=0.0).collect()
    assert (table.group_by("session_id").agg(pl.col("session_mood").n_unique())["session_mood"] == 1).all()
    drifting = simulate_sessions(200, drift_probability=1.0).collect()
    steps = drifting.select((pl.col("session_mood").diff().over("session_id")).drop_nulls() % 20).to_series()
    assert set(steps) == {1, 19}


def test_the_preparation_drops_nothing_but_the_few_sessions_that_only_skip(log):
    report = prepare_sessions(log)[1]
    only_skips = log.group_by("session_id").agg((pl.col("feedback") < 0).all())["feedback"].sum()
    assert 0 < only_skips < 80
    assert (report.sessions_without_listened, report.sessions_kept) == (only_skips, 4000 - only_skips)
    assert report.duplicate_rows == report.rows_without_item == 0


@pytest.mark.parametrize(
    "setting",
    [
        {"num_sessions": 0}, {"num_moods": 1}, {"num_items": 5}, {"min_length": 0}, {"max_length": 5},
        {"seed": -1}, {"popularity_exponent": -1.0}, {"explore_probability": 1.1},
        {"follow_probability": 0.9}, {"drift_probability": 2.0}, {"response_probability": -0.1},
        {"skip_bias": float("nan")},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_errors(setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}`"):
        simulate_sessions(**setting)
