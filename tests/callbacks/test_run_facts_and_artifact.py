import json

import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from watched_runs import OwnModule, read_wandb_records, small_data, small_module, wandb_runs, watched_trainer

from skipcl_lightning.callbacks import CheckpointArtifact, RunFacts


def test_facts_of_data_of_another_make_are_refused(tmp_path):
    data = small_data()
    trainer = watched_trainer([RunFacts()], logger=CSVLogger(tmp_path))
    with pytest.raises(
        TypeError, match="`datamodule` must be a SessionDataModule for RunFacts, got NoneType"
    ):
        trainer.fit(OwnModule(data.num_items), data.train_dataloader(), data.val_dataloader())


@pytest.fixture
def wandb_logger(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="skipcl", save_dir=tmp_path, offline=True)
    yield logger
    logger.experiment.finish()


def test_an_artifact_without_a_checkpoint_is_refused(wandb_logger):
    data = small_data()
    trainer = watched_trainer([CheckpointArtifact()], logger=wandb_logger)
    with pytest.raises(ValueError, match="`callbacks` must have a ModelCheckpoint beside CheckpointArtifact"):
        trainer.fit(small_module(data), data)


def test_without_wandb_there_is_no_artifact_and_no_checkpoint_is_needed(tmp_path):
    data = small_data()
    trainer = watched_trainer([CheckpointArtifact()], logger=CSVLogger(tmp_path), max_epochs=1)
    trainer.fit(small_module(data), data)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_logger_that_refuses_checkpoints_offline_gets_the_artifact(tmp_path, wandb_logger):
    data = small_data()
    trainer = watched_trainer(
        [CheckpointArtifact()], logger=wandb_logger, max_epochs=1, enable_checkpointing=True
    )
    trainer.fit(small_module(data), data)
    wandb_logger.experiment.finish()
    (path,) = wandb_runs(tmp_path)
    artifacts = [r.artifact for r in read_wandb_records(path) if r.WhichOneof("record_type") == "artifact"]
    (metadata,) = [json.loads(artifact.metadata) for artifact in artifacts]
    assert metadata["num_items"] == data.num_items
    assert metadata["monitor"] is None
