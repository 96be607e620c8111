import inspect
import os
import subprocess
import sys
import textwrap

import polars as pl
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from mssd_logs import write_mssd_logs

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import SkipInfoNCE

SMALL = [
    "--config", "simulated/sasrec", "--trainer.max_epochs", 1, "--trainer.accelerator", "cpu",
    "--data.log.num_sessions", 60, "--data.log.num_items", 40,
]  # fmt: skip
RUN = "lightning_logs/version_0"


WITHOUT_TRACKERS = """
import sys
from skipcl_lightning.cli import main
main()
import skipcl_lightning.evaluation
imported = [name for name in ("wandb", "tensorboard", "tensorboardX", "optuna") if name in sys.modules]
assert not imported, imported
"""
CALLBACKS = {
    "TrainingSignals": {},
    "RunFacts": {},
    "EmbeddingDiagnostics": {"num_items": 20},
    "RecommendationTable": {"num_sessions": 3, "top_k": 4},
    "RankPlot": {"top_k": 5},
    "CheckpointArtifact": {},
}


def in_a_process(folder, *arguments):
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TRACKERS, *map(str, arguments)]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(  # noqa: S603 - our own command
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )


@pytest.mark.slow
def test_a_configuration_trains_tests_and_predicts_with_a_backbone_of_the_users_own(
    tmp_path, small_store, skipcl, monkeypatch, capsys
):
    (tmp_path / "a_users_project.py").write_text(
        textwrap.dedent(
            """
            from torch import nn

            class Mine(nn.Module):
                def __init__(self, width: int):
                    super().__init__()
                    self.map = nn.Linear(width, width)

                def forward(self, x, valid_mask):
                    return self.map(x)
            """
        )
    )
    (tmp_path / "mine.yaml").write_text(
        textwrap.dedent(
            """
            model:
              init_args:
                backbone: {class_path: a_users_project.Mine, init_args: {width: 16}}
                skip_head: {class_path: SkipUnlikelihood, init_args: {weight: 0.5}}
                embedding_size: 16
                top_k: [3]
            trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false, log_every_n_steps: 1}
            """
        )
    )
    watched = [
        {"class_path": f"skipcl_lightning.callbacks.{name}", "init_args": settings}
        for name, settings in CALLBACKS.items()
    ]
    (tmp_path / "watched.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": watched}}))
    fit = in_a_process(
        tmp_path, "fit", "--config", "mine.yaml", "--config", "watched.yaml", "--data.log", small_store
    )
    assert fit.returncode == 0, fit.stderr
    assert "warn" not in fit.stderr.lower()
    (checkpoint,) = (tmp_path / RUN / "checkpoints").iterdir()
    losses = pl.read_csv(tmp_path / RUN / "metrics.csv")
    assert losses["train/skip_loss"].drop_nulls().len() == 1
    trained = ["--config", f"{RUN}/config.yaml", "--ckpt_path", checkpoint]
    monkeypatch.syspath_prepend(tmp_path)
    skipcl("test", *trained)
    assert "test/hit_rate@3" in capsys.readouterr().out
    (tmp_path / "run[1]").mkdir()
    skipcl("predict", *trained, "--output", "run[1]/next.csv")
    data = SessionDataModule(small_store)
    written = pl.read_csv(
        (tmp_path / "run[1]/next.csv").read_bytes(), schema_overrides={"session_id": data.session_ids.dtype}
    )
    assert set(written["session_id"]) == set(data.session_ids)
    assert set(written["item_id"]) <= set(data.vocabulary.ids)
    assert written["rank"].max() == 3


@pytest.fixture
def of_trained(trained_in_terminal):
    """The arguments of a model that the command line has trained."""
    run = trained_in_terminal[0] / RUN
    return ["--config", run / "config.yaml", "--ckpt_path", run / "checkpoints/best.ckpt"]


def test_a_ready_configuration_trains_without_validation_and_keeps_the_latest_checkpoint(skipcl, tmp_path):
    skipcl("fit", *SMALL, "--trainer.limit_val_batches", 0)
    checkpoint = torch.load(tmp_path / RUN / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["global_step"] > 0


def test_the_content_of_tracks_comes_from_a_file_and_then_from_the_checkpoint(skipcl, capsys):
    log = simulate_sessions(60, num_items=40).collect()
    log.select("item_id", mood="item_mood").unique("item_id").write_parquet("content.parquet")
    skipcl("fit", *SMALL, "--data.item_features", "content.parquet", "--model.id_dropout", 0.2)
    module = SkipCLModule.load_from_checkpoint(f"{RUN}/checkpoints/best.ckpt", weights_only=True)
    assert [one["name"] for one in module.item_features.describe()] == ["mood"]
    capsys.readouterr()
    results = []
    for arguments in ([], ["--data.item_features", "content.parquet"]):
        skipcl("test", *SMALL, "--ckpt_path", f"{RUN}/checkpoints/best.ckpt", *arguments)
        results.append(capsys.readouterr().out.partition("Testing")[0])  # the progress bar has a clock
    assert "test/hit_rate@10" in results[0]
    assert results[0] == results[1]


def test_a_checkpoint_of_the_command_line_is_whole(of_trained):
    checkpoint = torch.load(of_trained[-1], weights_only=True)
    settings = checkpoint["hyper_parameters"]
    assert settings["backbone"]["name"] == "SASRec"
    assert settings["skip_head"] == {"name": "SkipInfoNCE", "settings": SkipInfoNCE().settings}
    assert not [name for name in settings if name.startswith("_")]
    recommender = Recommender.from_checkpoint(of_trained[-1])
    item = recommender.encoder.vocabulary.ids[0]
    assert len(recommender.recommend([[item]], top_k=5)) == 5


def test_commands_take_the_weights_of_the_checkpoint(skipcl, of_trained, capsys):
    module = SkipCLModule.load_from_checkpoint(of_trained[-1], weights_only=True)
    with torch.no_grad():
        module.model.item_embedding.weight.zero_()
    module.transition_weight = 0.0
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint("zero.ckpt")
    figures = []
    for checkpoint in (of_trained[-1], "zero.ckpt"):
        capsys.readouterr()
        skipcl("validate", *of_trained[:2], "--ckpt_path", checkpoint)
        figures.append(next(line for line in capsys.readouterr().out.splitlines() if "val/mrr@20" in line))
    assert figures[0] != figures[1]
    # Scores that are all alike rank every target last.
    assert "0.0" in figures[1]


def test_recommendations_are_those_of_the_recommender(skipcl, of_trained, tmp_path):
    skipcl("predict", *of_trained)
    written = pl.read_parquet("recommendations.parquet")
    assert written.columns == ["session_id", "rank", "item_id", "score"]
    data = SessionDataModule(simulate_sessions(60, num_items=40, max_length=20), max_length=20)
    batch = next(iter(data.predict_dataloader()))[3:4]
    expected = Recommender.from_checkpoint(of_trained[-1]).recommend(
        [data.vocabulary.decode(batch.items[batch.valid_mask])],
        [batch.feedback[batch.valid_mask].tolist()],
        top_k=20,
    )
    (session,) = data.session_ids.gather(batch.session_index.numpy())
    assert written.filter(session_id=session)["item_id"].to_list() == expected["item_id"].to_list()
    assert not list(tmp_path.glob(".*.parts"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "next.json"], "`output` must end with .csv or .parquet, got next.json"),
        (["--output", "nowhere/next.csv"], "`output` must be in a folder that exists"),
    ],
)
def test_where_nothing_can_be_written_is_told_before_the_work(skipcl, arguments, message):
    with pytest.raises(SystemExit, match=message):
        skipcl("predict", *SMALL, *arguments)


def test_a_reader_and_a_split_come_from_the_configuration(skipcl, tmp_path):
    write_mssd_logs(tmp_path / "logs", num_sessions=60, num_items=40)
    (tmp_path / "mssd.yaml").write_text(
        textwrap.dedent(
            """
            model: {init_args: {backbone: {class_path: NextItNet}}}
            data:
              init_args:
                log:
                  class_path: skipcl_lightning.data.read_mssd
                  init_args: {paths: logs, label: skip_1}
                split:
                  class_path: skipcl_lightning.data.SplitBySession
                  init_args: {test_share: 0.3}
            """
        )
    )
    skipcl("fit", "--config", "mssd.yaml", "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu")
    with pytest.raises(SystemExit, match="`label` must be one of"):
        skipcl("fit", "--config", "mssd.yaml", "--data.log.label", "skip_9")


@pytest.mark.parametrize(
    "wrong",
    [
        "model: {init_args: {embeding: 3}}",
        "model: {init_args: {backbone: {class_path: SASRec, init_args: {embeding: 3}}}}",
        "model: {init_args: {skip_head: {class_path: SkipInfoNCE, init_args: {embeding: 3}}}}",
        "model: {init_args: {skip_head: {name: SkipInfoNCE, embeding: {}}}}",
        "data: {init_args: {embeding: 3}}",
        "data: {init_args: {log: {class_path: skipcl_lightning.data.read_mssd, init_args: {embeding: 3}}}}",
        "trainer: {embeding: 3}",
        "embeding: 3",
    ],
)
def test_a_wrong_key_is_an_error_that_names_it(skipcl, tmp_path, capsys, wrong):
    (tmp_path / "wrong.yaml").write_text(wrong)
    with pytest.raises(SystemExit) as raised:
        skipcl("fit", "--config", "wrong.yaml", "--print_config")
    assert raised.value.code == 2
    told = capsys.readouterr().err
    assert "embeding" in told
    assert len(told.splitlines()) < 30


def test_the_last_line_of_an_error_says_what_is_wrong(skipcl, capsys):
    for setting, message in [
        ("--model.skip_head.weight=x", "Expected a <class 'float'>. Got value: x"),
        ("--trainer.max_epochs=x", "Expected a <class 'int'>. Got value: x"),
    ]:
        with pytest.raises(SystemExit):
            skipcl("fit", *SMALL, setting)
        assert capsys.readouterr().err.splitlines()[-1] == f"The cause: {message}"


def test_an_unknown_part_and_a_wrong_value_are_named(skipcl, capsys):
    for arguments, message in [
        (["--model.backbone", "SASRek"], "SASRek"),
        (["--model.num_items", "many"], "many"),
    ]:
        with pytest.raises(SystemExit):
            skipcl("fit", *SMALL, *arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="skipcl fit: `learning_rate` must be in"):
        skipcl("fit", *SMALL, "--model.learning_rate=-1")
    with pytest.raises(SystemExit) as raised:
        skipcl("fit", *SMALL, "--config", "simulated/gpt2", "--model.backbone.max_length", 99)
    assert raised.value.code == (
        "skipcl fit: `max_length` must be at most 20, got 99. The model has no more."
    )
    with pytest.raises(SystemExit, match="skipcl fit: `folder` must be a session store, got 'nowhere'"):
        skipcl("fit", "--model.backbone", "SASRec", "--data.log", "nowhere")
    with pytest.raises(SystemExit, match=r"`num_items` must be left alone .* got 5 for 40"):
        skipcl("fit", *SMALL, "--model.num_items", 5)


def test_a_printed_configuration_is_complete_commented_and_can_be_used(skipcl, tmp_path, capsys):
    with pytest.raises(SystemExit) as raised:
        skipcl("fit", *SMALL, "--print_config")
    assert raised.value.code == 0
    printed = capsys.readouterr().out
    settings = yaml.safe_load(printed)
    linked = {"num_items", "context_sizes", "item_features"}  # from the data
    for kind, found in [
        (Trainer, settings["trainer"]),
        (SkipCLModule, settings["model"]["init_args"]),
        (SASRec, settings["model"]["init_args"]["backbone"]["init_args"]),
        (SkipInfoNCE, settings["model"]["init_args"]["skip_head"]["init_args"]),
        (SessionDataModule, settings["data"]["init_args"]),
    ]:
        assert set(inspect.signature(kind).parameters) - linked <= set(found)
    lines = printed.splitlines()
    for name in ("backbone", "target_rule", "temperature", "mining_depth", "max_epochs"):
        (place,) = [i for i, line in enumerate(lines) if line.strip().startswith(f"{name}:")]
        assert lines[place - 1].strip().startswith("# ")
    assert "BERT4Rec, Caser" in printed
    assert "torch.nn.Bilinear" not in printed
    (tmp_path / "whole.yaml").write_text(printed)
    skipcl("fit", "--config", "whole.yaml", "--trainer.fast_dev_run", "true")


def test_parts_are_given_by_name_and_settings_too_and_null_takes_one_away(skipcl):
    skipcl(
        "fit", *SMALL, "--model.skip_head", "null",
        "--model.backbone", '{"name": "GRU4Rec", "settings": {"embedding_size": 64}}',
    )  # fmt: skip
    settings = torch.load(f"{RUN}/checkpoints/best.ckpt", weights_only=True)["hyper_parameters"]
    assert settings["backbone"]["name"] == "GRU4Rec"
    assert settings["skip_head"] is None


def test_heads_within_a_head_come_from_the_configuration(skipcl, capsys):
    heads = '[{"class_path": "SkipInfoNCE"}, {"class_path": "SkipMargin", "init_args": {"weight": 0.2}}]'
    skipcl(
        "fit", *SMALL, "--model.skip_head", "CombinedHead", "--model.skip_head.heads", heads
    )  # fmt: skip
    settings = torch.load(f"{RUN}/checkpoints/best.ckpt", weights_only=True)["hyper_parameters"]
    assert [head["name"] for head in settings["skip_head"]["settings"]["heads"]] == [
        "SkipInfoNCE",
        "SkipMargin",
    ]


def test_a_file_of_the_users_in_the_current_folder_stays_as_it_is(skipcl, tmp_path):
    (tmp_path / "config.yaml").write_text("seed_everything: 3\n")
    skipcl("fit", *SMALL, "--config", "config.yaml", "--trainer.logger", "false")
    assert (tmp_path / "config.yaml").read_text() == "seed_everything: 3\n"


def test_help_lists_all_commands_without_the_time_that_training_takes_to_import(skipcl, monkeypatch, capsys):
    for module in ("lightning.pytorch.cli", "skipcl_lightning.cli.training"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as raised:
        skipcl("--help")
    assert raised.value.code == 0
    assert "lightning.pytorch.cli" not in sys.modules
    printed = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "configs", "prepare", "study", "demo"):
        assert f"\n    {command} " in printed
