import pytest

from skipcl_lightning.cli.demo import ROWS, describe_results

KEYS = ["hit_rate@10", "skip_hit_rate@10", "skip_rank_percentile"]


def test_the_demo_prints_a_table_and_words_and_writes_a_plot(skipcl, tmp_path, monkeypatch, capsys):
    small = ["--sessions", "60", "--items", "40", "--seeds", "2", "--epochs", "1", "--output", "plot.png"]
    monkeypatch.setenv("COLUMNS", "80")
    skipcl("demo", *small)
    printed, errors = capsys.readouterr()
    assert errors == ""
    for words in ["Markov", "plain", "+ feedback", "+ skip head", "+ counts"]:
        assert words in printed
    assert "over 2 seeds" in printed
    for metric in ROWS:
        assert len([line for line in printed.splitlines() if line.startswith(f" {metric} ")]) == 1
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= 80
    assert "'+ feedback' minus 'plain'" in printed
    assert "'+ skip head' minus 'plain'" in printed
    assert "'+ counts' minus 'plain'" in printed
    # The commands that it ends with are commands that work.
    assert "skipcl fit --config table/sasrec" in printed
    assert "skipcl fit --config simulated/sasrec" in printed
    assert "simulated" in printed
    assert "plot.png" in printed
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
    up = describe_results(results_of([0.1, 0.2, 0.3], [0.2, 0.3001, 0.4]), "plain", "head")
    assert up.startswith("'head' minus 'plain', paired by seed, 95 % intervals over 3 seeds:")
    assert "  HitRate@10: +0.100 ± 0.000, better" in up
    assert "  SkipHitRate@10: +0.100 ± 0.000, worse" in up
    mixed = describe_results(results_of([0.1, 0.2, 0.3], [0.2, 0.1, 0.3]), "plain", "head")
    # By hand: differences 0.1, -0.1, 0; standard deviation 0.1; 4.30 · 0.1 / √3 = 0.248.
    assert "HitRate@10: +0.000 ± 0.248, no significant difference" in mixed
    equal = describe_results(results_of([0.5] * 3, [0.5] * 3), "plain", "head")
    assert equal.splitlines()[1] == "  HitRate@10: +0.000 ± 0.000, no significant difference"


def test_a_metric_that_a_run_lacks_is_not_compared():
    results = results_of([0.1, 0.2, 0.3], [0.2, 0.3, 0.4])
    for runs in results.values():
        del runs[0]["skip_hit_rate@10"]
    words = describe_results(results, "plain", "head")
    assert "SkipHitRate" not in words
    assert "HitRate@10: +0.100" in words
