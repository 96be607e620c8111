import logging
import pickle
import warnings
from collections import Counter

import lightning.pytorch as lightning
import numpy as np
import polars as pl
import pytest
import torch
from small_models import quiet_trainer
from torch import Tensor, nn

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import BERT4Rec, GRU4Rec, SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import (
    EvaluationSampler,
    SessionDataModule,
    TrainingSampler,
    read_mssd,
    simulate_sessions,
)
from skipcl_lightning.evaluation import choose_transition_weight, evaluate


class Recorder(lightning.LightningModule):
    """Learns one number, and keeps which rows each stage has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("buffer", torch.zeros(1))  # DDP exchanges buffers: uneven shares must not hang
        self.seen: dict[str, list[Tensor]] = {}

    def training_step(self, batch: SessionBatch) -> Tensor:
        assert batch.target is None
        self.seen.setdefault("train", []).append(batch.session_index)
        return self.weight * batch.lengths.float().mean()

    def validation_step(self, batch: SessionBatch) -> None:
        rows = batch.session_index.float()
        for name, value in {"rows": len(rows), "sum": rows.sum(), "squares": (rows**2).sum()}.items():
            self.log(name, value, on_epoch=True, reduce_fx="sum", sync_dist=True, batch_size=len(rows))

    def test_step(self, batch: SessionBatch) -> None:
        self.seen.setdefault("test", []).append(batch.session_index)

    def predict_step(self, batch: SessionBatch) -> Tensor:
        assert batch.target is None
        return batch.session_index

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def teardown(self, stage: str) -> None:
        # A process that ends with gloo's threads still running is aborted now and then, under load.
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()


def make_trainer(**options) -> lightning.Trainer:
    silent = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning.Trainer(accelerator="cpu", max_epochs=1, **(silent | {"devices": 1} | options))


@pytest.fixture
def log() -> pl.LazyFrame:
    return simulate_sessions(60, num_items=80, num_moods=4)


@pytest.fixture
def data(log) -> SessionDataModule:
    return SessionDataModule(log, batch_size=16, min_item_count=2)


def rows_by_session(data: SessionDataModule, log: pl.LazyFrame) -> dict[int, list[str]]:
    """The kept tracks of each session in order, by plain Python."""
    kept = set(data.vocabulary.ids)
    rows: dict[int, list[str]] = {}
    for session, item, *_ in sorted(log.collect().rows(), key=lambda row: (row[0], row[3])):
        if item in kept:
            rows.setdefault(session, []).append(item)
    wanted = set(data.session_ids.to_list())
    return {session: items for session, items in rows.items() if session in wanted}


def test_every_stage_decodes_to_the_parts_of_the_sessions_that_it_may_see(data, log):
    sessions = rows_by_session(data, log)
    stages = [
        (data.train_dataloader(), -2, None),
        (data.val_dataloader(), -2, -2),
        (data.test_dataloader(), -1, -1),
    ]
    # No model has learned what comes after a track more than the longest training part's.
    most = max(len(session) for session in sessions.values()) - 2 - 1
    assert data.input_length == most
    for loader, end, target in [*stages, (data.predict_dataloader(), None, None)]:
        seen, kept = [], most + 1 if end == -2 and target is None else most
        for batch in loader:
            for row, index in enumerate(batch.session_index.tolist()):
                session = sessions[data.session_ids[index]]
                items = data.vocabulary.decode(batch.items[row][batch.valid_mask[row]])
                assert items == session[:end][-kept:]
                if end != -2 or target is not None:
                    seen_items = batch.seen_items[row][batch.seen_items[row] > 0]
                    assert data.vocabulary.decode(seen_items) == session[:end]
                if target is None:
                    assert batch.target is None
                else:
                    assert data.vocabulary.decode(batch.target[row : row + 1]) == [session[target]]
                seen.append(index)
        assert sorted(seen) == list(range(len(sessions)))


def test_counts_and_the_order_of_items_come_from_the_training_part_alone(data, log):
    sessions = rows_by_session(data, log)
    counts = Counter(item for session in sessions.values() for item in session[:-2])
    assert data.item_counts.dtype == torch.int64
    assert data.item_counts.tolist() == [0, *(counts[item] for item in data.vocabulary.ids)]
    assert data.item_counts[1:].tolist() == sorted(counts.values(), reverse=True) + [0] * (
        data.num_items - len(counts)
    )
    assert data.num_cold_targets == {
        "validation": sum(counts[session[-2]] == 0 for session in sessions.values()),
        "test": sum(counts[session[-1]] == 0 for session in sessions.values()),
    }


def test_targets_that_training_never_sees_are_counted_and_told(caplog):
    log = pl.DataFrame({"session_id": [1] * 3 + [2] * 4, "item_id": list("abcaabd"), "position": [*range(7)]})
    data = SessionDataModule(log.with_columns(feedback=1.0))
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        assert data.num_cold_targets == {"validation": 2, "test": 2}
    told = "Targets: 2 in validation, 2 in test; never seen in training: 2 in validation, 2 in test."
    assert told in caplog.text
    assert data.vocabulary.ids == ["a", "b", "c", "d"]


def test_the_log_is_read_once_and_told_once(log, caplog):
    reads = []

    def count(column: pl.Series) -> pl.Series:
        reads.append(len(column))
        return column

    counted = log.with_columns(pl.col("feedback").map_batches(count, return_dtype=pl.Float32))
    data = SessionDataModule(counted)
    assert reads == []
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        data.setup("fit")
        data.setup("test")
        assert data.drop_report.sessions_kept == len(data.session_ids)
    assert len(reads) == 1
    assert caplog.text.count("Kept") == 1


def test_the_same_seed_gives_the_same_batches_and_the_next_epoch_others(log):
    def batches(seed):
        lightning.seed_everything(seed, verbose=False)
        loader = SessionDataModule(log, batch_size=16).train_dataloader()
        epochs = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)  # as Lightning does
            epochs.append([batch.items.tolist() for batch in loader])
        return epochs

    first = batches(1)
    assert batches(1) == first
    assert SessionDataModule(log, seed=0).seed == 0
    assert first[0] != first[1]
    assert batches(2) != first


def test_the_encoder_makes_the_same_batches_as_prediction_does(data, log):
    sessions = rows_by_session(data, log)
    batch = next(iter(data.predict_dataloader()))
    names = [sessions[data.session_ids[index]] for index in batch.session_index.tolist()]
    assert torch.equal(data.encoder.encode(names).items, batch.items)


def test_settings_reach_the_batches(log):
    data = SessionDataModule(
        log, batch_size=7, max_length=4, skip_threshold=0.6, min_session_length=12, require_skip=True
    )
    batch = next(iter(data.train_dataloader()))
    # A track more than a model is given, to be predicted.
    assert (len(batch), batch.items.shape[1], batch.skip_threshold) == (7, 5, 0.6)
    assert next(iter(data.val_dataloader())).items.shape[1] == 4
    assert data.encoder.state_dict()["max_length"] == 4
    assert data.drop_report.sessions_too_short > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_whole_run_is_silent_and_sees_every_session_once(data, workers):
    data.num_workers = workers
    module, trainer = Recorder(), make_trainer(log_every_n_steps=1)
    trainer.fit(module, data)
    trainer.test(module, data)
    predictions = torch.cat(trainer.predict(module, data))
    everyone = list(range(len(data.session_ids)))
    assert sorted(torch.cat(module.seen["train"]).tolist()) == everyone
    assert torch.cat(module.seen["test"]).tolist() == everyone
    assert predictions.tolist() == everyone


def test_after_a_run_or_an_error_every_warning_is_heard_again(data):
    before = list(warnings.filters)
    data.setup("fit")
    assert len(warnings.filters) == len(before) + 2
    data.teardown("fit")
    assert warnings.filters == before
    data.setup("fit")
    data.on_exception(RuntimeError())
    assert warnings.filters == before


def test_pinned_memory_is_left_out_where_there_is_no_accelerator(log, monkeypatch):
    data = SessionDataModule(log, pin_memory=True)
    for there in (True, False):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda there=there: there)
        assert data.val_dataloader().pin_memory is there


@pytest.mark.slow
def test_two_processes_count_every_held_out_track_once(log):
    # 5 and 4 rows in batches of 4: the first process has a batch more than the second.
    data = SessionDataModule(log.filter(pl.col("session_id") < 9), batch_size=4)
    assert len(data.session_ids) == 9
    trainer = make_trainer(devices=2, strategy="ddp_spawn")
    trainer.fit(Recorder(), data)
    found = {name: trainer.callback_metrics[name].item() for name in ("rows", "sum", "squares")}
    assert found == {"rows": 9, "sum": sum(range(9)), "squares": sum(row**2 for row in range(9))}


def test_only_evaluation_gets_the_sampler_that_neither_repeats_nor_drops(data):
    data.trainer = type("Trainer", (), {"world_size": 3, "global_rank": 1})()
    for name in ("val", "test", "predict"):
        loader = getattr(data, f"{name}_dataloader")()
        assert isinstance(loader.sampler, EvaluationSampler)
        assert next(iter(loader.sampler)) == len(loader.dataset) // 3
    sampler = data.train_dataloader().sampler
    assert isinstance(sampler, TrainingSampler)
    assert (sampler.num_replicas, sampler.rank) == (3, 1)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"batch_size": 0}, ValueError),
        ({"max_length": 0}, ValueError),
        ({"num_workers": -1}, ValueError),
        ({"bucket_batches": -1}, ValueError),
        ({"seed": -1}, ValueError),
        ({"seed": 2**32}, ValueError),
        ({"min_session_length": 2}, ValueError),
        ({"min_item_count": 0}, ValueError),
        ({"skip_threshold": -1.0}, ValueError),
        ({"pin_memory": 1}, TypeError),
        ({"require_skip": 1}, TypeError),
        ({"batch_size": 2.0}, TypeError),
    ],
)
def test_settings_are_checked_before_anything_is_read(log, setting, error):
    with pytest.raises(error, match=f"`{next(iter(setting))}` must be"):
        SessionDataModule(log, **setting)


def test_the_ends_of_the_ranges_are_accepted(log):
    least = {"bucket_batches": 0, "num_workers": 0, "history_length": 0, "seed": 0, "skip_threshold": 1.0}
    for settings in (least, {"seed": 2**32 - 1, "batch_size": 1, "max_length": 1, "mining_depth": 1}):
        assert SessionDataModule(log, **settings).num_items > 0


def test_a_table_without_a_needed_column_is_told_at_once(log):
    with pytest.raises(ValueError, match="the column 'feedback'"):
        SessionDataModule(log.drop("feedback"))


@pytest.mark.real_data
def test_the_real_excerpt_becomes_batches(real_data):
    data = SessionDataModule(read_mssd(real_data / "mssd" / "log_excerpt_complete.csv"), batch_size=4)
    batch = next(iter(data.test_dataloader()))
    assert batch.skip_mask.sum() / batch.valid_mask.sum() > 0.2
    assert np.sum(data.item_counts.numpy()) == 201 - 2 * 11


@pytest.mark.parametrize(
    ("backbone", "length"), [(SASRec(8, max_length=6), 6), (BERT4Rec(8, max_length=6), 5), (GRU4Rec(8), 50)]
)
def test_without_a_length_the_data_takes_that_of_the_backbone(backbone, length):
    data = SessionDataModule(simulate_sessions(40, num_items=40, num_moods=4), batch_size=8)
    module = SkipCLModule(backbone, num_items=data.num_items)
    quiet_trainer(max_steps=1).fit(module, data)
    # The mask token of a bidirectional backbone takes one of its positions.
    assert data.max_length == length
    assert module.encoder.max_length == data.input_length <= length
    assert next(iter(data.train_dataloader())).items.shape[1] <= length + 1


def test_a_length_that_was_given_stays():
    data = SessionDataModule(simulate_sessions(40, num_items=40, num_moods=4), batch_size=8, max_length=4)
    quiet_trainer(max_steps=1).fit(SkipCLModule(SASRec(8, max_length=6), num_items=data.num_items), data)
    assert data.max_length == 4


def test_its_description_prepares_nothing():
    data = SessionDataModule(simulate_sessions(40, num_items=30), batch_size=8)
    assert repr(data) == "SessionDataModule(not prepared yet, batch_size=8, max_length=50)"
    assert data.num_items
    assert repr(data) == f"SessionDataModule({data.num_items} items, batch_size=8, max_length=50)"


def test_it_is_pickled_after_a_training():
    data = SessionDataModule(simulate_sessions(40, num_items=30), batch_size=8, max_length=20)
    module = SkipCLModule(SASRec(8, max_length=20), num_items=data.num_items, warmup_steps=2)
    quiet_trainer(max_epochs=1).fit(module, data)
    again = pickle.loads(pickle.dumps(data))  # noqa: S301 - our own
    assert again.vocabulary == data.vocabulary
    assert again.trainer is None


def test_a_model_is_evaluated_as_it_was_trained_whatever_was_fitted_since():
    data = SessionDataModule(simulate_sessions(60, num_items=40, num_moods=4), batch_size=16)
    long = SkipCLModule(SASRec(8, max_length=9), num_items=data.num_items, transition_weight=1.0)
    quiet_trainer(max_epochs=1).fit(long, data)
    ranks = evaluate(long, data, num_resamples=0).sessions["rank"]
    weights = choose_transition_weight(long, data)
    long.transition_weight = 1.0
    short = SkipCLModule(SASRec(8, max_length=2), num_items=data.num_items)
    quiet_trainer(max_epochs=1).fit(short, data)
    assert data.max_length == 2
    assert evaluate(long, data, num_resamples=0).sessions["rank"].equals(ranks)
    assert choose_transition_weight(long, data).equals(weights)
    assert data.max_length == 2
    # A backbone without a limit does not take that of another.
    free = SkipCLModule(GRU4Rec(8), num_items=data.num_items)
    quiet_trainer(max_steps=1).fit(free, data)
    assert data.max_length == 50
    assert free.encoder.max_length > 9
    # Data with a length of its own keeps it.
    own = SessionDataModule(simulate_sessions(60, num_items=40, num_moods=4), batch_size=16, max_length=3)
    assert not evaluate(long, own, num_resamples=0).sessions["rank"].equals(ranks)
