"""What a user meets on the command line: help, names, checkpoints, summaries, recommendations."""

import re
import signal
import subprocess
import sys

import polars as pl
import pytest
import torch

from skipcl_lightning import Recommender
from skipcl_lightning.cli import suggest
from skipcl_lightning.cli.configs import configuration_names, expand_arguments, read_configuration
from skipcl_lightning.cli.predictions import RecommendationWriter
from skipcl_lightning.cli.recommend import parse_session
from skipcl_lightning.cli.training import _cut_lines, _root_cause, _suggest_part
from skipcl_lightning.data import ItemVocabulary

BACKBONES = sorted({name.partition("/")[2] for name in configuration_names()})
SMALL = ["--trainer.accelerator", "cpu", "--data.log.num_sessions", 60, "--data.log.num_items", 40]
SASREC = ["--config", "simulated/sasrec", *SMALL]
RUN = "lightning_logs/version_0"


def run(folder, *arguments):
    command = [sys.executable, "-W", "error", "-c", "from skipcl_lightning.cli import main; main()"]
    return subprocess.run(  # noqa: S603 - our own command
        [*command, *map(str, arguments)], capture_output=True, text=True, cwd=folder, check=False
    )


@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.max_steps", 1, "--trainer.limit_val_batches", 1],
        ["--trainer.max_epochs", 1, "--trainer.limit_val_batches", 0],
    ],
)
def test_a_ready_configuration_works_with_any_trainer_flag(skipcl, tmp_path, flags):
    # More than a batch an epoch: the run ends before the first validation.
    skipcl("fit", *SASREC, "--data.batch_size", 16, *flags)
    for name in ("best", "last"):
        assert (tmp_path / RUN / f"checkpoints/{name}.ckpt").is_file()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_ready_configuration_can_stop_before_its_first_validation(skipcl, tmp_path, backbone):
    flags = ["--data.batch_size", 16, "--trainer.max_steps", 2, "--trainer.limit_val_batches", 1]
    # More items than a sampled softmax has negatives.
    skipcl("fit", "--config", f"simulated/{backbone}", *SMALL, "--data.log.num_items", 500, *flags)
    assert (tmp_path / RUN / "checkpoints/best.ckpt").is_file()


@pytest.mark.parametrize("logger", ["TensorBoardLogger", "CSVLogger"])
def test_a_logger_is_chosen_by_its_name(skipcl, tmp_path, logger):
    skipcl("fit", *SASREC, "--trainer.max_steps", 1, "--trainer.logger", logger)
    assert list(tmp_path.glob("lightning_logs/version_0/checkpoints/last.ckpt"))


@pytest.mark.slow
def test_weights_and_biases_is_chosen_by_its_name_too(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    # In a process of its own, because W&B starts one and keeps state.
    done = run(tmp_path, "fit", *SASREC, "--trainer.max_steps", 1, "--trainer.logger", "WandbLogger")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("last.ckpt"))
    assert list(tmp_path.glob("**/offline-run-*"))


def test_a_run_ends_with_its_result_and_what_to_do_next(trained_in_terminal, skipcl, monkeypatch, capsys):
    folder, lines = trained_in_terminal
    said = "\n".join(lines)
    monkeypatch.chdir(folder)
    assert re.search(r"Trained 1 epoch, \d+ steps: max_epochs reached\.", said)
    assert re.search(rf"Best checkpoint \(val/ndcg@20 0\.\d+\): {RUN}/checkpoints/best.ckpt", said)
    commands = [line.split() for line in lines if line.startswith("  skipcl ")]
    assert [command[1] for command in commands] == ["test", "predict"]
    for command in commands:
        skipcl(*command[1:])
    assert "Recommendations: recommendations.parquet" in capsys.readouterr().out
    assert (folder / "recommendations.parquet").is_file()


def test_a_run_that_stopped_early_says_so(skipcl, capsys):
    skipcl("fit", *SASREC, "--trainer.max_epochs", 9, "--model.learning_rate", 1e-9)
    assert "val/ndcg@20 did not improve in 3 epochs (early stopping)" in capsys.readouterr().out


def test_last_resumes_the_newest_run(skipcl, tmp_path, capsys):
    skipcl("fit", *SASREC, "--trainer.max_epochs", 1)
    skipcl("fit", *SASREC, "--trainer.max_epochs", 2, "--ckpt_path", "last")
    shown = capsys.readouterr().out
    assert "Trained 2 epochs" in shown
    # The progress bar of an output that is no terminal.
    assert re.search(r"\bHR@10: 0\.\d{3}", shown)
    assert re.search(r"\bSkipHR@10: 0\.\d{3}", shown)
    before, after = (
        torch.load(tmp_path / f"lightning_logs/version_{n}/checkpoints/last.ckpt", weights_only=True)
        for n in (0, 1)
    )
    assert after["global_step"] == 2 * before["global_step"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict"], "`--ckpt_path` must be the checkpoint of a trained model for predict, got none"),
        (["test"], "`--ckpt_path` must be the checkpoint of a trained model for test, got none"),
        (
            ["validate", "--ckpt_path", "none.ckpt"],
            "`--ckpt_path` must be a file that exists, got 'none.ckpt'",
        ),
        (["test", "--ckpt_path", "best"], "there is no checkpoints/best.ckpt below"),
        (["fit", "--model.learning_rate", "-1"], "`learning_rate` must be in"),
        (["fit", "--model.top_k", "[0]"], "`top_k` must be at least 1, got 0"),
    ],
)
def test_what_cannot_work_is_refused_before_the_data_is_read(skipcl, monkeypatch, arguments, message):
    def read(*_, **__):
        raise AssertionError("the data was read")

    # The parser reads the signatures of the outer functions.
    monkeypatch.setattr("skipcl_lightning.data.simulate.listen", read)
    with pytest.raises(SystemExit, match=re.escape(message)):
        skipcl(arguments[0], *SASREC, *arguments[1:])


def test_mistyped_names_are_met_with_the_nearest(skipcl, capsys):
    for arguments, told in [
        (["demmo"], "no command 'demmo'. Did you mean demo? `skipcl --help` lists all."),
        (
            ["fit", "--config", "simulated/sasrek"],
            "Did you mean simulated/sasrec? `skipcl configs` lists them.",
        ),
        (["configs", "mssd/gru"], "Did you mean mssd/gru4rec? `skipcl configs` lists them."),
    ]:
        with pytest.raises(SystemExit, match=re.escape(told)):
            skipcl(*arguments)
    with pytest.raises(SystemExit):
        skipcl("fit", *SASREC, "--model.backbone", "SASRek")
    assert capsys.readouterr().err.rstrip().endswith("Did you mean SASRec?")


def test_help_says_which_sessions_are_left_out_and_where_to_take_them(skipcl, capsys):
    with pytest.raises(SystemExit):
        skipcl("--help")
    predict, recommend = re.findall(r"^ +(?:predict|recommend) .*$", capsys.readouterr().out, re.MULTILINE)
    assert "all sessions but too short ones (min_session_length)" in predict
    assert "any session of a file (--file)" in recommend


def test_help_and_the_list_of_configurations_import_nothing_heavy(tmp_path):
    code = """
import sys
from skipcl_lightning.cli import main
try:
    main()
except SystemExit:
    pass
assert not {"torch", "polars", "lightning", "jsonargparse"} & set(sys.modules), sys.modules.keys()
"""
    for arguments in (["--help"], ["configs"], ["--version"], ["configs", "mssd/sasrec"]):
        done = subprocess.run(  # noqa: S603 - our own code
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "skipcl 0." in run(tmp_path, "--version").stdout


def test_an_interrupted_run_says_how_to_resume(skipcl, tmp_path, monkeypatch, capsys, request):
    (tmp_path / "interrupting.py").write_text(
        """
import signal
from lightning.pytorch import Callback
class Interrupt(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            signal.raise_signal(signal.SIGINT)
""",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    # A shell lets the jobs in its background ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(SystemExit):
        skipcl("fit", *SASREC, "--trainer.max_epochs", 9, "--trainer.callbacks+=interrupting.Interrupt")
    resume = f"skipcl fit --config {RUN}/config.yaml --ckpt_path {RUN}/checkpoints/last.ckpt"
    assert resume in capsys.readouterr().out
    assert torch.load(tmp_path / RUN / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 1


def test_preparation_is_interrupted_in_one_line(skipcl, tmp_path, monkeypatch):
    (tmp_path / "log.csv").write_text("a,b,c\nx,y,1\n", encoding="utf-8")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("skipcl_lightning.cli.prepare.Progress", interrupt)
    with pytest.raises(SystemExit, match=r"^skipcl prepare: interrupted\. Nothing incomplete was left\.$"):
        skipcl(
            "prepare",
            "table",
            "log.csv",
            "--folder",
            "store",
            "--item",
            "a",
            "--session",
            "b",
            "--position",
            "c",
        )


def test_recommendations_for_sessions_of_the_command_line_and_of_a_file(trained_in_terminal, skipcl, capsys):
    folder, _ = trained_in_terminal
    checkpoint = folder / RUN / "checkpoints/best.ckpt"
    recommender = Recommender.from_checkpoint(checkpoint)
    first, second, third = recommender.encoder.vocabulary.ids[:3]
    expected = recommender.recommend([[first, second], [third]], [[1.0, -0.5], [0.0]], top_k=3)
    skipcl("recommend", checkpoint, "--session", f"{first}:1,{second}:-0.5", "--top_k", 3)
    assert re.findall(r"track-\d+", capsys.readouterr().out) == expected["item_id"].to_list()[:3]
    pl.DataFrame(
        {"session_id": ["0", "0", "1"], "item_id": [first, second, third], "feedback": [1.0, -0.5, None]}
    ).write_csv("sessions.csv")
    skipcl("recommend", checkpoint, "--file", "sessions.csv", "--top_k", 3, "--output", "out.parquet")
    written = pl.read_parquet("out.parquet")
    assert written["item_id"].to_list() == expected["item_id"].to_list()
    assert written["session_id"].to_list() == ["0"] * 3 + ["1"] * 3


def test_a_checkpoint_is_exported(trained_in_terminal, skipcl, capsys, monkeypatch):
    folder, _ = trained_in_terminal
    checkpoint = folder / RUN / "checkpoints/best.ckpt"
    skipcl("export", checkpoint, "model", "--onnx", "false", "--pt2", "false")
    printed = capsys.readouterr().out
    assert "items.parquet: " in printed
    assert "know no transitions" in " ".join(printed.split())  # the ready configurations have some
    sessions = [Recommender.from_checkpoint(checkpoint).encoder.vocabulary.ids[:3]]
    again, expected = Recommender.from_export("model"), Recommender.from_checkpoint(checkpoint)
    assert again.recommend(sessions).equals(expected.recommend(sessions))
    with pytest.raises(SystemExit, match="skipcl export: `folder` must be new"):
        skipcl("export", checkpoint, "model")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit, match="skipcl export: ONNX needs the package onnxruntime"):
        skipcl("export", checkpoint, "other")


def test_wrong_sessions_are_named(skipcl, trained_in_terminal):
    checkpoint = trained_in_terminal[0] / RUN / "checkpoints/best.ckpt"
    for arguments, message in [
        (["--session", "nobody"], "got 'nobody' in session 0"),
        ([], "`session` or `file` must be given, got both or none"),
        (["--session", ","], "`session` must hold item ids, got ','"),
        (["--session", "a", "--output", "a.txt"], "`output` must end with .csv or .parquet, got a.txt"),
        (
            ["--session", "a", "--output", "no/a.csv"],
            "`output` must be in a folder that exists",
        ),
        (["--file", "a.txt"], "`file` must end with .csv or .parquet, got a.txt"),
    ]:
        with pytest.raises(SystemExit, match=re.escape(message)):
            skipcl("recommend", checkpoint, *arguments)


def test_a_session_is_read_from_text():
    assert parse_session("a:1,b:-1,spotify:track:c") == (["a", "b", "spotify:track:c"], [1.0, -1.0, 0.0])


def test_a_number_at_the_end_of_an_id_is_no_feedback():
    known = ItemVocabulary(["spotify:track:1", "a"])
    for text, item, feedback in (
        ("spotify:track:1", "spotify:track:1", 0.0),
        ("spotify:track:1:-0.5", "spotify:track:1", -0.5),
        ("a:1", "a", 1.0),
        ("deezer:3135556", "deezer:3135556", 0.0),
        ("a:nan", "a:nan", 0.0),
        (":1", ":1", 0.0),
    ):
        assert parse_session(text, known) == ([item], [feedback])
    assert parse_session("7:1", ItemVocabulary([7])) == (["7"], [1.0])


def test_names_of_configurations_become_yaml_and_printed_ones_have_comments():
    assert list(expand_arguments(["fit", "--print_config"])) == ["fit", "--print_config=comments"]
    assert list(expand_arguments(["fit", "--config", "mssd/sasrec"]))[2].startswith("# ")
    assert "class_path: SASRec" in read_configuration("mssd/sasrec")
    with pytest.raises(ValueError, match="`name` must be one of the ready configurations, got 'mssd'"):
        read_configuration("mssd")


def test_messages_are_short_and_suggest_the_closest_name():
    assert suggest("demmo", ["demo", "study"]) == " Did you mean demo?"
    assert _suggest_part("Expected a dot import path string: SASRek") == " Did you mean SASRec?"
    assert len(_cut_lines("x" * 1000)) == 400
    error = ValueError("`x` must be 1")
    assert _root_cause(error) is error


def test_a_writer_knows_its_file():
    assert RecommendationWriter("recommendations.parquet").path.name == "recommendations.parquet"
