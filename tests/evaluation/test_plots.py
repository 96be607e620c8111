import matplotlib as mpl
import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from small_evaluation import make_data

from skipcl_lightning.evaluation import (
    LastItemMarkov,
    Popularity,
    SkipTradeOff,
    evaluate,
    plots,
    save_rank_plot,
    save_segment_plot,
)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn during the test."""
    drawn = []

    def keep(width, height):
        drawn.append(make_figure(width, height))
        return drawn[-1]

    make_figure = plots.make_figure
    monkeypatch.setattr(plots, "make_figure", keep)
    return drawn


def frame_of(listened, skipped):
    return pl.DataFrame(
        {"rank": [*listened, *skipped], "skipped": [False] * len(listened) + [True] * len(skipped)}
    )


def grid_and_frame(axis):
    """Whether there are vertical and horizontal lines, and the sides that have a frame."""
    grids = (any(line.get_visible() for line in each.get_gridlines()) for each in (axis.xaxis, axis.yaxis))
    return (*grids, [side for side, spine in axis.spines.items() if spine.get_visible()])


def test_curves_are_the_shares_of_targets_up_to_each_rank(figures, tmp_path):
    frames = {"a": frame_of([1, 3, 3, 40], [50, 12]), "b": frame_of([2, 2, 90, 100], [7, 100])}
    save_rank_plot(tmp_path / "plot.png", frames, num_items=100, top_k=5)
    (axis,) = figures[0].axes
    curves = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    assert list(curves) == [
        "a, listened: 75.0% of 4",
        "a, skipped: 0.0% of 2",
        "b, listened: 50.0% of 4",
        "b, skipped: 0.0% of 2",
    ]
    for label, line in curves.items():
        name, kind = label.split(":")[0].split(", ")
        ranks = frames[name].filter(pl.col("skipped") == (kind == "skipped"))["rank"].to_list()
        for rank, share in zip(line.get_xdata(), line.get_ydata(), strict=True):
            assert share == sum(each <= rank for each in ranks) / len(ranks)
        assert line.get_xdata()[[0, -1]].tolist() == [1, 100]
    a, b = curves["a, listened: 75.0% of 4"], curves["b, listened: 50.0% of 4"]
    assert a.get_color() == curves["a, skipped: 0.0% of 2"].get_color() != b.get_color()
    assert a.get_linewidth() > b.get_linewidth()  # the first one stays visible below the second
    marks = [line for line in axis.lines if line.get_marker() == "o"]
    assert [(float(mark.get_xdata()[0]), float(mark.get_ydata()[0])) for mark in marks] == [
        (5, 0.75),
        (5, 0),
        (5, 0.5),
        (5, 0),
    ]
    assert axis.get_xlim() == (1, 100)
    assert axis.get_ylim() == (0, 1)
    assert axis.get_xscale() == "log"
    assert (axis.xaxis.get_major_formatter()(1000), axis.yaxis.get_major_formatter()(0.5)) == ("1,000", "50%")
    assert axis.get_ylabel() == "share of held-out tracks up to this rank"
    assert grid_and_frame(axis) == (False, True, ["left", "bottom"])
    assert [line.get_xdata() for line in axis.lines if line.get_color() == "0.7"] == [[5, 5]]
    assert {name: line.get_linestyle() for name, line in curves.items()} == {
        name: "--" if "skipped" in name else "-" for name in curves
    }
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.texts] == list(curves)
    assert legend.get_title().get_text() == "share among the first 5"
    assert {line.get_linewidth() for line in legend.get_lines()} == {2}
    assert [text.get_text() for text in axis.texts] == ["first 5"]
    assert axis.get_xlabel() == "rank of the held-out track"
    width, height = figures[0].get_size_inches() * figures[0].dpi
    head = (tmp_path / "plot.png").read_bytes()[16:24]
    assert (int.from_bytes(head[:4]), int.from_bytes(head[4:])) == (width, height) == (1152, 768)


def test_one_model_without_skips_has_one_curve(figures, tmp_path):
    save_rank_plot(tmp_path / "plot.png", {"a": frame_of([1, 2], [])}, num_items=9, sampled=True)
    (axis,) = figures[0].axes
    assert [line.get_label() for line in axis.lines if "listened" in line.get_label()] == [
        "a, listened: 100.0% of 2"
    ]
    assert not any("skipped" in line.get_label() for line in axis.lines)
    assert axis.get_xlabel() == "rank of the held-out track, among sampled candidates"


def test_a_path_may_be_text(tmp_path):
    path, data = tmp_path / "plot.png", make_data()
    save_rank_plot(str(path), {"a": frame_of([1, 2], [])}, num_items=9)
    ranks = path.read_bytes()
    save_segment_plot(str(path), [evaluate(Popularity(data.item_counts), data, num_resamples=0)])
    assert ranks.startswith(b"\x89PNG")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.read_bytes() != ranks


def test_a_segment_plot_shows_the_chosen_metric_of_each_report(figures, tmp_path):
    data = make_data()
    reports = [
        evaluate(model, data, num_resamples=30)
        for model in (Popularity(data.item_counts), LastItemMarkov(data))
    ]
    save_segment_plot(tmp_path / "plot.png", reports, metric="ndcg@10")
    axes = figures[0].axes
    assert [axis.get_title(loc="left") for axis in axes] == reports[0].segments["segmented_by"].unique(
        maintain_order=True
    ).to_list()
    for axis in axes:
        assert axis.get_xlabel() == "ndcg@10"
        assert axis.get_xlim()[0] <= 0
        assert grid_and_frame(axis) == (True, False, ["left", "bottom"])
        assert all(label.get_visible() for label in axis.get_xticklabels())  # not only in the lowest panel
        colours = [bars.lines[0].get_color() for bars in axis.containers]
        assert colours == [plots.LISTENED, plots.SKIPPED]
        bottom, top = axis.get_ylim()
        assert bottom > top  # the first segment stands on top
        for report, bars in zip(reports, axis.containers, strict=True):
            rows = report.segments.filter(
                pl.col("metric") == "ndcg@10", pl.col("segmented_by") == axis.get_title(loc="left")
            )
            points, _, (errors,) = bars.lines
            assert bars.get_label() == report.name
            assert np.array_equal(points.get_xdata(), rows["value"].to_numpy(), equal_nan=True)
            for (start, end), row in zip(errors.get_segments(), rows.iter_rows(named=True), strict=True):
                if row["low"] is not None and np.isfinite(row["low"]):
                    assert (start[0], end[0]) == pytest.approx((row["low"], row["high"]))
        shifts = [bars.lines[0].get_ydata()[0] for bars in axis.containers]
        assert shifts == pytest.approx([-0.12, 0.12])
        ticks = [label.get_text() for label in axis.get_yticklabels()]
        counts = rows["targets"].to_list()
        assert ticks == [
            f"{name}  ({count:,})" for name, count in zip(rows["segment"].to_list(), counts, strict=True)
        ]
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.texts] == [report.name for report in reports]
    with pytest.raises(ValueError, match=r"`metric` must be one of the reports', got 'hits'\."):
        save_segment_plot(tmp_path / "other.png", reports, metric="hits")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_the_trade_off_shows_both_rates_with_the_intervals_of_their_differences(monkeypatch, tmp_path):
    drawn = []

    class Kept(Figure):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            drawn.append(self)

    monkeypatch.setattr("matplotlib.figure.Figure", Kept)
    table = pl.DataFrame(
        {
            "transition_weight": [0.0, 0.0],
            "skip_penalty": [0.0, 0.5],
            "hit_rate@5": [0.4, 0.3],
            "skip_hit_rate@5": [0.2, 0.1],
            "hit_rate_difference": [0.1, 0.0],
            "hit_rate_low": [0.05, -0.02],
            "hit_rate_high": [0.2, 0.04],
            "skip_hit_rate_difference": [0.0, -0.1],
            "skip_hit_rate_low": [0.0, -0.13],
            "skip_hit_rate_high": [0.0, -0.08],
        }
    )
    monkeypatch.setitem(mpl.rcParams, "backend", "svg")
    path = SkipTradeOff(table, 0.5, 0.0, 5, "validation").save_plot(str(tmp_path / "front.png"))
    assert mpl.get_backend() == "svg"  # a notebook still shows its own plots
    assert path == tmp_path / "front.png"
    size = path.read_bytes()[16:24]
    assert (int.from_bytes(size[:4]), int.from_bytes(size[4:])) == (960, 660)
    (axis,) = drawn[0].axes
    line, _, bars = axis.containers[0].lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([0.2, 0.1], [0.4, 0.3])
    across, up = (each.get_segments() for each in bars)
    # The other model, from which the differences are, hit 0.3 and skipped 0.2.
    assert [(low[0], high[0]) for low, high in across] == [
        pytest.approx(p) for p in [(0.2, 0.2), (0.07, 0.12)]
    ]
    assert [(low[1], high[1]) for low, high in up] == [pytest.approx(p) for p in [(0.35, 0.5), (0.28, 0.34)]]
    labels = [(text.get_text(), text.get_fontweight(), text.xy) for text in axis.texts]
    assert labels == [("0", "normal", (0.2, 0.4)), ("0.5 (chosen)", "bold", (0.1, 0.3))]
    left, right = axis.get_xlim()
    assert left > right  # fewer skipped tracks to the right
    assert axis.get_xlabel() == "SkipHitRate@5 (fewer skipped tracks to the right)"
    assert axis.get_ylabel() == "HitRate@5"
    assert axis.get_title() == "Skip penalty, validation set; bars: intervals of the difference"
    assert grid_and_frame(axis)[:2] == (True, True)


def test_one_model_without_listened_targets_has_the_other_curve_and_10_is_the_marked_rank(figures, tmp_path):
    save_rank_plot(tmp_path / "plot.png", {"a": frame_of([], [10, 11])}, num_items=99)
    labels = [line.get_label() for line in figures[0].axes[0].lines]
    assert [label for label in labels if not label.startswith("_")] == ["a, skipped: 50.0% of 2"]
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["first 10"]
