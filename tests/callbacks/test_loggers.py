"""What a watched run leaves with each logger, with the real packages, offline."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from watched_runs import (
    all_callbacks,
    read_csv_metrics,
    read_wandb_records,
    small_data,
    small_module,
    wandb_runs,
    watched_trainer,
)

from skipcl_lightning import Recommender
from skipcl_lightning.callbacks import SkipLossWarmup
from skipcl_lightning.data.vocabulary import fingerprint_vocabulary

EPOCHS, STEPS = 2, 6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Fit and test once, with three loggers side by side."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        data = small_data()
        module = small_module(data)
        callbacks = [*all_callbacks(folder), SkipLossWarmup(steps=4)]
        wandb_logger = WandbLogger(project="skipcl", save_dir=folder)
        loggers = [
            wandb_logger,
            CSVLogger(folder, name="csv"),
            TensorBoardLogger(folder, name="tensorboard"),
        ]
        trainer = watched_trainer(callbacks, logger=loggers, max_epochs=EPOCHS)
        trainer.fit(module, data)
        trainer.test(module, data, ckpt_path="best", weights_only=True, verbose=False)
        run_id = wandb_logger.experiment.id
        wandb_logger.experiment.finish()
    (path,) = wandb_runs(folder)
    return SimpleNamespace(
        folder=folder,
        data=data,
        callbacks=callbacks,
        records=read_wandb_records(path),
        files=path.parent / "files",
        run_id=run_id,
    )


@pytest.fixture(scope="module")
def history(run):
    """The rows of the W&B run: values by key, those of a picture or table as what W&B keeps of it."""
    rows = []
    for record in run.records:
        if record.WhichOneof("record_type") == "history":
            row = {}
            for item in record.history.item:
                key, *inner = list(item.nested_key) or [item.key]
                value = json.loads(item.value_json)
                if inner:
                    row.setdefault(key, {})["/".join(inner)] = value
                else:
                    row[key] = value
            rows.append(row)
    return rows


@pytest.fixture(scope="module")
def config(run):
    """The configuration of the W&B run."""
    settings = {}
    for record in run.records:
        if record.WhichOneof("record_type") == "config":
            for update in record.config.update:
                *outer, last = list(update.nested_key) or [update.key]
                place = settings
                for key in outer:
                    place = place.setdefault(key, {})
                place[last] = json.loads(update.value_json)
    return settings


def series(rows, key):
    return [row[key] for row in rows if key in row]


def test_wandb_holds_every_scalar_that_a_csv_holds_and_as_often(run, history):
    rows = read_csv_metrics(run.folder / "csv")
    keys = {key for row in rows for key in row} - {"step", "epoch"}
    assert len(keys) > 60
    for key in keys:
        told = [float(value) for value in series(history, key)]  # NaN is a string there
        assert told == pytest.approx(series(rows, key), rel=1e-6, nan_ok=True), key


def test_tensorboard_holds_the_same_scalars(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = read_csv_metrics(run.folder / "csv")
    keys = {key for row in rows for key in row} - {"step", "epoch"}
    scalars = {}
    for file in sorted((run.folder / "tensorboard").rglob("events.*")):
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, []).extend(event.value for event in events.Scalars(tag))
    assert keys <= set(scalars)
    for key in keys:
        assert scalars[key] == pytest.approx(series(rows, key), rel=1e-5, nan_ok=True), key


def test_losses_signals_and_rates_are_there_for_each_step(history):
    for key in (
        "train/loss",
        "train/next_item_loss",
        "train/skip_loss",
        "train/gradient_norm",
        "train/gradient_norm/backbone",
        "train/gradient_norm/item_embedding",
        "train/skip_weight",
        "train/temperature",
        "lr-AdamW/pg1",
    ):
        assert len(series(history, key)) == STEPS, key
    assert series(history, "train/skip_weight") == pytest.approx([0, 0.075, 0.15, 0.225, 0.3, 0.3])
    assert series(history, "train/temperature")[-1] != pytest.approx(0.1, abs=1e-6)  # it is learned


def test_metrics_and_diagnostics_are_there_for_each_epoch_and_at_test(history):
    for key in ("hit_rate@10", "ndcg@20", "skip_mrr@10", "skip_rank_percentile", "pairwise_skip_accuracy"):
        assert len(series(history, f"val/{key}")) == EPOCHS, key
        assert len(series(history, f"test/{key}")) == 1, key
    for key in ("norm_mean", "uniformity", "effective_rank", "drift", "alignment", "query_uniformity"):
        assert len(series(history, f"embeddings/{key}")) == EPOCHS, key


def test_no_step_of_the_run_goes_back(history):
    steps = [row["_step"] for row in history]
    assert steps == list(range(len(steps)))
    axis = series(history, "trainer/global_step")
    assert len(axis) == len(history)
    assert axis == sorted(axis)
    assert axis[-1] == STEPS


def test_every_metric_is_drawn_over_the_optimizer_steps(run):
    metrics = [record.metric for record in run.records if record.WhichOneof("record_type") == "metric"]
    assert [metric.step_metric for metric in metrics if metric.glob_name == "*"] == ["trainer/global_step"]


def test_the_configuration_holds_settings_counts_and_drops(run, config):
    assert config["learning_rate"] == 0.01
    assert config["backbone"]["name"] == "SASRec"
    assert config["skip_head"]["settings"]["weight"] == 0.3
    data = config["data"]
    assert data["num_items"] == run.data.num_items
    assert data["num_sessions"] == {"train": 40, "validation": 40, "test": 40, "predict": 40}
    assert data["num_cold_targets"] == run.data.num_cold_targets
    assert data["drop_report"]["rows_read"] == run.data.drop_report.rows_read
    assert data["drop_report"]["sessions_too_short"] == 0
    assert data["vocabulary_sha256"] == fingerprint_vocabulary(run.data.vocabulary)
    assert config["trainer"]["max_epochs"] == EPOCHS


def test_the_other_loggers_hold_the_configuration_too(run):
    for name in ("csv", "tensorboard"):
        (path,) = (run.folder / name).rglob("hparams.yaml")
        # Lightning writes tuples with a tag of Python's, which only its own loader reads.
        settings = yaml.load(path.read_text(encoding="utf-8"), yaml.UnsafeLoader)  # noqa: S506 - our own file
        assert settings["data"]["drop_report"]["rows_kept"] == run.data.drop_report.rows_kept
        assert settings["skip_head"]["name"] == "SkipInfoNCE"


def test_the_table_of_sessions_is_in_wandb_with_external_ids(run, history):
    entries = series(history, "val/recommendations")
    assert len(entries) == EPOCHS
    table = json.loads((run.files / entries[-1]["path"]).read_text(encoding="utf-8"))
    assert table["columns"] == run.callbacks[4].frame.columns
    assert len(table["data"]) == 3 * EPOCHS
    row = dict(zip(table["columns"], table["data"][0], strict=True))
    assert row["session_id"] in run.data.session_ids.to_list()
    assert row["skipped"] in run.data.vocabulary.ids
    for name in ("before", "after"):
        assert len(set(row[name].split(", ")) & set(run.data.vocabulary.ids)) == 4


def test_the_pictures_of_the_ranks_are_in_wandb(run, history):
    for key, times in (("val/ranks", EPOCHS), ("test/ranks", 1)):
        entries = series(history, key)
        assert len(entries) == times, key
        for entry in entries:
            (name,) = entry["filenames"]
            assert (run.files / name).read_bytes().startswith(b"\x89PNG")


def test_tensorboard_gets_table_and_pictures(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    texts, images = [], []
    for file in (run.folder / "tensorboard").rglob("events.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        texts += [
            event.tensor_proto.string_val[0].decode()
            for tag in events.Tags()["tensors"]
            if tag.startswith("val/recommendations")
            for event in events.Tensors(tag)
        ]
        images += [tag for tag in events.Tags()["images"] for _ in events.Images(tag)]
    assert len(texts) == EPOCHS
    assert "| session_id | heard | skipped |" in texts[0]
    assert sorted(images) == ["test/ranks", "val/ranks", "val/ranks"]


def test_a_csv_logger_gets_files_beside_its_metrics(run):
    (metrics,) = (run.folder / "csv").rglob("metrics.csv")
    table = pl.read_csv(metrics.parent / "val_recommendations.csv")
    assert table.height == 3 * EPOCHS
    assert table["after"].str.split(", ").list.len().to_list() == [4] * table.height
    assert (metrics.parent / "val_ranks.png").stat().st_size > 1000
    assert (metrics.parent / "test_ranks.png").stat().st_size > 1000
    assert not list(metrics.parent.glob(".*"))


def test_the_best_checkpoint_is_an_artifact_that_recommends(run):
    artifacts = [record.artifact for record in run.records if record.WhichOneof("record_type") == "artifact"]
    (artifact,) = [one for one in artifacts if one.type == "model"]
    assert artifact.name == f"model-{run.run_id}"
    assert "best" in artifact.aliases
    metadata = json.loads(artifact.metadata)
    assert metadata["num_items"] == run.data.num_items
    assert metadata["vocabulary_sha256"] == fingerprint_vocabulary(run.data.vocabulary)
    assert metadata["monitor"] == "val/ndcg@20"
    assert math.isfinite(metadata["score"])
    (entry,) = artifact.manifest.contents
    (saved,) = (run.folder / "checkpoints").glob("*.ckpt")
    assert entry.path == saved.name
    assert Path(entry.local_path).read_bytes() == saved.read_bytes()
    recommended = Recommender.from_checkpoint(entry.local_path).recommend([run.data.vocabulary.ids[:3]])
    assert set(recommended["item_id"]) <= set(run.data.vocabulary.ids)
