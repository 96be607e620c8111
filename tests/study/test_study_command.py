import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from skipcl_lightning.study import study

# Whole studies in processes of their own; the parts are tested in the other files.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from skipcl_lightning.cli import main; main()", "study"]
SMALL = ["--datasets", "[dense]", "--sessions", "60", "--epochs", "1", "--weights", "[0.3]", "--seeds", "2"]


def run_study(folder, *arguments):
    return subprocess.run(  # noqa: S603 - our own command
        [*COMMAND, *SMALL, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "COLUMNS": "100", "PYTHONWARNINGS": "error"} | {"WANDB_MODE": "offline"},
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a small study, and what the command printed."""
    folder = tmp_path_factory.mktemp("small")
    run = run_study(folder, "--variants", "[none,session]", "--jobs", "2", "--output", "out")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return folder, run.stdout


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "out" / "runs").glob("*.json")}


def test_the_command_trains_every_combination_and_writes_tables_and_pictures(finished):
    folder, printed = finished
    assert "4 runs, 0 of them done before" in printed
    assert "│ session │ 0.3 │" in printed
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"runs", "results.md", "results.csv", "trade_off.png", "skip_rates.png"}
    for picture in ("trade_off.png", "skip_rates.png"):
        assert (folder / "out" / picture).read_bytes().startswith(b"\x89PNG")
    assert len(times(folder)) == 4
    assert len(list((folder / "out/runs").iterdir())) == 8  # and nothing temporary


def test_a_record_holds_settings_metrics_and_what_they_cost(finished):
    folder, _ = finished
    path = next((folder / "out/runs").glob("dense_SASRec_session_0.3_seed1_*.json"))
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["settings"]["simulation"]["num_sessions"] == 60
    assert record["settings"]["head"]["settings"]["temperature"] == 0.1
    assert "mrr@10" in record["metrics"]
    assert "map@10" not in record["metrics"]
    assert record["seconds"] > 0
    assert record["parameters"] > 10_000
    assert record["torch"]
    sessions = pl.read_parquet(path.with_name(path.name.replace(".json", ".parquet")))
    assert sessions.height == record["populations"]["sessions"]
    listened = sessions.filter(~pl.col("skipped"))
    assert record["metrics"]["hit_rate@20"] == pytest.approx((listened["rank"] <= 20).mean())


def test_the_markdown_and_the_csv_hold_the_mean_of_the_runs(finished):
    folder, _ = finished
    values = [
        json.loads(path.read_text(encoding="utf-8"))["metrics"]["skip_rank_percentile"]
        for path in (folder / "out/runs").glob("dense_SASRec_none_*.json")
    ]
    mean = sum(values) / 2
    text = (folder / "out/results.md").read_text(encoding="utf-8")
    assert f"{mean:.4f}".removeprefix("0") in text
    rows = pl.read_csv(folder / "out/results.csv").filter(
        (pl.col("metric") == "skip_rank_percentile") & (pl.col("variant") == "none")
    )
    assert rows["mean"].to_list() == pytest.approx([mean])


def test_a_rerun_does_only_what_is_missing(finished, skipcl, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.chdir(folder)
    before = times(folder)
    skipcl("study", *SMALL, "--variants", "[session]", "--output", "out")
    assert "4 runs, 4 of them done before" in capsys.readouterr().out
    assert times(folder) == before
    gone, broken = sorted(before)[:2]
    metrics = json.loads((folder / "out/runs" / gone).read_text(encoding="utf-8"))["metrics"]
    (folder / "out/runs" / gone).unlink()
    (folder / "out/runs" / broken).write_text('{"metrics": {', encoding="utf-8")
    skipcl("study", *SMALL, "--variants", "[none,session]", "--output", "out")
    assert "4 runs, 2 of them done before" in capsys.readouterr().out
    after = times(folder)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {gone, broken}
    assert json.loads((folder / "out/runs" / gone).read_text(encoding="utf-8"))["metrics"] == metrics


def test_variants_of_one_training_share_it_and_record_what_validation_chose(tmp_path):
    arguments = {"weights": [1.0], "seeds": 1, "epochs": 1, "sessions": 60, "output": tmp_path}
    variants = ["prediction", "prediction+penalty", "prediction+counts+penalty"]
    study(["dense"], variants=[*variants, "SessionKNN"], backbones=["BERT4Rec"], **arguments)
    records = {}
    for path in (tmp_path / "runs").glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        records[record["settings"]["variant"]] = record
    assert records.keys() == {"none", *variants, "SessionKNN"}
    assert "seconds" not in records["SessionKNN"]  # nothing is trained
    assert len({records[name]["seconds"] for name in variants}) == 1
    assert records["none"]["chosen"] == records["prediction"]["chosen"] == {}
    assert records["prediction+penalty"]["chosen"].keys() == {"skip_penalty"}
    assert records["prediction+counts+penalty"]["chosen"].keys() == {"transition_weight", "skip_penalty"}
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    penalty = records["prediction+penalty"]["chosen"]["skip_penalty"]
    # Skips alone choose no transitions.
    assert f"| dense | BERT4Rec | prediction+penalty | 1 | – | {penalty:g} |" in text  # noqa: RUF001
    hits = records["SessionKNN"]["metrics"]["hit_rate@1"]
    # Once in the paper's columns, once with all metrics and the change in percent.
    assert f"| BERT4Rec | SessionKNN |  | {hits:.4f} |".replace("0.", ".") in text
    assert "| `SessionKNN` |" in text
    # A run that is done again alone has the same training.
    before = records["prediction+penalty"]
    (path,) = (tmp_path / "runs").glob("*_prediction+penalty_*.json")
    path.unlink()
    study(["dense"], variants=variants, backbones=["BERT4Rec"], **arguments)
    after = json.loads(path.read_text(encoding="utf-8"))
    assert (after["metrics"], after["chosen"]) == (before["metrics"], before["chosen"])


def test_the_example_is_the_same_command_and_logs_offline(tmp_path, monkeypatch, capsys):
    arguments = ["--variants", "[none]", "--seeds", "1", "--wandb", "offline", "--output", "out"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study.py", *SMALL, *arguments])
    runpy.run_path(str(ROOT / "examples/study.py"), run_name="__main__")
    assert "1 runs, 0 of them done before" in capsys.readouterr().out
    assert not (tmp_path / "out/skip_rates.png").exists()  # nothing to compare
    assert list((tmp_path / "out").glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"datasets": ["denze"]}, "`datasets` must be among dense, sparse, high_skip, ml-100k=PATH"),
        ({"datasets": ["mssd"]}, "`datasets` must give the path of 'mssd'"),
        ({"datasets": ["mssd=nowhere"]}, "that exists, got 'nowhere'"),
        ({"datasets": ["dense=here"]}, "`datasets` must give no path of 'dense'"),
        ({"datasets": ["dense", "dense"]}, "`datasets` must name each one once, got dense several times"),
        ({"datasets": []}, "`datasets` must hold at least one name, got none"),
        ({"variants": ["sesion"]}, "`variants` must be among none, session, past, .* got 'sesion'"),
        ({"backbones": ["HFBackbone"]}, "`backbones` must be among BERT4Rec, .*SASRec, got 'HFBackbone'"),
        ({"backbones": []}, "`backbones` must hold at least one name, got none"),
        ({"weights": []}, "`weights` must hold a λ for session, got none"),
        ({"weights": [0.0]}, r"`weights` must be in \(0, inf\), got 0.0"),
        ({"seeds": 0}, "`seeds` must be at least 1, got 0"),
        ({"jobs": 0}, "`jobs` must be at least 1, got 0"),
        ({"epochs": 0}, "`epochs` must be at least 1, got 0"),
        ({"wandb": "of"}, "`wandb` must be one of 'none', 'offline', 'online', got 'of'"),
    ],
)
def test_wrong_settings_are_errors_before_the_first_run(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        study(**{"datasets": ["dense"], "variants": ["session"], "output": tmp_path / "out", **settings})
    assert not list(tmp_path.iterdir())


def test_sessions_of_real_logs_cannot_be_set(tmp_path):
    with pytest.raises(ValueError, match="`sessions` must be left alone without a simulated data set"):
        study([f"streaming={tmp_path}"], sessions=10)


def test_what_is_wrong_is_said_in_one_line(skipcl, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        skipcl("study", *SMALL, "--variants", "[session]", "--jobs", "0")
    assert str(stopped.value) == "skipcl study: `jobs` must be at least 1, got 0."
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path):
    # Too few users to learn from: found when the log is read, in the run's own process.
    pl.DataFrame({"user_id": [1], "item_id": [1], "rating": [5], "timestamp": [0]}).write_parquet(
        tmp_path / "ratings.parquet"
    )
    chosen = [f"ml-100k={tmp_path / 'ratings.parquet'}", "dense"]
    with pytest.raises(RuntimeError, match="1 of 2 runs failed") as failed:
        study(chosen, variants=["none"], sessions=60, epochs=1, seeds=1, output=tmp_path / "out")
    assert "ml-100k, SASRec, none, seed 0: ValueError" in str(failed.value)
    assert [path.name.split("_")[0] for path in (tmp_path / "out/runs").glob("*.json")] == ["dense"]
