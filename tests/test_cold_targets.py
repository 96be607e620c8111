"""Held-out tracks that training never saw: counted, and ranked last or left out."""

import polars as pl
import pytest
import torch
from small_models import quiet_trainer

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule, prepare_store
from skipcl_lightning.evaluation import Popularity, evaluate

# Items 8 and 9 are only ever held out: 9 for test in two of four sessions, 8 for validation in one.
SESSIONS = [[1, 2, 3, 4, 9], [2, 3, 1, 8, 5], [5, 1, 2, 3, 4], [3, 5, 4, 1, 9]]


@pytest.fixture
def log():
    rows = [(s, item, place) for s, session in enumerate(SESSIONS) for place, item in enumerate(session)]
    return pl.DataFrame(rows, schema=["session_id", "item_id", "position"], orient="row").with_columns(
        feedback=1.0
    )


class FavoursTheCold:
    """Scores every item the higher, the rarer it is, so that cold items come first."""

    def __init__(self, num_items):
        self.num_items = num_items

    def scores(self, batch):
        return torch.arange(self.num_items + 1.0).expand(len(batch), -1)


def test_cold_targets_are_counted_whatever_becomes_of_them(log):
    for cold_targets in ("miss", "drop", "score"):
        data = SessionDataModule(log, cold_targets=cold_targets)
        assert data.num_cold_targets == {"validation": 1, "test": 2}


def test_a_cold_target_ranks_last_however_well_it_scores(log):
    data = SessionDataModule(log)
    assert data.num_items == 7
    report = evaluate(FavoursTheCold(7), data, num_resamples=0, top_k=(1, 7))
    cold = report.sessions.filter(pl.col("target") == 9)
    assert (cold["rank"].to_list(), cold["target_count"].to_list()) == ([7.0, 7.0], [0, 0])
    # Among the warm ones ranks are by score, with both cold items ahead of all.
    warm = report.sessions.filter(pl.col("target") != 9)
    place = {item: index for index, item in enumerate(data.vocabulary.ids, start=1)}
    assert warm["rank"].to_list() == [8 - place[item] for item in warm["target"]]


def test_among_sampled_candidates_it_ranks_behind_all_of_them(log):
    with pytest.warns(UserWarning, match="sampled"):
        report = evaluate(
            FavoursTheCold(7), SessionDataModule(log), num_resamples=0, num_candidates=3, top_k=(1,)
        )
    assert report.sessions.filter(pl.col("target") == 9)["rank"].to_list() == [4.0, 4.0]


def test_dropped_ones_are_in_no_batch(log):
    data = SessionDataModule(log, cold_targets="drop")
    assert [len(batch) for batch in data.test_dataloader()] == [2]
    assert [len(batch) for batch in data.val_dataloader()] == [3]
    report = evaluate(Popularity(data.item_counts), data, num_resamples=0)
    assert set(report.sessions["target"]) == {4, 5}


@pytest.mark.parametrize("where", ["log", "store"])
def test_a_module_never_hits_a_cold_target(log, tmp_path, where):
    prepare_store(log, tmp_path / "store")
    data = SessionDataModule(log if where == "log" else tmp_path / "store")
    module = SkipCLModule(SASRec(8, max_length=5, num_heads=1), None, num_items=7, embedding_size=8)
    with torch.no_grad():
        # The best score of all for item 9, whatever the query.
        batch = next(iter(data.test_dataloader()))
        query = module.eval().session_query(batch)
        module.model.item_embedding.weight[7] = 1e3 * torch.linalg.pinv(query) @ torch.ones(len(batch))
    (results,) = quiet_trainer().test(module, data, verbose=False)
    assert results["test/hit_rate@1"] == 0.0
    assert results["test/num_listened"] == 4


def test_the_two_ways_differ_by_the_cold_targets_alone(log):
    miss, drop = (
        evaluate(FavoursTheCold(7), SessionDataModule(log, cold_targets=way), num_resamples=0, top_k=(7,))
        for way in ("miss", "drop")
    )
    warm = miss.sessions.filter(pl.col("target") != 9).sort("session_id")
    assert warm.equals(drop.sessions.sort("session_id"))


@pytest.mark.parametrize("where", ["log", "store"])
def test_scored_ones_rank_by_their_scores_and_have_a_segment(log, tmp_path, where):
    prepare_store(log, tmp_path / "store", cold_targets="score")
    data = SessionDataModule(log, cold_targets="score") if where == "log" else None
    data = data or SessionDataModule(tmp_path / "store")
    report = evaluate(FavoursTheCold(7), data, num_resamples=0, top_k=(1, 2))
    place = {item: index for index, item in enumerate(data.vocabulary.ids, start=1)}
    assert report.sessions["rank"].to_list() == [8 - place[item] for item in report.sessions["target"]]
    cold = report.segments.filter(pl.col("segment") == "not in training", metric="hit_rate@2")
    assert cold.select("value", "targets").rows() == [(1.0, 2)]


def test_a_rejected_cold_target_stays_only_if_it_is_scored(log):
    rejected = log.with_columns(feedback=pl.when(pl.col("item_id") == 9).then(-1.0).otherwise(1.0))
    sizes = {}
    for way in ("miss", "drop", "score"):
        sizes[way] = SessionDataModule(rejected, cold_targets=way).num_sessions["test"]
    assert sizes == {"miss": 2, "drop": 2, "score": 4}


def test_a_cold_target_loses_its_pairs(log):
    # Every session skips its third track before the held-out one.
    skips = log.with_columns(feedback=pl.when(pl.col("position") == 2).then(-1.0).otherwise(1.0))
    data = SessionDataModule(skips)
    report = evaluate(FavoursTheCold(data.num_items), data, num_resamples=0)
    cold = report.sessions.filter(pl.col("target") == 9)
    assert cold["pairs"].sum() > 0
    assert cold["half_points"].to_list() == [0.0, 0.0]
    torch.manual_seed(0)
    module = SkipCLModule(SASRec(8), None, num_items=data.num_items, embedding_size=8)
    # By its score the cold item beats all.
    module.model.item_embedding.weight.data[int(data.vocabulary.encode([9])[0])] *= 1e3
    logged = quiet_trainer().test(module, data, verbose=False)[0]
    by_hand = evaluate(module, data, num_resamples=0)
    assert logged["test/pairwise_skip_accuracy"] == pytest.approx(by_hand["pairwise_skip_accuracy"])
    assert by_hand.sessions.filter(pl.col("target") == 9)["half_points"].sum() == 0
