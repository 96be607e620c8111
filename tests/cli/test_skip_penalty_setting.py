"""The skip penalty of `skipcl validate`, `test` and `predict`, which can be set after training."""

import sys

import polars as pl
import pytest
import torch
from small_models import quiet_trainer

from skipcl_lightning import SkipCLModule
from skipcl_lightning.cli import main
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.evaluation import evaluate

SMALL = [
    "--config", "simulated/sasrec", "--trainer.max_epochs", 3, "--trainer.accelerator", "cpu",
    "--trainer.enable_progress_bar", "false",
    "--data.log.num_sessions", 200, "--data.log.num_items", 40, "--data.batch_size", 32,
]  # fmt: skip
RUN = "lightning_logs/version_0"
PENALTY = 5.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The arguments of a model with the head and transitions, trained without a penalty."""
    folder = tmp_path_factory.mktemp("trained")
    settings = ["--model.skip_head", "SkipPrediction", "--model.transition_weight", 2.0]
    arguments = ["skipcl", "fit", *SMALL, *settings]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", list(map(str, arguments)))
        main()
    return ["--config", folder / RUN / "config.yaml", "--ckpt_path", folder / RUN / "checkpoints/best.ckpt"]


def shown(capsys, metric):
    """The value of a metric in the table that a command printed."""
    lines = [line for line in capsys.readouterr().out.splitlines() if f" {metric} " in line]
    return float(lines[-1].split()[-2])


def test_commands_rank_at_the_penalty_that_is_given(skipcl, trained, capsys):
    module = SkipCLModule.load_from_checkpoint(trained[-1], weights_only=True)
    data = SessionDataModule(simulate_sessions(200, num_items=40, max_length=20), max_length=20)
    for command, split, prefix in (("validate", "validation", "val"), ("test", "test", "test")):
        found = {}
        for penalty in (0.0, PENALTY):
            capsys.readouterr()
            skipcl(command, *trained, "--model.skip_penalty", penalty)
            found[penalty] = shown(capsys, f"{prefix}/skip_hit_rate@10")
            report = evaluate(module, data, split=split, num_resamples=0, skip_penalty=penalty)
            assert found[penalty] == pytest.approx(report["skip_hit_rate@10"], abs=1e-6)
        assert found[PENALTY] < found[0.0]
    tables = []
    for penalty in (0.0, PENALTY):
        skipcl("predict", *trained, "--model.skip_penalty", penalty)
        tables.append(pl.read_parquet("recommendations.parquet").filter(rank=1))
    plain, penalised = (table["skip_probability"].mean() for table in tables)
    assert penalised < plain


@pytest.mark.slow
def test_commands_rank_at_the_transition_weight_that_is_given(skipcl, trained, capsys):
    module = SkipCLModule.load_from_checkpoint(trained[-1], weights_only=True)
    data = SessionDataModule(simulate_sessions(200, num_items=40, max_length=20), max_length=20)
    found, chosen = {}, module.transition_weight
    for weight in (None, 0.0, 50.0):
        capsys.readouterr()
        skipcl("test", *trained, *([] if weight is None else ["--model.transition_weight", weight]))
        found[weight] = shown(capsys, "test/ndcg@10")
        module.transition_weight = chosen if weight is None else weight
        report = evaluate(module, data, num_resamples=0)
        assert found[weight] == pytest.approx(report["ndcg@10"], abs=1e-6)
    assert len(set(found.values())) == 3


def test_without_a_penalty_the_one_of_the_checkpoint_applies(skipcl, trained, capsys):
    module = SkipCLModule.load_from_checkpoint(trained[-1], weights_only=True)
    module.skip_penalty = PENALTY
    trainer = quiet_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint("chosen.ckpt")
    found = {}
    for name, arguments in (
        ("own", []),
        ("none", ["--model.skip_penalty=0"]),
        ("same", [f"--model.skip_penalty={PENALTY}"]),
    ):
        capsys.readouterr()
        skipcl("test", *trained[:2], "--ckpt_path", "chosen.ckpt", *arguments)
        found[name] = shown(capsys, "test/skip_hit_rate@10")
    assert found["own"] == found["same"] < found["none"]


@pytest.mark.parametrize(
    ("command", "head", "penalty", "message"),
    [
        ("validate", "SkipInfoNCE", 0.25, r"must be or contain a `SkipPrediction`.*got SkipInfoNCE"),
        ("test", "null", 0.25, r"must be or contain a `SkipPrediction`.*got None"),
        ("predict", "SkipPrediction", -1, r"`skip_penalty` must be in \[0, 1e\+06\], got -1"),
        ("test", "SkipPrediction", ".nan", r"`skip_penalty` must be .*got nan"),
    ],
)
def test_a_penalty_that_cannot_be_is_refused_before_the_data_is_read(
    skipcl, tmp_path, command, head, penalty, message
):
    torch.save({"state_dict": {}}, tmp_path / "any.ckpt")
    known = ["--config", "simulated/sasrec", "--ckpt_path", "any.ckpt", "--data.log", "nowhere"]
    with pytest.raises(SystemExit, match=f"skipcl {command}: .*{message}"):
        skipcl(command, *known, "--model.skip_head", head, f"--model.skip_penalty={penalty}")
