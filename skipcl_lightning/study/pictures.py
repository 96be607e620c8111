"""The study's plots: hit rate against skip hit rate, and gains by skip rate."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning.evaluation.plots import INK, make_figure, save_figure, tidy_axis
from skipcl_lightning.evaluation.statistics import student_margin
from skipcl_lightning.study.choices import BASELINES, INPUT_SUFFIX, PLAIN, VARIANTS

__all__ = ["save_skip_rate_plot", "save_trade_off_plot"]

# The colour-blind safe palette of Okabe and Ito without light yellow; markers differ too.
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#7f3c8d",
    "#4d4d4d",
    "#1a1a6e",
    "#a6761d",
    "#b2182b",
    "#1b7837",
    "#8c8c8c",
    "#5c3a1e",
    "#2f4f4f",
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d", "8", "1", "2")
_MOST_HEADS = 4
_FEWEST_SESSIONS = 30
_MOST_COLUMNS = 3


def save_trade_off_plot(path: Path, summary: pl.DataFrame, plain: pl.DataFrame) -> None:
    """Plot HitRate@10 over SkipHitRate@10, with a curve for each variant and a panel for each data set.

    `summary` is the result of `compare_all`; `plain` are the plain model's rows of `read_metrics`, for its
    spread over seeds.
    """
    means = (
        summary.filter((pl.col("compared_with") == PLAIN) & pl.col("metric").is_in(["hit_rate@10", _SKIP]))
        .pivot("metric", index=_MODEL, values="mean")
        .select(*_MODEL, *(_column_or_null(name, summary) for name in ("hit_rate@10", _SKIP)))
    )
    panels = _panels(summary)
    figure, axes = _axes(panels, 4.6, 4.3)
    for axis, (dataset, backbone) in zip(axes, panels, strict=True):
        here = (pl.col("dataset") == dataset) & (pl.col("backbone") == backbone)
        _draw_trade_off(axis, means.filter(here), plain.filter(here))
        _entitle(axis, dataset, backbone, panels)
        axis.set_xlabel("SkipHitRate@10: skipped tracks (less is better)")
    _label_rows(axes, "HitRate@10: listened tracks (more is better)")
    _legend(
        figure,
        axes,
        "Markers grow with λ; each curve starts where λ is 0. "
        "Bars: 95 % of the plain mean over seeds, unpaired; the tables pair by seed",
    )
    save_figure(figure, path)


def save_skip_rate_plot(path: Path, gains: pl.DataFrame) -> None:
    """Plot the gain of HitRate@10 by the skip rate of the session (`gains_by_skip_rate`), a panel a data set.

    The first four variants are plotted in the given order, each at its middle weight; a choice by the results
    would be biased. Segments of fewer than 30 sessions are left out.
    """
    if gains.is_empty():
        raise ValueError(
            "`gains` must hold a variant beside the plain model, got none. Train one with a head."
        )
    panels = _panels(gains)
    gains = gains.filter(pl.col("sessions") >= _FEWEST_SESSIONS)
    figure, axes = _axes(panels, 4.8, 4.2)
    drawn = gains["variant"].unique(maintain_order=True).to_list()[:_MOST_HEADS]
    for axis, (dataset, backbone) in zip(axes, panels, strict=True):
        here = gains.filter((pl.col("dataset") == dataset) & (pl.col("backbone") == backbone))
        _draw_gains(axis, here, drawn)
        _entitle(axis, dataset, backbone, panels)
        axis.set_xlabel("skip rate of the session (sessions)")
    _label_rows(axes, "gain in HitRate@10 over the plain model")
    _legend(figure, axes, f"Bars: 95 % over seeds, paired. Segments of {_FEWEST_SESSIONS} sessions or more")
    save_figure(figure, path)


_SKIP = "skip_hit_rate@10"
_MODEL = ["dataset", "backbone", "variant", "weight"]


def _column_or_null(name: str, summary: pl.DataFrame) -> pl.Expr:
    """Return a column, or null if no data set of the study has this metric."""
    return pl.col(name) if name in summary["metric"] else pl.lit(None, pl.Float64).alias(name)


def _draw_trade_off(axis: Any, means: pl.DataFrame, plain: pl.DataFrame) -> None:
    for variant in means["variant"].unique(maintain_order=True):
        start = PLAIN + INPUT_SUFFIX if variant.endswith(INPUT_SUFFIX) else PLAIN
        if variant == PLAIN:
            continue
        own = means.filter(pl.col("variant") == variant).sort("weight", nulls_last=False)
        origin = means.filter((pl.col("variant") == start) & (pl.col("variant") != variant))
        curve = own if variant in BASELINES else pl.concat([origin, own])
        colour, marker, line = _style(variant)
        axis.plot(curve[_SKIP], curve["hit_rate@10"], color=colour, linestyle=line, linewidth=1.6, alpha=0.8)
        sizes = np.linspace(22, 80, own.height) if own.height > 1 else [50]
        axis.scatter(
            own[_SKIP], own["hit_rate@10"], s=sizes, color=colour, marker=marker, label=variant, zorder=3
        )
    centres, margins = zip(*(_spread(plain, metric) for metric in (_SKIP, "hit_rate@10")), strict=True)
    if None in centres:
        axis.annotate("no skipped target", (0.5, 0.5), xycoords="axes fraction", ha="center", color=INK)
        return
    axis.errorbar(
        [centres[0]],
        [centres[1]],
        xerr=[margins[0]],
        yerr=[margins[1]],
        fmt="*",
        color=INK,
        markersize=15,
        capsize=3,
        elinewidth=1,
        label="plain model",
        zorder=4,
    )
    for limits, metric, centre, margin in zip(
        (axis.set_xlim, axis.set_ylim), (_SKIP, "hit_rate@10"), centres, margins, strict=True
    ):
        limits(*_limits(means[metric].drop_nulls().to_numpy(), centre, margin))
    axis.locator_params(nbins=5)
    tidy_axis(axis, "both")


def _draw_gains(axis: Any, gains: pl.DataFrame, drawn: Sequence[str]) -> None:
    if gains.is_empty():
        axis.annotate("too few sessions", (0.5, 0.5), xycoords="axes fraction", ha="center", color=INK)
        return
    segments = gains["segment"].unique().sort().to_list()
    sizes = dict(gains.select("segment", "sessions").iter_rows())
    for number, variant in enumerate(drawn):
        rows = gains.filter(pl.col("variant") == variant)
        weights = rows["weight"].unique().sort().to_list()
        if not weights:
            continue
        weight = weights[len(weights) // 2]
        rows = rows.filter(pl.col("weight").eq_missing(weight))
        places = np.array([segments.index(segment) for segment in rows["segment"]])
        margins = ((rows["high"] - rows["low"]) / 2).fill_null(math.nan).to_numpy()
        colour, marker, line = _style(variant)
        label = variant if weight is None else f"{variant}, λ {weight:g}"
        axis.errorbar(
            places + 0.14 * (number - (len(drawn) - 1) / 2),
            rows["difference"].to_numpy(),
            yerr=margins,
            color=colour,
            marker=marker,
            linestyle=line,
            linewidth=1.4,
            capsize=3,
            label=label,
        )
    axis.axhline(0, color="0.5", linewidth=1, zorder=0)
    ticks = [f"{segment}\n({sizes[segment]:,.0f})" for segment in segments]
    axis.set_xticks(range(len(segments)), ticks, fontsize=9)
    axis.yaxis.set_major_formatter(lambda gain, _: f"{gain:+.3f}")
    tidy_axis(axis, "y")


def _limits(points: NDArray[np.float64], centre: float, margin: float) -> tuple[float, float]:
    """Return limits that show all points, and the bar as far as it leaves them apart."""
    margin = 0.0 if math.isnan(margin) else margin
    span = points.max() - points.min() or max(margin, 0.01)
    bar = min(1.1 * margin, span)
    return min(points.min() - 0.12 * span, centre - bar), max(points.max() + 0.12 * span, centre + bar)


def _spread(plain: pl.DataFrame, metric: str) -> tuple[float | None, float]:
    """Return the mean over seeds and half of its 95 % interval; None without a value."""
    values = plain.filter(pl.col("metric") == metric)["value"].drop_nulls().to_numpy()
    if not len(values):
        return None, math.nan
    if len(values) == 1:
        return float(values[0]), math.nan
    return float(values.mean()), float(student_margin(values.std(ddof=1), len(values)))


def _style(variant: str) -> tuple[str, str, str]:
    """Return colour, marker and line: equal for a head in every plot, dashed with feedback as an input."""
    head = variant.removesuffix(INPUT_SUFFIX)
    if head == PLAIN:
        return INK, "*", ":"
    number = [*VARIANTS, *BASELINES].index(head) - 1
    return _COLOURS[number], _MARKERS[number], "--" if variant.endswith(INPUT_SUFFIX) else "-"


def _panels(frame: pl.DataFrame) -> list[tuple[str, str]]:
    return list(frame.select("dataset", "backbone").unique(maintain_order=True).iter_rows())


def _axes(panels: Sequence[Any], width: float, height: float) -> tuple[Any, list[Any]]:
    columns = min(_MOST_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = make_figure(width * columns + 0.6, height * rows + 0.9)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return figure, axes[: len(panels)]


def _label_rows(axes: Sequence[Any], label: str) -> None:
    for axis in axes[::_MOST_COLUMNS]:
        axis.set_ylabel(label)


def _entitle(axis: Any, dataset: str, backbone: str, panels: Sequence[tuple[str, str]]) -> None:
    several = len({name for _, name in panels}) > 1
    title = f"{dataset}, {backbone}" if several else dataset
    axis.set_title(title, loc="left", fontweight="bold", color=INK)


def _legend(figure: Any, axes: Sequence[Any], note: str) -> None:
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=6, frameon=False, title=note
    )
