import json
import subprocess
import sys

import polars as pl
import pytest
import torch
import trade_off_processes
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from trade_off_processes import watch
from watched_runs import (
    OwnModule,
    read_wandb_records,
    small_data,
    small_module,
    wandb_runs,
    watched_trainer,
)

from skipcl_lightning import SkipCLModule
from skipcl_lightning.callbacks import SkipTradeOffTable
from skipcl_lightning.evaluation import evaluate, skip_trade_off
from skipcl_lightning.heads import SkipInfoNCE, SkipPrediction

PENALTIES = (0.5, 4.0)
FAST = {"penalties": PENALTIES, "num_resamples": 20}
PNG = b"\x89PNG"


def predicting(data):
    return small_module(data, SkipPrediction(vector_size=4))


def test_table_plot_and_suggestion_reach_every_logger(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    data, callback = small_data(), SkipTradeOffTable(**FAST)
    module = predicting(data)
    wandb = WandbLogger(project="skipcl", save_dir=tmp_path)
    csv, board = CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="tensorboard")
    trainer = watched_trainer([callback], logger=[wandb, csv, board], max_epochs=1)
    trainer.fit(module, data)
    wandb.experiment.finish()
    expected = skip_trade_off(module, data, **FAST)
    assert callback.front.table.equals(expected.table)
    assert trainer.callback_metrics["val/suggested_skip_penalty"] == pytest.approx(expected.penalty)
    assert module.skip_penalty == 0
    (written,) = tmp_path.glob("csv/*/val_skip_trade_off.csv")
    table = pl.read_csv(written)
    assert table["hit_rate@10"].to_list() == pytest.approx(expected.table["hit_rate@10"].to_list())
    assert table.filter("suggested")["skip_penalty"].to_list() == [expected.penalty]
    (picture,) = tmp_path.glob("csv/*/val_skip_trade_off_plot.png")
    assert picture.read_bytes().startswith(PNG)
    (run,) = wandb_runs(tmp_path)
    assert list(run.parent.glob("files/media/table/val/skip_trade_off_*.table.json"))
    assert list(run.parent.glob("files/media/images/val/skip_trade_off_plot_*.png"))
    keys = {
        "/".join(item.nested_key) or item.key
        for record in read_wandb_records(run)
        if record.WhichOneof("record_type") == "history"
        for item in record.history.item
    }
    assert any(key.startswith("val/suggested_skip_penalty") for key in keys)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(board.log_dir)
    events.Reload()
    assert "val/skip_trade_off_plot" in events.Tags()["images"]
    assert "val/skip_trade_off/text_summary" in events.Tags()["tensors"]


def test_a_penalty_is_set_only_if_asked_for_and_then_metrics_and_checkpoints_have_it(tmp_path, monkeypatch):
    data = small_data()
    module = predicting(data)
    # The suggestion of so few sessions is chance.
    real = SkipTradeOffTable(**FAST, set_penalty=True)
    front = skip_trade_off(module, data, **FAST)
    object.__setattr__(front, "penalty", 4.0)
    monkeypatch.setattr(
        "skipcl_lightning.callbacks.skip_trade_off_table.skip_trade_off", lambda *_, **__: front
    )
    trainer = watched_trainer([real], max_epochs=1)
    trainer.fit(module, data)
    assert module.skip_penalty == 4.0
    report = evaluate(module, data, split="validation", num_resamples=0)
    assert report.settings["skip_penalty"] == 4.0
    for name in ("ndcg@10", "skip_mrr@10"):
        assert float(trainer.callback_metrics[f"val/{name}"]) == pytest.approx(report[name], abs=1e-6)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = SkipCLModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert loaded.skip_penalty == 4.0
    loaded.skip_penalty = 1.0
    trainer.validate(loaded, data, verbose=False)
    assert loaded.skip_penalty == 1.0


def test_it_runs_in_the_epochs_that_are_asked_for_and_changes_no_training(tmp_path, monkeypatch):
    data, measured = small_data(), []
    monkeypatch.setattr(
        "skipcl_lightning.callbacks.skip_trade_off_table._publish",
        lambda trainer, front: measured.append((trainer.current_epoch, trainer.state.fn.value)),
    )
    weights = []
    for callbacks in ([], [SkipTradeOffTable(**FAST, every_n_epochs=2)]):
        module = predicting(data)
        trainer = watched_trainer(callbacks, logger=CSVLogger(tmp_path), max_epochs=3)
        trainer.fit(module, data)
        weights.append(module.state_dict())
    assert measured == [(0, "fit"), (2, "fit")]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    trainer.validate(module, data, verbose=False)
    assert measured[-1][1] == "validate"
    assert len(measured) == 3


@pytest.mark.slow
def test_two_processes_measure_what_one_does_and_only_the_first_writes(tmp_path):
    watch(1, tmp_path)
    run = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, trade_off_processes.__file__, "2", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    (one,) = [json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "1").glob("told_*.json")]
    both = [json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "2").glob("told_*.json")]
    assert len(both) == 2
    for other in both:
        assert other["front"] == one["front"]
        assert other["penalty"] == one["penalty"]
        assert other["transition_weight"] == one["transition_weight"] == one["logged"]["transition_weight"]
        assert other["logged"]["val/ndcg@10"] == pytest.approx(one["logged"]["val/ndcg@10"], abs=1e-6)
    assert len({row["hit_rate@10"] for row in one["front"]}) > 1
    for devices in ("1", "2"):
        assert len(list((tmp_path / devices).rglob("val_skip_trade_off.csv"))) == 1


def test_what_cannot_be_is_named_before_the_training():
    data = small_data()
    with pytest.raises(ValueError, match=r"must be or contain a `SkipPrediction`.*got SkipInfoNCE"):
        watched_trainer([SkipTradeOffTable()]).fit(small_module(data, SkipInfoNCE()), data)
    for module, given in ((OwnModule(data.num_items), "OwnModule"), (predicting(data), "NoneType")):
        source = (data,) if given == "OwnModule" else (data.train_dataloader(), data.val_dataloader())
        with pytest.raises(TypeError, match=f"must be used with a SkipCLModule .*{given}"):
            watched_trainer([SkipTradeOffTable()]).fit(module, *source)
    trainer = watched_trainer([])
    trainer.strategy.connect(predicting(data))
    trainer._data_connector.attach_data(predicting(data), datamodule=data)
    trainer.strategy.__class__ = ModelParallelStrategy
    with pytest.raises(ValueError, match="`strategy` must keep all weights on each process"):
        SkipTradeOffTable().setup(trainer, predicting(data), "fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalties": (0.1, -1.0)}, "`penalties` must be .*got -1.0"),
        ({"cut_off": 0}, "`cut_off` must be at least 1, got 0"),
        ({"num_resamples": 0}, "`num_resamples` must be at least 1, got 0"),
        ({"every_n_epochs": 0}, "`every_n_epochs` must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SkipTradeOffTable(**settings)
