"""What a module logs at validation and test: the metrics that have a population."""

import logging

import polars as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from small_models import quiet_trainer

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule, simulate_sessions

COUNTS = {"num_listened", "num_skipped", "num_repeated"}


def make_data(*, listened):
    log = simulate_sessions(40, num_items=20, num_moods=2)
    if listened:
        log = log.with_columns(feedback=pl.lit(1.0))
    return SessionDataModule(log, batch_size=16)


def make_module(data):
    torch.manual_seed(0)
    return SkipCLModule(SASRec(8), None, num_items=data.num_items, embedding_size=8, top_k=(1, 10))


def test_a_log_without_skips_logs_no_metric_of_skips_and_one_line(caplog):
    data = make_data(listened=True)
    module = make_module(data)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        logged = quiet_trainer().validate(module, data, verbose=False)[0]
        quiet_trainer().validate(module, data, verbose=False)
    names = {name.removeprefix("val/") for name in logged}
    of_listened = {f"{name}@{k}" for name in ("hit_rate", "ndcg", "mrr") for k in (1, 10)}
    of_kinds = {f"hit_rate@{k}/{among}" for k in (1, 10) for among in ("repeat", "explore")}
    assert of_listened | COUNTS <= names <= of_listened | of_kinds | COUNTS
    assert logged["val/num_skipped"] == 0
    lines = [record.message for record in caplog.records if "Left out" in record.message]
    assert len(lines) == 1
    families = (
        "skip_hit_rate",
        "skip_mrr",
        "delta_hit_rate",
        "skip_rank_percentile",
        "pairwise_skip_accuracy",
    )
    assert all(f"val/{name}" in lines[0] for name in families)


def test_a_log_with_skips_logs_all_metrics_but_map_which_equals_mrr():
    data = make_data(listened=False)
    logged = quiet_trainer().test(make_module(data), data, verbose=False)[0]
    assert {"test/skip_mrr@10", "test/delta_hit_rate@1", "test/pairwise_skip_accuracy"} <= logged.keys()
    assert not any("map" in name for name in logged)


def test_early_stopping_and_checkpoints_find_the_hit_rate_without_skips(tmp_path):
    data = make_data(listened=True)
    stopping = EarlyStopping("val/hit_rate@10", mode="max", patience=5)
    best = ModelCheckpoint(tmp_path, monitor="val/hit_rate@10", mode="max")
    trainer = quiet_trainer(
        max_epochs=2, num_sanity_val_steps=1, callbacks=[stopping, best], enable_checkpointing=True
    )
    trainer.fit(make_module(data), data)
    assert float(best.best_model_score) == pytest.approx(float(stopping.best_score))


def test_each_validation_counts_its_own_targets_alone():
    data = make_data(listened=False)
    module = make_module(data)
    trainer = quiet_trainer(max_epochs=2, num_sanity_val_steps=2)
    trainer.fit(module, data)
    counted = trainer.callback_metrics
    assert counted["val/num_listened"] + counted["val/num_skipped"] == 40
    again = quiet_trainer().validate(module, data, verbose=False)[0]
    assert again == {name: float(value) for name, value in counted.items() if name.startswith("val/")}
