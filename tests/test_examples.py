import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from skipcl_lightning.data import simulate_sessions

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("SKIPCL_DATA", ROOT.parent / "shared" / "data"))


def run_example(name, *arguments, folder):
    run = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)],
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


def write_mssd(path):
    """A simulated log in the Music Streaming Sessions format, in the case of booleans that pandas writes."""
    log = simulate_sessions(60, num_items=30, num_moods=3).collect()
    skipped = pl.col("feedback") < 0
    position = pl.int_range(1, pl.len() + 1).over("session_id")
    flags = {
        "skip_1": pl.col("feedback") < -0.7,
        "skip_2": skipped,
        "skip_3": skipped,
        "not_skipped": ~skipped,
    }
    log.select(
        pl.col("session_id"),
        position.alias("session_position"),
        pl.len().over("session_id").alias("session_length"),
        pl.col("item_id").alias("track_id_clean"),
        *(flag.cast(pl.String).str.to_titlecase().alias(name) for name, flag in flags.items()),
    ).write_csv(path)


def write_history(path):
    """A simulated listener, a session a day, in the extended format."""
    rows = []
    for number, session in enumerate(
        simulate_sessions(60, num_items=30, num_moods=3).collect().partition_by("session_id")
    ):
        end = datetime(2024, 1, 1, 12, tzinfo=UTC) + timedelta(days=number)
        for item, feedback in session.select("item_id", "feedback").iter_rows():
            end += timedelta(minutes=3)
            rows.append(
                {
                    "ts": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "ms_played": 20_000 if feedback < 0 else 170_000,
                    "spotify_track_uri": f"spotify:track:{item}",
                    "skipped": feedback < 0,
                    "reason_end": "fwdbtn" if feedback < 0 else "trackdone",
                }
            )
    path.write_text(json.dumps(rows), encoding="utf-8")


def test_training_on_a_streaming_sessions_log_runs_end_to_end(tmp_path):
    write_mssd(tmp_path / "log.csv")
    output = run_example("train_mssd.py", "log.csv", "--epochs", 1, "--output", "out", folder=tmp_path)
    assert_trained(output, tmp_path / "out")


def test_training_on_a_streaming_history_runs_end_to_end(tmp_path):
    (tmp_path / "export").mkdir()
    write_history(tmp_path / "export" / "Streaming_History_Audio_0.json")
    arguments = ["export", "--skip_rule", "fwdbtn", "--epochs", 1, "--output", "out"]
    output = run_example("train_streaming_history.py", *arguments, folder=tmp_path)
    assert_trained(output, tmp_path / "out")
    assert "spotify:track:" in output


@pytest.mark.real_data
@pytest.mark.skipif(
    not SHARED.is_dir(), reason="no listening logs: SKIPCL_DATA is not set and ../shared/data absent"
)
@pytest.mark.parametrize(
    ("script", "source"), [("train_mssd.py", "mssd"), ("train_streaming_history.py", "streaming_history")]
)
def test_training_on_real_logs_runs_end_to_end(script, source, tmp_path):
    output = run_example(script, SHARED / source, "--epochs", 1, "--output", "out", folder=tmp_path)
    assert_trained(output, tmp_path / "out")


def test_a_backbone_of_ones_own_trains_and_recommends(tmp_path):
    output = run_example("custom_backbone.py", folder=tmp_path)
    assert "test/hit_rate@10" in output
    assert "track-" in output


def write_interactions(folder, dataset):
    """A simulated log in the usual file of a public data set; a session is a user, a track an item."""
    log = simulate_sessions(60, num_items=30, num_moods=3).collect()
    rows = log.select("session_id", pl.col("item_id").str.strip_prefix("track-"), "position").rows()
    forms = {
        "ml-100k": ("u.data", "{0}\t{1}\t3\t{2}"),
        "ml-1m": ("ratings.dat", "{0}::{1}::3::{2}"),
        "beauty": ("beauty.txt", "{0} {1}"),
    }
    name, form = forms[dataset]
    (folder / name).write_text("\n".join(form.format(*row) for row in rows) + "\n", encoding="utf-8")
    return name


def test_figures_are_reproduced_beside_the_published_ones(tmp_path):
    name = write_interactions(tmp_path, "ml-1m")
    arguments = ["--models", "[SASRec,BERT4Rec]", "--seeds", 2, "--epochs", 1, "--jobs", 2]
    output = run_example("reproduce.py", "ml-1m", name, *arguments, folder=tmp_path)
    rows = len((tmp_path / name).read_text(encoding="utf-8").splitlines())
    assert f"Kept {rows} rows of 60 sessions and 30 items" in output
    for row in ("Popularity", "Markov", "SASRec", "BERT4Rec"):
        assert f"│ {row} " in output
    assert "0.3152" in output
    assert "0.1537" in output
    assert "popularity < Markov < neural" in output
    assert "SASRec, seed 1: hit_rate@10 0." in output


@pytest.mark.parametrize("dataset", ["ml-100k", "beauty"])
def test_other_public_data_sets_are_read_from_their_usual_files(dataset, tmp_path):
    name = write_interactions(tmp_path, dataset)
    arguments = [dataset, name, "--models", "[GRU4Rec]", "--seeds", 1, "--epochs", 1]
    output = run_example("reproduce.py", *arguments, folder=tmp_path)
    rows = len((tmp_path / name).read_text(encoding="utf-8").splitlines())
    assert f"Kept {rows} rows of 60 sessions and 30 items" in output
    assert "│ GRU4Rec " in output


@pytest.mark.parametrize("name", ["train_mssd.py", "train_streaming_history.py"])
def test_the_examples_explain_their_settings(name, tmp_path):
    output = run_example(name, "--help", folder=tmp_path)
    assert "--weight" in output
    assert "the weight of the skip-contrastive loss" in output


def test_a_configuration_that_is_not_there_is_named(tmp_path):
    name = write_interactions(tmp_path, "beauty")
    run = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, str(ROOT / "examples/reproduce.py"), "beauty", name, "--models", "[SASRek]"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert "`models` must be among GRU4Rec, Caser" in run.stderr
    assert "got SASRek" in run.stderr
