import polars as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from watched_runs import OwnModule, small_data, small_module, watched_trainer

from skipcl_lightning import Recommender
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.callbacks import RecommendationTable
from skipcl_lightning.data import SessionDataModule, simulate_sessions


def shown(module, data, callback, **settings):
    watched_trainer([callback], **{"max_epochs": 1, **settings}).fit(module, data)
    return callback.frame


def test_rows_are_what_the_recommender_says_before_and_after_the_skip():
    data = small_data()
    module = small_module(data)
    frame = shown(module, data, RecommendationTable(num_sessions=4, top_k=5, num_heard=3))
    assert frame.height == 4
    recommender = Recommender(module)
    batch = next(iter(data.val_dataloader()))
    sessions = dict(zip(data.session_ids.gather(batch.session_index.numpy()), range(len(batch)), strict=True))
    for row in frame.iter_rows(named=True):
        place = sessions[row["session_id"]]
        mask = batch.valid_mask[place]
        items = data.vocabulary.decode(batch.items[place][mask])
        feedback = batch.feedback[place][mask].tolist()
        skip = max(position for position, value in enumerate(feedback) if value < 0)
        assert row["skipped"] == items[skip]
        assert row["heard"] == items[:skip][-3:]
        for column, end in (("before", skip), ("after", skip + 1)):
            expected = recommender.recommend([items[:end]], [feedback[:end]], top_k=30, exclude_skipped=False)
            assert row[column] == expected["item_id"].to_list()[:5]
            rank = expected.filter(pl.col("item_id") == row["skipped"])["rank"].item()
            assert row[f"rank_{column}"] == rank


def test_dislikes_are_shown_as_skips_and_liked_skips_are_not():
    log = small_data().log.collect()
    disliked = log.with_columns(feedback=1.0, explicit_feedback=pl.when(pl.col("feedback") < 0).then(-1.0))
    liked = log.with_columns(explicit_feedback=pl.when(pl.col("feedback") < 0).then(1.0).otherwise(-1.0))
    for sessions in (disliked, liked):
        data = type(small_data())(sessions, batch_size=16, max_length=10)
        frame = shown(small_module(data), data, RecommendationTable(num_sessions=8))
        told = sessions.filter(pl.col("explicit_feedback") == -1).select("session_id", skipped="item_id")
        assert frame.height == 8
        assert frame.join(told, on=["session_id", "skipped"], how="semi").height == 8


def test_the_same_sessions_are_shown_in_each_epoch():
    data = small_data()
    frame = shown(small_module(data), data, RecommendationTable(num_sessions=20), max_epochs=3)
    by_epoch = [part["session_id"].to_list() for part in frame.partition_by("epoch")]
    assert len(by_epoch) == 3
    assert len(by_epoch[0]) == 20  # more than one batch holds with a skip
    assert by_epoch[0] == by_epoch[1] == by_epoch[2]
    assert frame["step"].unique().to_list() == [3, 6, 9]


def test_epochs_are_left_out_where_that_is_asked():
    data = small_data()
    frame = shown(small_module(data), data, RecommendationTable(every_n_epochs=2), max_epochs=3)
    assert sorted(frame["epoch"].unique()) == [0, 2]


def test_what_was_heard_is_not_recommended_where_the_module_says_so():
    data = small_data()
    module = small_module(data, exclude_seen=True)
    frame = shown(module, data, RecommendationTable(num_heard=50, top_k=30))
    for row in frame.iter_rows(named=True):
        assert not set(row["before"]) & set(row["heard"])
        assert row["skipped"] not in row["after"]


def test_a_module_of_another_make_is_shown_too():
    data = small_data()
    frame = shown(OwnModule(data.num_items), data, RecommendationTable(num_sessions=2))
    assert frame.height == 2


def listeners_log():
    hours = pl.duration(hours=pl.col("session_id"), minutes=pl.col("position"))
    log = simulate_sessions(60, num_items=30, num_moods=3)
    return log.with_columns(user_id=pl.col("session_id") % 10, timestamp=pl.datetime(2024, 1, 1) + hours)


@pytest.mark.parametrize("settings", [{"context": ["hour"]}, {"history_length": 5}])
@torch.no_grad()
def test_contexts_and_histories_reach_the_model(settings):
    data = SessionDataModule(listeners_log(), batch_size=64, max_length=10, **settings)
    module = small_module(data, context_sizes=data.context_sizes or None)
    frame = shown(module, data, RecommendationTable(num_sessions=30, top_k=5), max_epochs=4)
    last = frame.filter(pl.col("epoch") == 3)
    batch = next(iter(data.val_dataloader()))
    ids = data.session_ids.gather(batch.session_index.numpy()).to_list()
    module.eval()
    plain = []
    for row in last.iter_rows(named=True):
        one = batch[torch.tensor([ids.index(row["session_id"])])]
        end = int(one.rejected_mask[0].nonzero().max()) + 1
        context = None if one.context is None else one.context[:, :end]
        cut = SessionBatch(one.items[:, :end], one.feedback[:, :end], history=one.history, context=context)
        assert row["after"] == best_five(module, data, cut)
        if context is not None:
            context = torch.zeros_like(context)
        plain.append(row["after"] == best_five(module, data, cut.replace(history=None, context=context)))
    assert not all(plain)


def best_five(module, data, session):
    scores = module.session_query(session)[0] @ module.item_table.T
    return data.vocabulary.decode(scores[1:].argsort(descending=True)[:5] + 1)


def test_a_second_run_with_the_same_callback_starts_anew():
    callback = RecommendationTable(num_sessions=2)
    for _ in range(2):
        data = small_data()
        assert shown(small_module(data), data, callback).height == 2


def test_a_log_without_skips_is_told_once_and_trains_on(tmp_path):
    log = small_data().log.with_columns(feedback=pl.lit(1.0))
    data = type(small_data())(log, batch_size=16, max_length=10)
    module = small_module(data)
    module.skip_head = None
    with pytest.warns(UserWarning, match="RecommendationTable stays empty: none of the first 40") as told:
        frame = shown(module, data, RecommendationTable(), max_epochs=2, logger=CSVLogger(tmp_path))
    assert len([one for one in told if "stays empty" in str(one.message)]) == 1
    assert frame.is_empty()


def test_the_model_trains_on_as_if_it_was_not_watched():
    data = small_data()
    plain = small_module(data)
    watched_trainer([], max_epochs=2).fit(plain, data)
    watched = small_module(data)
    shown(watched, data, RecommendationTable(), max_epochs=2)
    assert torch.equal(plain.item_table, watched.item_table)


def test_data_without_external_ids_is_named():
    data = small_data()
    trainer = watched_trainer([RecommendationTable()], max_epochs=1)
    loaders = data.train_dataloader(), data.val_dataloader()
    with pytest.raises(TypeError, match="`datamodule` must have `vocabulary` and `session_ids` for"):
        trainer.fit(OwnModule(data.num_items), *loaders)


def test_a_module_that_cannot_be_watched_is_named():
    data = small_data()
    trainer = watched_trainer([RecommendationTable()], max_epochs=1)
    message = (
        "`model` must have `item_table` and `session_query` for RecommendationTable, got BoringModel without "
        "`item_table`, `session_query`. `skipcl_lightning.callbacks.WatchedModule` says what they are."
    )
    with pytest.raises(TypeError, match=message):
        trainer.fit(BoringModel(), data)


@pytest.mark.parametrize("name", ["num_sessions", "top_k", "num_heard", "every_n_epochs"])
def test_settings_out_of_range_are_named(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        RecommendationTable(**{name: 0})
