"""Likes and dislikes beside skips, from a log to batches, evaluation and recommendations."""

import polars as pl
import pytest
import torch

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import (
    ItemVocabulary,
    SessionDataModule,
    SessionEncoder,
    SessionFilter,
    prepare_sessions,
    read_table,
    simulate_sessions,
)
from skipcl_lightning.evaluation import Popularity, evaluate
from skipcl_lightning.functional import append_mask_token, hide_masked


def make_log(**changes):
    columns = {
        "session_id": ["s"] * 5,
        "item_id": ["a", "b", "e", "d", "e"],
        "feedback": [1.0, -1.0, 1.0, 1.0, 1.0],
        "explicit_feedback": [None, 0.5, -1.0, 0.0, -0.25],
        "position": [1, 2, 3, 4, 5],
    }
    return pl.DataFrame({**columns, **changes})


def test_explicit_feedback_reaches_the_batches_and_null_is_unknown():
    data = SessionDataModule(make_log(), max_length=10)
    batch = next(iter(data.train_dataloader()))
    assert batch.explicit_feedback.tolist() == [[0.0, 0.5, -1.0]]
    assert batch.explicit_feedback.dtype == torch.float32
    assert batch.listened_mask.tolist() == [[True, False, False]]
    assert batch.skip_mask.tolist() == [[False, True, False]]
    whole = next(iter(data.predict_dataloader()))
    # No longer than the longest training part less one.
    assert whole.explicit_feedback.tolist() == [[0.0, -0.25]]


def test_a_disliked_target_counts_with_the_skipped_however_long_it_played():
    data = SessionDataModule(make_log(), max_length=10)
    assert next(iter(data.test_dataloader())).target_feedback.tolist() == [-1.0]
    assert next(iter(data.val_dataloader())).target_feedback.tolist() == [1.0]
    report = evaluate(Popularity(data.item_counts), data, num_resamples=0)
    assert report.populations["skipped"] == 1


def test_a_log_without_it_has_none():
    data = SessionDataModule(make_log().drop("explicit_feedback"), max_length=10)
    assert next(iter(data.train_dataloader())).explicit_feedback is None


@pytest.mark.parametrize("value", [1.5, float("nan")])
def test_values_out_of_range_are_named_with_their_session(value):
    log = make_log(explicit_feedback=[0.0, value, 0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"a number in \[-1, 1\] in column 'explicit_feedback'.*session 's'"):
        prepare_sessions(log)


def test_a_table_maps_its_column():
    table = make_log().rename({"explicit_feedback": "stars"})
    log = read_table(
        table, item="item_id", session="session_id", position="position", explicit_feedback="stars"
    ).collect()
    assert log["explicit_feedback"].to_list() == [0.0, 0.5, -1.0, 0.0, -0.25]
    with pytest.raises(ValueError, match=r"`source` must have the column 'thumbs', got .* in `source`"):
        read_table(
            table, item="item_id", session="session_id", position="position", explicit_feedback="thumbs"
        )


def test_a_batch_is_cut_moved_hidden_and_extended_whole():
    batch = SessionBatch(
        items=torch.tensor([[5, 3, 4], [2, 0, 0]]),
        feedback=torch.ones(2, 3),
        explicit_feedback=torch.tensor([[1.0, -1, 0.5], [0, 0, 0]]),
        mined_negatives=torch.arange(12).view(2, 3, 2),
        mined_positives=torch.arange(6).view(2, 3, 1),
    )
    latest = batch.latest(2)
    assert latest.explicit_feedback.tolist() == [[-1.0, 0.5], [0.0, 0.0]]
    assert latest.mined_negatives.tolist() == [[[2, 3], [4, 5]], [[6, 7], [8, 9]]]
    assert latest.mined_positives.tolist() == [[[1], [2]], [[3], [4]]]
    assert batch[1:].explicit_feedback.shape == (1, 3)
    mask = torch.tensor([[True, False, False], [False, False, False]])
    hidden = hide_masked(batch.replace(cloze_mask=mask), 9)
    assert hidden.explicit_feedback.tolist() == [[0.0, -1, 0.5], [0, 0, 0]]
    longer = append_mask_token(batch, 9)
    assert longer.explicit_feedback.tolist() == [[1.0, -1, 0.5, 0], [0, 0, 0, 0]]
    assert longer.mined_negatives is None


def test_recommendations_know_likes_and_leave_out_dislikes():
    torch.manual_seed(0)
    module = SkipCLModule(SASRec(8), None, num_items=5, embedding_size=8, feedback_input=True)
    torch.nn.init.normal_(module.model.feedback_embedding.weight)
    module.encoder = SessionEncoder(ItemVocabulary(["a", "b", "c", "d", "e"]), max_length=10)
    recommender = Recommender(module)
    plain = recommender.recommend([["a", "b"]], top_k=5)
    disliked = recommender.recommend([["a", "b"]], explicit_feedback=[[0.0, -1.0]], top_k=5)
    assert "b" in plain["item_id"].to_list()
    assert "b" not in disliked["item_id"].to_list()
    assert disliked["score"][0] != plain["score"][0]
    with pytest.raises(ValueError, match=r"`explicit_feedback` must be in \[-1, 1\]"):
        recommender.recommend([["a", "b"]], explicit_feedback=[[0.0, -2.0]], top_k=5)
    with pytest.raises(ValueError, match="`explicit_feedback` must have one value a track"):
        recommender.recommend([["a", "b"]], explicit_feedback=[[0.0]], top_k=5)


@pytest.mark.parametrize("score", ["count", "pmi", "wilson"])
def test_training_batches_bring_mined_tracks_from_the_training_part_alone(score):
    log = simulate_sessions(200, num_items=30, num_moods=3).collect()
    settings = {"mined_negatives": 3, "mined_positives": 2, "mining_score": score, "mining_depth": 5}
    data = SessionDataModule(log, max_length=20, **settings)
    batch = next(iter(data.train_dataloader()))
    assert batch.mined_negatives.shape == (*batch.items.shape, 3)
    assert batch.mined_positives.shape == (*batch.items.shape, 2)
    for drawn, table in (
        (batch.mined_negatives, data.mined.skipped_after),
        (batch.mined_positives, data.mined.listened_after),
    ):
        for item, row in zip(batch.items.flatten().tolist(), drawn.flatten(0, 1).tolist(), strict=True):
            assert set(row) <= {0, *table[item].tolist()}
    assert batch.mined_negatives.any()
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert next(iter(loader)).mined_negatives is None
    # Other tracks held out, other feedback on them: the same tables, by external ids.
    last_two = pl.int_range(pl.len()).over("session_id") >= pl.len().over("session_id") - 2
    changed = log.with_columns(
        item_id=pl.when(last_two).then(pl.col("item_id").reverse()).otherwise("item_id"),
        feedback=pl.when(last_two).then(-pl.col("feedback")).otherwise("feedback"),
    )
    other = SessionDataModule(changed, max_length=20, **settings)
    assert by_ids(data) == by_ids(other)


def by_ids(data):
    """Mined tracks by external ids, since the numbering also counts held-out items."""
    names = [None, *data.vocabulary.ids]
    return {
        (kind, names[item]): {names[other] for other in row if other}
        for kind in ("skipped_after", "listened_after")
        for item, row in enumerate(getattr(data.mined, kind).tolist())
        if item and any(row) and data.item_counts[item] > 5
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mined_negatives": -1}, "`mined_negatives` must be at least 0"),
        ({"mined_positives": -1}, "`mined_positives` must be at least 0"),
        ({"mining_score": "tfidf"}, "`mining_score` must be one of 'count', 'pmi', 'wilson'"),
        ({"mining_depth": 0}, "`mining_depth` must be at least 1"),
        ({"mining_min_count": 0}, "`mining_min_count` must be at least 1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SessionDataModule(make_log(), **settings)


@pytest.mark.parametrize(
    ("feedback", "explicit", "rejected"),
    [(1.0, -1.0, True), (-1.0, 1.0, False), (-1.0, 0.0, True), (0.4, 1.0, False), (0.4, 0.0, False)],
)
def test_a_held_out_target_is_rejected_by_the_one_definition(feedback, explicit, rejected):
    log = make_log(
        feedback=[1.0, -1.0, 1.0, 1.0, feedback], explicit_feedback=[0.0, 0.5, -1.0, 0.0, explicit]
    )
    data = SessionDataModule(log, max_length=10)
    report = evaluate(Popularity(data.item_counts), data, num_resamples=0)
    assert report.populations["skipped"] == rejected
    target = next(iter(data.test_dataloader())).target_feedback
    if feedback == 0.4:
        assert target.tolist() == pytest.approx([0.4])


def test_pairs_are_of_the_target_and_what_the_session_rejected():
    # The input before the target d: a and c are disliked though they played long, b is a liked skip.
    log = make_log(
        session_id=["s"] * 6,
        item_id=["e", "a", "b", "c", "d", "e"],
        feedback=[1.0, 1.0, -1.0, 1.0, 1.0, 1.0],
        explicit_feedback=[0.0, -1.0, 1.0, -1.0, 0.0, 0.0],
        position=[1, 2, 3, 4, 5, 6],
    )

    data = SessionDataModule(log, max_length=10)
    report = evaluate(Popularity(data.item_counts), data, split="validation", num_resamples=0)
    row = report.sessions.row(0, named=True)
    assert (row["target"], row["pairs"]) == ("d", 2)
    assert row["skip_rate"] == pytest.approx(2 / 3)


def test_a_liked_skip_is_neither_mined_as_a_skip_nor_excluded():
    log = make_log(
        item_id=["a", "b", "a", "d", "e"],
        feedback=[1.0, -1.0, 1.0, 1.0, 1.0],
        explicit_feedback=[0.0, 1.0, 0.0, 0.0, 0.0],
    )
    data = SessionDataModule(log, max_length=10, mined_negatives=1, mining_min_count=1)
    assert not data.mined.skipped_after.any()
    torch.manual_seed(0)
    module = SkipCLModule(SASRec(8), None, num_items=5, embedding_size=8)
    module.encoder = SessionEncoder(ItemVocabulary(["a", "b", "c", "d", "e"]), max_length=10)
    rows = Recommender(module).recommend([["a", "b"]], [[1.0, -1.0]], explicit_feedback=[[0.0, 1.0]], top_k=5)
    assert "b" in rows["item_id"].to_list()


def test_a_required_skip_is_a_rejected_track():
    log = pl.DataFrame(
        {
            "session_id": ["disliked"] * 2 + ["liked skip"] * 2 + ["skipped"] * 2,
            "item_id": ["a", "b"] * 3,
            "feedback": [1.0, 1.0, 1.0, -1.0, 1.0, -1.0],
            "explicit_feedback": [0.0, -1.0, 0.0, 1.0, 0.0, 0.0],
            "position": [1, 2] * 3,
        }
    )
    table, report = prepare_sessions(log, SessionFilter(min_session_length=2, require_skip=True))
    assert table["session_id"].unique(maintain_order=True).to_list() == ["disliked", "skipped"]
    assert report.sessions_without_skip == 1
