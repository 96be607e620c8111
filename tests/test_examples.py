import functools
import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import torch

from skipcl_lightning.evaluation.skip_trade_off import PENALTIES
from skipcl_lightning.functional import skip_info_nce

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SHARED = Path(os.environ.get("SKIPCL_DATA", ROOT.parent / "shared" / "data"))


def run_example(name, *arguments, folder):
    run = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "WANDB_MODE": "offline", "COLUMNS": "120"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    return run.stdout


def assert_trained(output, folder):
    assert "test/hit_rate@10" in output
    assert output.count("│ 10   ┆ ") == 1
    assert list(folder.glob("checkpoints/*.ckpt"))
    assert list(folder.glob("wandb/offline-run-*/run-*.wandb"))


@pytest.fixture
def examples(monkeypatch):
    """Imports an example by its name, as the scripts import each other."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def run_here(name, *arguments, monkeypatch, folder):
    """Runs a script in this process, which has imported already what takes longest."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.chdir(folder)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def train_here(name, *arguments, monkeypatch, folder):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("COLUMNS", "120")
    run_here(name, "--smoke", "true", "--output", "out", *arguments, monkeypatch=monkeypatch, folder=folder)
    # W&B's run and service end with a script's process; here the next script would go on in this folder.
    sys.modules["wandb"].finish()
    sys.modules["wandb"].teardown()


def test_training_on_a_streaming_sessions_log_runs_end_to_end(tmp_path, monkeypatch, capsys):
    train_here("train_mssd.py", monkeypatch=monkeypatch, folder=tmp_path)
    assert_trained(capsys.readouterr().out, tmp_path / "out")


def test_training_on_a_streaming_history_runs_end_to_end(tmp_path, monkeypatch, capsys):
    rule = ("--skip_rule", "fwdbtn")
    train_here("train_streaming_history.py", *rule, monkeypatch=monkeypatch, folder=tmp_path)
    output = capsys.readouterr().out
    assert_trained(output, tmp_path / "out")
    assert "spotify:track:" in output


@pytest.mark.real_data
@pytest.mark.skipif(
    not SHARED.is_dir(), reason="no listening logs: SKIPCL_DATA is not set and ../shared/data absent"
)
@pytest.mark.parametrize(
    ("script", "source"), [("train_mssd.py", "mssd"), ("train_streaming_history.py", "streaming_history")]
)
@pytest.mark.slow
def test_training_on_real_logs_runs_end_to_end(script, source, tmp_path):
    output = run_example(script, SHARED / source, "--epochs", 1, "--output", "out", folder=tmp_path)
    assert_trained(output, tmp_path / "out")


def test_a_backbone_of_ones_own_trains_and_recommends(tmp_path, monkeypatch, capsys):
    run_here("custom_backbone.py", "--smoke", "true", monkeypatch=monkeypatch, folder=tmp_path)
    output = capsys.readouterr().out
    assert "test/hit_rate@10" in output
    assert "track-" in output


def test_a_skip_penalty_is_chosen_on_the_validation_set(tmp_path, monkeypatch, capsys, small_store):
    for arguments in (["--plot", "front.png"], ["--store", str(small_store)]):
        run_here("skip_dial.py", "--smoke", "true", *arguments, monkeypatch=monkeypatch, folder=tmp_path)
        output = capsys.readouterr().out
        chosen = float(re.search(r"Test at a skip penalty of (\S+):", output)[1])
        assert chosen in PENALTIES
        assert "hit_rate_high" in output
        assert "skip_probability" in output
        assert output.count("│ 0          ┆ ") == 5
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_is_trained_on_night_by_night(tmp_path, monkeypatch, capsys):
    run_here("nightly.py", "--smoke", "true", "--plot", "week.png", monkeypatch=monkeypatch, folder=tmp_path)
    rows = re.findall(r"│ 3 +┆ ([a-z ]+?) +┆ (\d+)", capsys.readouterr().out)
    known = {update: int(tracks) for update, tracks in rows}
    assert known["train on"] == known["from scratch"] > known["no update"]
    assert (tmp_path / "week.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_alone_serve_a_foreign_project(tmp_path, monkeypatch, capsys, examples):
    run_here("metrics_only.py", "--smoke", "true", monkeypatch=monkeypatch, folder=tmp_path)
    assert "test/skip_rank_percentile" in capsys.readouterr().out
    tested = examples("metrics_only").use_metrics_only(pairs=3000, items=30, epochs=5, accelerator="cpu")
    # What is listened to comes from three tracks, what is skipped from anywhere.
    assert tested["test/hit_rate@10"] > 0.9
    assert abs(tested["test/skip_rank_percentile"] - 0.5) < 0.1


@pytest.mark.parametrize("model", ["plain", "rectools", "replay", "hugging_face"])
def test_three_lines_give_a_foreign_module_the_skip_head(model, tmp_path, monkeypatch, capsys):
    arguments = ["--model", model, "--smoke", "true"]
    run_here("custom_module.py", *arguments, monkeypatch=monkeypatch, folder=tmp_path)
    assert "test/skip_hit_rate@10" in capsys.readouterr().out


def foreign_module(examples, model, weight=0.5):
    torch.manual_seed(0)
    custom, log = examples("custom_module"), examples("helpers.smoke_data").simulate()
    kind, make_model = custom.MODELS[model]
    batch = custom.pad_sessions(log.filter(pl.col("position") < 17), kind.padding)
    module = kind(make_model(int(batch[0].max()), 8), weight=weight, learning_rate=0.01).eval()
    return module, batch


@pytest.mark.parametrize("model", ["plain", "rectools", "replay", "hugging_face"])
def test_the_skip_loss_of_a_foreign_module_is_that_of_its_right_padded_sessions(model, examples):
    module, (items, feedback) = foreign_module(examples, model)
    padding = {"plain": "right", "rectools": "left", "replay": "left", "hugging_face": "right"}[model]
    assert (items == 0).any(dim=1).all()
    assert (items[:, -1 if padding == "right" else 0] == 0).all()
    query, table = module.encode(items)
    assert (table[0] == 0).all()
    if padding == "left":
        shift = (items == 0).sum(dim=1, keepdim=True)
        place = (torch.arange(items.shape[1]) + shift) % items.shape[1]
        right_items, right_feedback = items.gather(1, place), feedback.gather(1, place)
        query = query.gather(1, place[..., None].expand_as(query))
    else:
        right_items, right_feedback = items, feedback
    expected = skip_info_nce(
        query, table[right_items], (right_items, right_feedback), negatives="session", temperature=0.1
    )
    assert expected > 0
    torch.testing.assert_close(module.losses(items, feedback)[1], expected)


@pytest.mark.parametrize("model", ["plain", "rectools", "replay", "hugging_face"])
def test_without_weight_a_foreign_module_has_its_own_loss_and_with_it_all_learns(model, examples):
    module, batch = foreign_module(examples, model, weight=0.0)
    own, skip_loss = module.losses(*batch)
    module.log_dict = lambda *arguments, **settings: None
    assert module.training_step(batch, 0) == own
    skip_loss.backward()
    # The decoder is given embeddings, and has no use for its own table of tokens.
    learned = {name: p for name, p in module.named_parameters() if p.dim() > 1 and ".wte." not in name}
    assert all(p.grad is not None and p.grad.any() for p in learned.values())


def test_a_missing_extra_of_a_foreign_model_is_named(monkeypatch, examples):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "\.\[hf\]"'):
        examples("helpers.foreign_models").make_decoder(8)


@pytest.mark.slow
def test_figures_are_reproduced_beside_the_published_ones(tmp_path, examples):
    path = examples("helpers.smoke_data").write_interactions(tmp_path, "ml-1m")
    arguments = ["--models", "[SASRec,BERT4Rec]", "--seeds", 2, "--epochs", 1, "--jobs", 2]
    output = run_example("reproduce.py", "ml-1m", path, *arguments, folder=tmp_path)
    rows = len(path.read_text(encoding="utf-8").splitlines())
    assert f"Kept {rows} rows of 60 sessions and 30 items" in output
    for row in ("Popularity", "Markov", "SASRec", "BERT4Rec"):
        assert f"│ {row} " in output
    assert "0.3152" in output
    assert "0.1537" in output
    assert "popularity < Markov < neural" in output
    assert "SASRec, seed 1: test hit_rate@10 0." in output
    assert "(run 4 of 4)" in output
    assert re.search(r"^BERT4Rec, seed 0, epoch 1: validation ndcg@10 0\.\d{4}$", output, re.MULTILINE)


@pytest.mark.parametrize("dataset", ["ml-100k", "ml-1m", "beauty"])
def test_public_data_sets_are_read_from_their_usual_files(dataset, tmp_path, examples):
    path = examples("helpers.smoke_data").write_interactions(tmp_path, dataset)
    data = examples("reproduce").make_data(dataset, path, batch_size=8)
    log = examples("helpers.smoke_data").simulate()
    assert (len(data.session_ids), data.num_items) == (60, 30)
    assert data.drop_report.rows_kept == len(log)
    assert "0.0 % skipped" in str(data.drop_report)


@pytest.mark.slow
def test_the_smoke_mode_of_a_reproduction_prints_a_validation_curve(tmp_path):
    output = run_example("reproduce.py", "ml-1m", "--smoke", "true", folder=tmp_path)
    curve = output.index("SASRec, seed 0, epoch 1: validation ndcg@10 0.")
    assert curve < output.index("SASRec, seed 0: test hit_rate@10")


def test_a_curve_has_the_first_epoch_and_each_few(examples, capsys):
    curve = examples("reproduce").ValidationCurve("GRU4Rec, seed 0", every=2)
    for epoch in range(5):
        metrics = {"val/ndcg@10": torch.tensor(epoch / 8)}
        curve.on_validation_end(SimpleNamespace(current_epoch=epoch, callback_metrics=metrics), None)
    assert capsys.readouterr().out.splitlines() == [
        "GRU4Rec, seed 0, epoch 1: validation ndcg@10 0.0000",
        "GRU4Rec, seed 0, epoch 2: validation ndcg@10 0.1250",
        "GRU4Rec, seed 0, epoch 4: validation ndcg@10 0.3750",
    ]


def test_the_smoke_mode_of_a_reproduction_needs_no_file(examples, monkeypatch):
    module, asked = examples("reproduce"), []

    @functools.wraps(module.reproduce)
    def remember(dataset, path, **settings):
        asked.append((dataset, path.is_file(), settings["smoke"]))

    monkeypatch.setattr(module, "reproduce", remember)
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "beauty", "--smoke", "true"])
    module.main()
    assert asked == [("beauty", True, True)]


SCRIPTS = sorted(
    path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_explains_its_settings_and_has_a_smoke_mode(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run_here(name, "--help", monkeypatch=monkeypatch, folder=EXAMPLES)
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "--smoke" in text
    _, *settings = re.split(r"^  --", text, flags=re.MULTILINE)
    assert len(settings) > 5
    for setting in settings:
        option, _, explained = setting.partition(" ")
        # What it is stands before its type and its default.
        assert re.search(r"[a-z]{3,} [^()]*\(|[a-z]{3,}.*[.`]", explained.split("(type:")[0] + "("), option


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train_mssd.py"], "`paths` must name logs, got none"),
        (["train_streaming_history.py"], "`folder` must name an export, got none"),
        (["reproduce.py", "ml-1m"], "`path` must name the data set's file, got none"),
    ],
)
def test_what_is_read_must_be_named(arguments, message, monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run_here(*arguments, monkeypatch=monkeypatch, folder=tmp_path)
    assert message in capsys.readouterr().err


def test_a_configuration_that_is_not_there_is_named(tmp_path, examples):
    path = examples("helpers.smoke_data").write_interactions(tmp_path, "beauty")
    with pytest.raises(ValueError, match=r"`models` must be among GRU4Rec, Caser.*got SASRek"):
        examples("reproduce").reproduce("beauty", path, models=["SASRek"])
