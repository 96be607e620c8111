import sys
import textwrap

import polars as pl
import pytest
import torch

from skipcl_lightning.cli import predictions
from skipcl_lightning.data import SessionDataModule

OWN = """
import polars as pl
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import GRU4Rec

class Numbers(LightningDataModule):
    def __init__(self, count: int = 4):
        super().__init__()
        self.count = count

    def train_dataloader(self):
        return DataLoader(torch.arange(float(self.count))[:, None], batch_size=2)

    predict_dataloader = train_dataloader

class Plain(LightningModule):
    def __init__(self, width: int, fail: bool = False):
        super().__init__()
        self.save_hyperparameters()
        self.map = nn.Linear(1, width)

    def training_step(self, batch, index):
        return self.map(batch).square().mean()

    def predict_step(self, batch, index):
        if self.hparams.fail and index:
            raise RuntimeError("broken off")
        return pl.DataFrame({"number": batch[:, 0].numpy()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Silent(Plain):
    def predict_step(self, batch, index):
        return batch

class Notes(Logger):
    name, version, save_dir = "notes", "first", None

    def __init__(self, text: str = "none"):
        super().__init__()

    def log_metrics(self, metrics, step=None): ...

    def log_hyperparams(self, params, *args, **kwargs): ...

class Small(SkipCLModule):
    def __init__(self, width: int = 8, **settings):
        super().__init__(None, None, embedding_size=width, **settings)

    def build_backbone(self):
        return GRU4Rec(self.hparams["width"])
"""
QUIET = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.max_epochs", 1]


@pytest.fixture(autouse=True)
def own_project(tmp_path, monkeypatch):
    """A module of the user's own on the path."""
    (tmp_path / "own_project.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_project", None)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # Lightning's, of the user's own loader
@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 and torch 2.13
class TestOwnClasses:
    def test_a_module_and_data_that_know_nothing_of_the_library_are_trained(self, skipcl, tmp_path):
        own = ["--model", "own_project.Plain", "--model.width", 3, "--data", "own_project.Numbers", *QUIET]
        skipcl("fit", *own)
        (checkpoint,) = (tmp_path / "checkpoints").iterdir()
        skipcl("predict", *own, "--ckpt_path", checkpoint, "--output", "numbers.parquet")
        assert pl.read_parquet("numbers.parquet")["number"].to_list() == [0, 1, 2, 3]

    def test_many_parts_become_one_file_in_order(self, skipcl, monkeypatch):
        monkeypatch.setattr(predictions, "ROWS_IN_MEMORY", 1)
        own = ["--model", "own_project.Plain", "--model.width", 3, "--data", "own_project.Numbers", *QUIET]
        skipcl("predict", *own, "--data.count", 31, "--output", "numbers.csv")
        assert pl.read_csv("numbers.csv")["number"].to_list() == list(range(31))

    def test_a_prediction_that_breaks_off_leaves_what_was_there(self, skipcl, tmp_path):
        (tmp_path / "numbers.csv").write_text("old")
        own = ["--model", "own_project.Plain", "--model.width", 3, "--data", "own_project.Numbers", *QUIET]
        with pytest.raises(RuntimeError, match="broken off"):
            skipcl("predict", *own, "--model.fail", "true", "--output", "numbers.csv")
        assert (tmp_path / "numbers.csv").read_text() == "old"
        assert not list(tmp_path.glob(".numbers*"))

    def test_predictions_that_are_no_table_are_refused_unless_no_file_is_wanted(self, skipcl):
        own = ["--model", "own_project.Silent", "--model.width", 3, "--data", "own_project.Numbers", *QUIET]
        with pytest.raises(TypeError, match="`output` must be null where `predict_step` gives no polars"):
            skipcl("predict", *own)
        skipcl("predict", *own, "--output", "null")


def test_a_subclass_is_given_the_number_of_items(skipcl, small_store, tmp_path):
    skipcl("fit", "--model", "own_project.Small", "--model.width", 4, "--data.log", small_store, *QUIET)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    table = torch.load(checkpoint, weights_only=False)["state_dict"]["model.item_embedding.weight"]
    assert table.shape == (SessionDataModule(small_store).num_items + 1, 4)


def test_a_logger_of_ones_own_takes_the_place_of_csv_and_the_configuration_goes_to_the_runs_folder(
    skipcl, small_store, tmp_path
):
    own = ["--model", "own_project.Small", "--data.log", small_store, *QUIET]
    skipcl(
        "fit", *own, "--trainer.logger", "own_project.Notes", "--trainer.logger.text", "some",
        "--trainer.default_root_dir", "root",
    )  # fmt: skip
    assert not list(tmp_path.rglob("metrics.csv"))
    (config,) = tmp_path.rglob("config.yaml")
    assert config == tmp_path / "root/notes/first/config.yaml"
    assert "own_project.Notes" in config.read_text()
    skipcl("fit", *own, "--trainer.logger", "null", "--trainer.default_root_dir", "root")
    assert (tmp_path / "root/lightning_logs/version_0/metrics.csv").is_file()
