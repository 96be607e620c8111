import pytest
import yaml

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.callbacks import ChooseTransitionWeight, ListDiagnostics
from skipcl_lightning.cli.configs import configuration_names, read_configuration
from skipcl_lightning.cli.training import TrainingCLI

NAMES = configuration_names()
DATASETS = sorted({name.partition("/")[0] for name in NAMES})
BACKBONE_NAMES = sorted({name.partition("/")[2] for name in NAMES})
# Data sets and backbones are parts of their own: each of them once, and all pairs in the slow tests.
PAIRS = {
    f"{dataset}/{BACKBONE_NAMES[number % len(BACKBONE_NAMES)]}" for number, dataset in enumerate(DATASETS)
}
HERE = ["--trainer.accelerator", "cpu"]


def test_every_backbone_has_a_configuration_for_every_data_set():
    built = {
        yaml.safe_load(read_configuration(name))["model"]["init_args"]["backbone"]["class_path"]
        for name in NAMES
    }
    assert built == set(BACKBONES)
    logs = {"mssd", "lfm1k", "lfm2b", "yambda", "30music", "streaming_history", "ml-1m", "table"}
    assert logs | {"simulated"} == set(DATASETS)
    assert len(NAMES) == len(DATASETS) * len(BACKBONE_NAMES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in PAIRS)) for name in NAMES]
)
def test_a_configuration_is_complete(name, small_store, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TrainingCLI, "_run_subcommand", lambda *_: None)
    cli = TrainingCLI(["fit", "--config", name, "--data.log", str(small_store), *HERE])
    said = yaml.safe_load(read_configuration(name))
    assert type(cli.model.model.backbone).__name__ == said["model"]["init_args"]["backbone"]["class_path"]
    assert cli.model.num_items == cli.datamodule.num_items
    assert cli.datamodule.max_length == said["data"]["init_args"]["max_length"]
    longest = getattr(cli.model.model.backbone, "max_length", None)
    # A bidirectional backbone's mask token takes a position too.
    assert longest in (None, cli.datamodule.max_length + (not cli.model.model.causal))
    assert [callback.monitor for callback in cli.trainer.early_stopping_callbacks] == [
        cli.trainer.checkpoint_callback.monitor
    ]
    assert cli.trainer.checkpoint_callback.monitor.removeprefix("val/") in {
        str(key) for key in cli.model.val_metrics.keys(keep_base=True)
    } | {f"ndcg@{k}" for k in cli.model.hparams["top_k"]}
    assert cli.model.transition_weight > 0
    # The weight is chosen before the validation that the other callbacks see.
    assert isinstance(cli.trainer.callbacks[0], ChooseTransitionWeight)
    assert any(isinstance(callback, ListDiagnostics) for callback in cli.trainer.callbacks)


@pytest.mark.parametrize(("number", "backbone"), list(enumerate(BACKBONE_NAMES)))
def test_a_configuration_trains(number, backbone, skipcl, small_store, tmp_path):
    name = f"{DATASETS[number % len(DATASETS)]}/{backbone}"
    few = ["--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2, "--trainer.log_every_n_steps", 1]
    skipcl("fit", "--config", name, "--data.log", small_store, "--data.batch_size", 16, *few, *HERE)
    assert (tmp_path / "lightning_logs/version_0/checkpoints/best.ckpt").is_file()


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("simulated/sasrec", ["--trainer.max_steps", 5, "--trainer.limit_val_batches", 2]),
        ("table/gru4rec", ["--trainer.max_steps", 2, "--trainer.limit_val_batches", 0]),
        ("mssd/bert4rec", ["--trainer.max_epochs", 1, "--model.transition_weight", 0]),
        ("ml-1m/caser", ["--trainer.max_epochs", 1, "--trainer.val_check_interval", 2]),
    ],
)
def test_a_configuration_takes_any_flag(name, flags, skipcl, small_store, tmp_path):
    few = ["--data.batch_size", 16, "--trainer.log_every_n_steps", 1]
    skipcl("fit", "--config", name, "--data.log", small_store, *few, *flags, *HERE)
    run = tmp_path / "lightning_logs/version_0"
    module = SkipCLModule.load_from_checkpoint(run / "checkpoints/best.ckpt")
    counted = "--model.transition_weight" not in flags
    assert (module.model.transitions is not None) == counted
    columns = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    validated = 0 not in flags or not counted
    assert ("lists/last_item_first" in columns) == validated
    assert ("transition_weight" in columns) == (validated and counted)


def test_the_command_lists_all_and_prints_one_that_can_be_edited(skipcl, capsys, tmp_path, small_store):
    skipcl("configs")
    listed = capsys.readouterr().out
    assert all(name in listed for name in [*DATASETS, *BACKBONE_NAMES])
    skipcl("configs", "mssd/sasrec")
    printed = capsys.readouterr().out
    assert "skipcl prepare mssd" in printed
    (tmp_path / "my.yaml").write_text(printed.replace("embedding_size: 64", "embedding_size: 8"))
    skipcl("fit", "--config", "my.yaml", "--data.log", small_store, "--trainer.fast_dev_run", "true", *HERE)
    with pytest.raises(SystemExit, match=r"skipcl configs: `name` must be one of .*, got 'msd/sasrec'. Did"):
        skipcl("configs", "msd/sasrec")
