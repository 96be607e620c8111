"""A trained model on a newer log: with its vocabulary, all sessions held out, and unknown tracks counted."""

import polars as pl
import pytest
from small_evaluation import make_data, module
from small_models import quiet_trainer

from skipcl_lightning.data import ItemVocabulary, SessionDataModule, SplitBySession, simulate_sessions
from skipcl_lightning.evaluation import LastItemMarkov, Popularity, SessionKNN, evaluate


@pytest.fixture(scope="module")
def trained():
    data = make_data()
    model = module(data)
    quiet_trainer(max_steps=3).fit(model, data)
    return model


@pytest.fixture(scope="module")
def newer():
    """A day of which a tenth of the tracks are new."""
    return simulate_sessions(40, num_items=44, num_moods=4, min_length=4, seed=1).collect()


def test_a_whole_newer_log_is_ranked_and_the_report_says_what_was_unknown(trained, newer):
    data = SessionDataModule(newer, vocabulary=trained, split=SplitBySession(0, 1, targets="every"))
    report = evaluate(trained, data, num_resamples=20)
    known = trained.encoder.vocabulary
    unknown = newer.filter(~pl.col("item_id").is_in(known.ids))["item_id"]
    assert (report.settings["unknown_rows"], report.settings["unknown_items"]) == (
        len(unknown),
        unknown.n_unique(),
    )
    assert len(unknown) > 0
    for text in (report.to_markdown(), report.table().caption):
        assert f"Unknown items: {unknown.n_unique()}; their plays, {len(unknown)}, were left out." in text
        assert "last-item Markov and novelty are undefined" in text
    assert f"{len(unknown)} plays of unknown items left out" in repr(report)
    assert report.markov == {}
    assert "novelty" in report.left_out
    assert set(report.sessions["target_count"]) == {0}
    # No target is cold, so the ranks are those of the scores.
    assert report["hit_rate@20"] > 0
    (logged,) = quiet_trainer().test(trained, data, verbose=False)
    for name in ("hit_rate@10", "skip_hit_rate@10", "mrr@20"):
        assert logged[f"test/{name}"] == pytest.approx(report[name])


def test_figures_do_not_depend_on_the_unknown_tracks(trained, newer):
    known = newer.filter(pl.col("item_id").is_in(trained.encoder.vocabulary.ids))
    reports = [
        evaluate(trained, SessionDataModule(log, vocabulary=trained), num_resamples=0)
        for log in (newer, known)
    ]
    assert reports[0].sessions.equals(reports[1].sessions)
    # This log has a training set of its own, from which Markov is counted.
    assert reports[0].markov == reports[1].markov != {}
    assert "Unknown items" not in reports[1].describe_protocol()


def test_models_that_count_need_a_training_set_and_say_so(trained, newer):
    data = SessionDataModule(newer, vocabulary=trained, split=SplitBySession(0, 1))
    for counts in (LastItemMarkov, SessionKNN):
        with pytest.raises(ValueError, match="`split` must leave something for train"):
            counts(data)
    # Without any count all items tie, and ties count against the model.
    assert evaluate(Popularity(data.item_counts), data, num_resamples=0)["hit_rate@20"] == 0


def test_other_data_are_refused_with_the_way_out(trained, newer):
    turned = ItemVocabulary(trained.encoder.vocabulary.ids[::-1])
    for data in (SessionDataModule(newer), SessionDataModule(newer, vocabulary=turned)):
        with pytest.raises(ValueError, match=r"SessionDataModule\(log, vocabulary=module\)"):
            evaluate(trained, data)
        with pytest.raises(ValueError, match=r"SessionDataModule\(log, vocabulary=module\)"):
            quiet_trainer().test(trained, data, verbose=False)
