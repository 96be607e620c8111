import os
import subprocess
import sys

import pytest

from skipcl_lightning.cli.demo import describe_results

KEYS = ["hit_rate@10", "skip_mrr@10", "skip_rank_percentile", "pairwise_skip_accuracy"]


def run_demo(folder, *arguments):
    command = [sys.executable, "-c", "from skipcl_lightning.cli import main; main()", "demo", *arguments]
    return subprocess.run(  # noqa: S603 - our own command
        command, capture_output=True, text=True, cwd=folder, env={**os.environ, "COLUMNS": "80"}, check=False
    )


def test_the_demo_prints_a_table_and_words_and_writes_a_plot(tmp_path):
    small = ["--sessions", "60", "--items", "40", "--seeds", "2", "--epochs", "1", "--output", "plot.png"]
    run = run_demo(tmp_path, *small)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    for words in [
        "HitRate@1 ",
        "HitRate@20",
        "NDCG@10",
        "SkipMRR@10",
        "SkipPercentile",
        "PairAccuracy",
        "Markov",
    ]:
        assert words in run.stdout
    assert "over 2 seeds" in run.stdout
    rows = [line for line in run.stdout.splitlines() if line.startswith("│ ")]
    assert len(rows) == 10  # one a metric: none is wrapped at 80 columns
    assert "simulated" in run.stdout
    assert "plot.png" in run.stdout
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1"], "`seeds` must be at least 2, got 1"),
        (["--output", "nowhere/plot.png"], "`output` must be in a folder that exists"),
    ],
)
def test_bad_settings_stop_the_demo_before_it_trains(skipcl, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        skipcl("demo", *arguments)
    assert str(stopped.value).startswith(f"skipcl demo: {message}")
    assert not list(tmp_path.iterdir())


def results_of(first, second):
    return {
        "plain": [dict.fromkeys(KEYS, x) for x in first],
        "head": [dict.fromkeys(KEYS, x) for x in second],
    }


def test_the_words_follow_the_figures():
    up = describe_results(results_of([0.1, 0.2, 0.3], [0.2, 0.3001, 0.4]), plain="plain", contrastive="head")
    assert "HitRate@10: +0.100 ± 0.000, better" in up
    assert "SkipMRR@10: +0.100 ± 0.000, worse" in up
    mixed = describe_results(results_of([0.1, 0.2, 0.3], [0.2, 0.1, 0.3]), plain="plain", contrastive="head")
    # By hand: differences 0.1, -0.1, 0; standard deviation 0.1; 4.30 · 0.1 / √3 = 0.248.
    assert "HitRate@10: +0.000 ± 0.248, not distinguishable" in mixed


def test_a_metric_that_a_run_lacks_is_not_compared():
    results = results_of([0.1, 0.2, 0.3], [0.2, 0.3, 0.4])
    for runs in results.values():
        del runs[0]["skip_mrr@10"]
    words = describe_results(results, plain="plain", contrastive="head")
    assert "SkipMRR" not in words
    assert "HitRate@10: +0.100" in words
