"""Commands that use a checkpoint on a newer log."""

import logging

import polars as pl
import pytest

from skipcl_lightning import SkipCLModule
from skipcl_lightning.data import SessionDataModule, open_store, simulate_sessions
from skipcl_lightning.evaluation import evaluate

RUN = "lightning_logs/version_0"
CHECKPOINT = f"{RUN}/checkpoints/best.ckpt"
SMALL = [
    "--config", "simulated/sasrec", "--trainer.max_epochs", 1, "--trainer.accelerator", "cpu",
    "--trainer.enable_progress_bar", "false", "--data.log.num_sessions", 60, "--data.log.num_items", 40,
]  # fmt: skip
TRAINED = ["--config", f"{RUN}/config.yaml", "--ckpt_path", CHECKPOINT]


def figure(printed, name):
    line = next(line for line in printed.splitlines() if f" {name} " in line)
    return float(line.split("│")[2])


@pytest.mark.slow
def test_a_checkpoint_is_tested_on_a_newer_log_with_its_own_vocabulary(skipcl, tmp_path, capsys, caplog):
    skipcl("fit", *SMALL)
    newer = simulate_sessions(40, num_items=45, seed=5).collect()
    newer.write_parquet("newer.parquet")
    module = SkipCLModule.load_from_checkpoint(CHECKPOINT)
    known = module.encoder.vocabulary
    unknown = newer.filter(~pl.col("item_id").is_in(known.ids))["item_id"]
    (tmp_path / "started.yaml").write_text("data: {init_args: {vocabulary: gone.ckpt, new_items: append}}")
    with pytest.raises(SystemExit, match=r"`vocabulary` must be .*'gone.ckpt', which does not exist"):
        skipcl("test", *TRAINED, "--config", "started.yaml")
    capsys.readouterr()
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        # A vocabulary in a configuration is that from which a run started.
        skipcl("test", *TRAINED, "--config", "started.yaml", "--data.log", "newer.parquet")
    assert f"{len(unknown)} rows of {unknown.n_unique()} unknown items" in caplog.text
    data = SessionDataModule(newer, vocabulary=module, max_length=20)
    report = evaluate(module.eval(), data, num_resamples=0)
    assert figure(capsys.readouterr().out, "test/mrr@20") == pytest.approx(report["mrr@20"])
    skipcl("predict", *TRAINED, "--data.log", "newer.parquet", "--output", "next.parquet")
    assert set(pl.read_parquet("next.parquet")["item_id"]) <= set(known.ids)
    # The log of the training gives the same figures as a data module without a vocabulary.
    capsys.readouterr()
    skipcl("validate", *TRAINED)
    own = SessionDataModule(simulate_sessions(60, num_items=40, max_length=20), max_length=20)
    report = evaluate(module, own, num_resamples=0, split="validation")
    assert figure(capsys.readouterr().out, "val/mrr@20") == pytest.approx(report["mrr@20"])
    # A store is prepared with the checkpoint's vocabulary.
    skipcl(
        "prepare", "table", "newer.parquet", "--item", "item_id", "--session", "session_id",
        "--position", "position", "--feedback", "feedback", "--folder", "store", "--vocabulary", CHECKPOINT,
    )  # fmt: skip
    assert open_store("store").vocabulary == known
    # The data of a new run may have the new tracks too.
    appended = ["--data.log", "newer.parquet", "--data.vocabulary", CHECKPOINT, "--data.new_items", "append"]
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        skipcl("fit", *SMALL, *appended, "--trainer.fast_dev_run", "true")
    assert f"Vocabulary: 40 items given, {unknown.n_unique()} appended." in caplog.text


def test_a_file_that_is_no_checkpoint_is_told(skipcl, tmp_path):
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(SystemExit, match="skipcl test: `path` must be a checkpoint of Lightning"):
        skipcl("test", *SMALL, "--ckpt_path", "text.ckpt")
