from contextlib import nullcontext

import polars as pl
import pytest
from small_evaluation import make_data, module

from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.evaluation import LastItemMarkov, Popularity, compare, evaluate, save_rank_plot
from skipcl_lightning.evaluation import report as report_room


@pytest.fixture(scope="module")
def data():
    return make_data()


def test_a_report_is_written_whole_and_reads_back(data, tmp_path):
    report = evaluate(module(data), data, name="a model", num_resamples=50)
    folder = report.save(tmp_path / "made" / "here")
    assert sorted(path.name for path in folder.iterdir()) == [
        "metrics.csv",
        "ranks.png",
        "report.md",
        "segments.csv",
        "segments.png",
        "sessions.parquet",
    ]
    for picture in folder.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert pl.read_parquet(folder / "sessions.parquet")["rank"].equals(report.sessions["rank"])
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert "## a model" in markdown
    assert f"| hit_rate@10 ↑ | {report['hit_rate@10']:.4f} |" in markdown
    assert "| skip_mrr@10 ↓ |" in markdown
    assert report.table().row_count == report.metrics.height


@pytest.mark.parametrize("num_candidates", [None, 10])
def test_the_plot_of_a_report_says_whether_candidates_were_sampled(
    data, tmp_path, monkeypatch, num_candidates
):
    said = []
    monkeypatch.setattr(report_room, "save_rank_plot", lambda *_, sampled, **__: said.append(sampled))
    monkeypatch.setattr(report_room, "save_segment_plot", lambda *_, **__: None)
    with nullcontext() if num_candidates is None else pytest.warns(UserWarning, match="sampled candidates"):
        report = evaluate(Popularity(data.item_counts), data, num_candidates=num_candidates, num_resamples=0)
    report.save(tmp_path)
    assert said == [num_candidates is not None]


def test_a_report_names_its_main_metrics_and_the_one_that_was_meant(data):
    report = evaluate(Popularity(data.item_counts), data, name="popular", num_resamples=0)
    assert repr(report).startswith(
        f"EvaluationReport('popular', {report.sessions.height:,} targets: hit_rate@10 "
    )
    with pytest.raises(KeyError, match=r"no metric 'hitrate@10'\. Did you mean 'hit_rate@10'\?"):
        report["hitrate@10"]


def test_a_report_with_other_cut_offs_is_written_too(data, tmp_path):
    report = evaluate(Popularity(data.item_counts), data, top_k=(1, 5), confidence=0.999, num_resamples=20)
    assert (report.save(tmp_path / "here") / "segments.png").is_file()
    assert "99.9% intervals" in report.describe_protocol()


def test_sessions_skipped_by_another_threshold_are_no_same_sessions(data):
    strict = SessionDataModule(data.log, batch_size=32, max_length=6, skip_threshold=-0.5)
    reports = [evaluate(Popularity(each.item_counts), each, num_resamples=20) for each in (data, strict)]
    with pytest.raises(ValueError, match="must be of the same sessions"):
        compare(*reports)


def test_a_file_that_cannot_be_written_leaves_nothing(data, tmp_path):
    report = evaluate(Popularity(data.item_counts), data, num_resamples=0)
    with pytest.raises(OSError, match="nowhere"):
        save_rank_plot(tmp_path / "nowhere" / "plot.png", {"p": report.sessions}, num_items=40)
    (tmp_path / "plot.png").mkdir()
    with pytest.raises(OSError, match=r"plot\.png"):
        save_rank_plot(tmp_path / "plot.png", {"p": report.sessions}, num_items=40)
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_a_model_with_itself_shows_no_difference_and_a_better_one_does(data):
    popularity = evaluate(Popularity(data.item_counts), data, num_resamples=500)
    markov = evaluate(LastItemMarkov(data), data, num_resamples=500)
    same = compare(markov, markov)
    assert (same["difference"].fill_nan(0) == 0).all()
    assert set(same["verdict"]) == {"no significant difference"}
    better, worse = compare(popularity, markov), compare(markov, popularity)
    row = better.filter(pl.col("metric") == "ndcg@10").row(0, named=True)
    assert row["verdict"] == "better"
    assert row["difference"] == pytest.approx(markov["ndcg@10"] - popularity["ndcg@10"])
    assert row["low"] < row["difference"] < row["high"]
    opposite = worse.filter(pl.col("metric") == "ndcg@10").row(0, named=True)
    assert opposite["verdict"] == "worse"
    assert (opposite["low"], opposite["high"]) == pytest.approx((-row["high"], -row["low"]))
    # Lower is better for what was skipped: Markov brings skipped tracks up too.
    assert better.filter(pl.col("metric") == "skip_mrr@10")["verdict"].item() == "worse"
    delta = better.filter(pl.col("metric") == "delta_hit_rate@10")["difference"].item()
    assert delta == pytest.approx(markov["delta_hit_rate@10"] - popularity["delta_hit_rate@10"])


def test_intervals_of_a_difference_are_paired(data):
    # Two models that hit the same sessions but for a few: the difference is known far better than either.
    model = module(data)
    before = evaluate(model, data)
    sessions = before.sessions.with_columns(
        rank=pl.when(pl.int_range(pl.len()) < 3).then(1.0).otherwise(pl.col("rank"))
    )
    after = type(before)("after", sessions, before.settings, before.coverage)
    row = compare(before, after).filter(pl.col("metric") == "hit_rate@10").row(0, named=True)
    alone = before.metrics.filter(pl.col("metric") == "hit_rate@10").row(0, named=True)
    assert row["high"] - row["low"] < 0.5 * (alone["high"] - alone["low"])


def test_reports_that_cannot_be_compared_are_named(data):
    popularity = Popularity(data.item_counts)
    one = evaluate(popularity, data, num_resamples=10)
    with pytest.raises(ValueError, match=r"must share the protocol, got split 'validation' and 'test'\."):
        compare(evaluate(popularity, data, split="validation"), one)
    other = SessionDataModule(simulate_sessions(150, num_items=40, num_moods=4, min_length=4, seed=1))
    with pytest.raises(ValueError, match="must be of the same sessions"):
        compare(evaluate(Popularity(other.item_counts), other, num_resamples=10), one)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("top_k", (1, 5)), ("ties", "mean"), ("exclude_seen", True), ("num_items", 7), ("num_candidates", 9)],
)
def test_reports_of_another_protocol_are_not_compared(data, setting, value):
    one = evaluate(Popularity(data.item_counts), data, num_resamples=10)
    other = type(one)("other", one.sessions, {**one.settings, setting: value}, one.coverage)
    with pytest.raises(ValueError, match=f"must share the protocol, got {setting}"):
        compare(one, other)


def test_verdicts_know_which_way_is_better_and_when_there_is_nothing_to_tell(data):
    one = evaluate(module(data), data, num_resamples=200)
    sunk = one.sessions.with_columns(rank=pl.when(pl.col("skipped")).then(40.0).otherwise(pl.col("rank")))
    other = type(one)("other", sunk, one.settings, one.coverage)
    verdicts = dict(compare(one, other).select("metric", "verdict").iter_rows())
    assert verdicts["skip_rank_percentile"] == verdicts["skip_mrr@10"] == "better"
    assert verdicts["hit_rate@10"] == "no significant difference"
    heard = one.sessions.with_columns(skipped=pl.int_range(pl.len()) == 0)  # a single skip
    few = [type(one)("few", heard, one.settings, one.coverage)] * 2
    assert dict(compare(*few).select("metric", "verdict").iter_rows())["skip_mrr@10"] == "undefined"


def test_a_difference_of_populations_stands_on_both(data):
    report = evaluate(Popularity(data.item_counts), data, num_resamples=0)
    rows = dict(report.metrics.select("metric", "sessions").iter_rows())
    assert rows["delta_hit_rate@10"] == rows["hit_rate@10"] + rows["skip_hit_rate@10"]
