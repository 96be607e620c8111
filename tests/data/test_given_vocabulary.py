"""Data that are numbered by the vocabulary of a trained model: newer logs, whole logs held out, stores."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from skipcl_lightning.data import (
    ItemVocabulary,
    SessionDataModule,
    SessionEncoder,
    SplitBySession,
    prepare_store,
)

KNOWN = ItemVocabulary(["d", "z", "a", "c", "b", "e"])
# "z" is known but not played; "new" and "rare" are not known, and "rare" is only held out.
SESSIONS = {
    1: ["a", "new", "b", "c", "a", "d"],
    2: ["new", "b", "a", "new", "c", "rare"],
    3: ["new", "a", "rare", "new"],
    4: ["c", "d", "e", "a"],
}


def to_log(sessions=SESSIONS):
    rows = [(s, item, place, 1.0) for s, items in sessions.items() for place, item in enumerate(items)]
    return pl.DataFrame(rows, schema=["session_id", "item_id", "position", "feedback"], orient="row")


def kept_sessions(data):
    """Each session as external ids, from the batches of prediction."""
    found = {}
    for batch in data.predict_dataloader():
        for row, index in enumerate(batch.session_index.tolist()):
            found[data.session_ids[index]] = data.vocabulary.decode(batch.items[row][batch.valid_mask[row]])
    return found


def test_unknown_plays_are_dropped_before_sessions_are_filtered_and_are_counted():
    data = SessionDataModule(to_log(), vocabulary=KNOWN, split=SplitBySession(0, 1))
    assert data.vocabulary == KNOWN
    # Of session 3 a single known play is left, which is too short.
    expected = {s: [item for item in items if item in KNOWN] for s, items in SESSIONS.items() if s != 3}
    assert kept_sessions(data) == expected
    report = data.drop_report
    assert (report.rows_of_unknown_items, report.unknown_items, report.sessions_too_short) == (7, 2, 1)
    assert report.rows_read == report.rows_kept + 7 + report.rows_of_dropped_sessions
    assert "7 rows of 2 unknown items" in str(report)


def test_appended_items_follow_the_known_ones_by_their_count_in_the_training_set():
    data = SessionDataModule(to_log(), vocabulary=KNOWN, new_items="append")
    assert data.vocabulary.ids == [*KNOWN.ids, "new", "rare"]
    assert data.drop_report.rows_of_unknown_items == 0
    counts = Counter(item for items in SESSIONS.values() for item in items[:-2])
    assert data.item_counts.tolist() == [0, *(counts[item] for item in data.vocabulary.ids)]
    assert counts["z"] == counts["rare"] == 0


def test_only_appended_items_without_plays_in_training_are_cold():
    data = SessionDataModule(to_log(), vocabulary=KNOWN, new_items="append")
    cold = {"val": [], "test": []}
    for name, found in cold.items():
        for batch in getattr(data, f"{name}_dataloader")():
            found += data.vocabulary.decode(batch.target[batch.cold_target])
    # "e", a target of session 4, has no play in the training set either, but was known before.
    assert cold == {"val": ["rare"], "test": ["rare"]}
    assert data.num_cold_targets == {"validation": 1, "test": 1}
    anew = SessionDataModule(to_log())
    assert anew.num_cold_targets == {"validation": 2, "test": 1}


def test_the_vocabulary_of_this_very_log_changes_nothing():
    first = SessionDataModule(to_log())
    again = SessionDataModule(to_log(), vocabulary=first.vocabulary)
    assert again.num_cold_targets == first.num_cold_targets
    for one, other in zip(first.test_dataloader(), again.test_dataloader(), strict=True):
        assert torch.equal(one.cold_target, other.cold_target)
        assert torch.equal(one.target, other.target)


def test_counts_transitions_and_mined_items_come_from_the_training_set_of_this_log_alone():
    sessions = {s: [f"t{(7 * s * place + s) % 11}" for place in range(8)] for s in range(1, 30)}
    feedback = pl.when(pl.col("position") % 3 == 1).then(-1.0).otherwise(1.0)
    log = to_log(sessions).with_columns(feedback=feedback)
    # Other held-out tracks, by a rule, leave everything that is counted as it is.
    held_out = pl.col("position") >= 6
    other = log.with_columns(item_id=pl.when(held_out).then(pl.lit("t0")).otherwise(pl.col("item_id")))
    given = ItemVocabulary([f"t{n}" for n in (5, 2, 0, 9, 10, 1, 3, 8, 7, 6, 4)])
    data, changed = (
        SessionDataModule(table, vocabulary=given, mined_negatives=1, mining_min_count=1)
        for table in (log, other)
    )
    counts = Counter(item for items in sessions.values() for item in items[:6])
    assert data.item_counts.tolist() == [0, *(counts[item] for item in given.ids)]
    followers = Counter((a, b) for items in sessions.values() for a, b in pairwise(items[:6]))
    contexts, following, times = data.transition_counts()
    ids = given.ids
    found = {
        (ids[a - 1], ids[b - 1]): n
        for a, b, n in zip(contexts.tolist(), following.tolist(), times.tolist(), strict=True)
    }
    assert found == followers
    for one, two in zip(data.transition_counts(order=2), changed.transition_counts(order=2), strict=True):
        assert torch.equal(one, two)
    assert np.array_equal(data.mined.skipped_after, changed.mined.skipped_after)
    assert np.array_equal(data.mined.listened_after, changed.mined.listened_after)
    assert torch.equal(data.item_counts, changed.item_counts)


def test_a_whole_log_is_held_out_and_what_needs_training_says_so():
    split = SplitBySession(0, 1, targets="every")
    data = SessionDataModule(to_log(), vocabulary=KNOWN, split=split, batch_size=2, max_length=7)
    assert data.num_sessions == {"train": 0, "validation": 0, "test": 4 + 2 + 3, "predict": 3}
    targets = [item for batch in data.test_dataloader() for item in data.vocabulary.decode(batch.target)]
    known = [[item for item in items if item in KNOWN] for s, items in SESSIONS.items() if s != 3]
    assert targets == [item for items in known for item in items[1:]]
    assert (data.num_cold_targets, data.item_counts.sum()) == ({"validation": 0, "test": 0}, 0)
    assert data.input_length == 7
    for needs_training in (data.train_dataloader, data.transition_counts, lambda: data.mined):
        with pytest.raises(ValueError, match="`split` must leave something for train"):
            needs_training()
    with pytest.raises(ValueError, match="`split` must leave something for validation"):
        data.val_dataloader()
    empty = SessionDataModule(to_log(), split=split)
    for _ in range(2):  # the second time as the first
        with pytest.raises(ValueError, match="`split` must leave something for train"):
            empty.num_items  # noqa: B018 - it prepares the log


def test_sessions_are_as_long_as_those_on_which_the_model_was_trained():
    model = SimpleNamespace(encoder=SessionEncoder(KNOWN, max_length=4))
    settings = {"split": SplitBySession(0, 1, targets="every"), "vocabulary": model}
    assert SessionDataModule(to_log(), **settings).input_length == 4
    assert SessionDataModule(to_log(), max_length=3, **settings).input_length == 3
    # Trained on further, it learns the positions of this log too: 6 items less two held out and one target.
    longer = {9: ["a", "b", "c", "d"] * 3}
    assert SessionDataModule(to_log(longer), vocabulary=model).input_length == 9


def test_a_store_is_prepared_with_the_vocabulary_and_holds_the_same(tmp_path):
    for new_items in ("drop", "append"):
        data = SessionDataModule(to_log(), vocabulary=KNOWN, new_items=new_items)
        settings = {"vocabulary": KNOWN, "new_items": new_items, "rows_in_memory": 3}
        stored = prepare_store(to_log(), tmp_path / new_items, **settings)
        opened = SessionDataModule(tmp_path / new_items, vocabulary=KNOWN)
        assert opened.vocabulary == stored.vocabulary == data.vocabulary
        assert torch.equal(opened.item_counts, data.item_counts)
        assert opened.drop_report == data.drop_report
        assert opened.num_cold_targets == data.num_cold_targets
        for one, other in zip(opened.test_dataloader(), data.test_dataloader(), strict=True):
            assert torch.equal(one.items, other.items)
            assert torch.equal(one.cold_target, other.cold_target)
        # Another vocabulary makes another store.
        before = (tmp_path / new_items / "manifest.json").read_text()
        prepare_store(to_log(), tmp_path / new_items, **settings)
        assert (tmp_path / new_items / "manifest.json").read_text() == before
        other = ItemVocabulary(KNOWN.ids[::-1])
        stored = prepare_store(to_log(), tmp_path / new_items, **(settings | {"vocabulary": other}))
        assert stored.vocabulary.ids[: len(KNOWN)] == other.ids


def test_a_store_must_number_the_items_as_the_vocabulary_does(tmp_path):
    folder = tmp_path / "store"
    stored = prepare_store(to_log(), folder)
    with pytest.raises(ValueError, match=r"number the items of the store .* Prepare the log again with"):
        SessionDataModule(folder, vocabulary=KNOWN).num_items  # noqa: B018 - it opens the store
    with pytest.raises(ValueError, match="`new_items` must be left alone with the store"):
        SessionDataModule(folder, vocabulary=KNOWN, new_items="append")
    # A model that has grown since has more items, but the same indices.
    grown = stored.vocabulary.extended(["y"])
    data = SessionDataModule(folder, vocabulary=grown)
    assert data.vocabulary == grown
    assert data.item_counts.tolist() == [*stored.item_counts.tolist(), 0]
    assert SessionDataModule(folder, vocabulary=folder).vocabulary == stored.vocabulary


def test_wrong_vocabularies_are_refused_with_the_cure(tmp_path):
    log = to_log()
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    torch.save({"skipcl_lightning": {"encoder": None}}, tmp_path / "without.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    for vocabulary, message in [
        (ItemVocabulary([1, 2]), r"ids of the log's type, String, got Int64\. Cast the log"),
        (tmp_path / "no.ckpt", "no.ckpt', which does not exist"),
        (tmp_path, "which is neither"),
        (str(tmp_path / "text.ckpt"), "which is neither"),
        (tmp_path / "list.ckpt", "which is neither"),
        (tmp_path / "foreign.ckpt", r"with an item vocabulary, got .* without\. Fit the model"),
        (tmp_path / "without.ckpt", r"with an item vocabulary, got .* without\. Fit the model"),
        (SimpleNamespace(encoder=None), "got a SimpleNamespace without. Fit it"),
    ]:
        with pytest.raises(ValueError, match=rf"`vocabulary` must .*{message}"):
            SessionDataModule(log, vocabulary=vocabulary)
    with pytest.raises(TypeError, match=r"`vocabulary` must be an ItemVocabulary, .* got list"):
        SessionDataModule(log, vocabulary=["a", "b"])
    with pytest.raises(ValueError, match="`new_items` must be left alone without a `vocabulary`"):
        SessionDataModule(log, new_items="append")
    with pytest.raises(ValueError, match="`new_items` must be one of 'drop', 'append', got 'add'"):
        SessionDataModule(log, vocabulary=KNOWN, new_items="add")
    strangers = SessionDataModule(log, vocabulary=ItemVocabulary(["x", "y"]))
    with pytest.raises(ValueError, match=r"`vocabulary` must have an item .* none of 7, such as 'a': it has"):
        strangers.num_items  # noqa: B018 - it prepares the log


def test_known_items_are_never_too_rare():
    # "e" is played once; "new" is left in the two longer sessions only.
    for new_items, unknown in [("drop", set()), ("append", {"new"})]:
        settings = {"vocabulary": KNOWN, "new_items": new_items, "min_item_count": 3}
        data = SessionDataModule(to_log(), split=SplitBySession(0, 1), **settings)
        found = {item for items in kept_sessions(data).values() for item in items}
        assert found == {"a", "b", "c", "d", "e"} | unknown
    assert data.drop_report.rows_of_rare_items == 2


def test_an_unknown_play_ends_the_one_before_it_and_bridges_a_pause(tmp_path):
    starts = {"a": 0, "new": 20, "b": 300, "other": 1200, "c": 2400, "d": 3600}
    plays = pl.DataFrame({"item_id": list(starts), "timestamp": list(starts.values())})
    settings = {"gap_minutes": 25, "skip_seconds": 30, "vocabulary": KNOWN, "split": SplitBySession(0, 1)}
    data = prepare_store(plays, tmp_path / "store", **settings)
    # Without the unknown plays, "a" would not be skipped, and a pause of 35 minutes would follow "b".
    assert data.vocabulary.decode(data.store.items) == ["a", "b", "c", "d"]
    assert data.store.feedback.tolist() == [-1, 1, 1, 0]
    assert (len(data.store), data.drop_report.unknown_items) == (1, 2)


def test_a_parquet_file_is_read_as_a_log(tmp_path):
    to_log().write_parquet(tmp_path / "newer[1].parquet")
    data = SessionDataModule(tmp_path / "newer[1].parquet", vocabulary=KNOWN)
    assert data.drop_report == SessionDataModule(to_log(), vocabulary=KNOWN).drop_report
