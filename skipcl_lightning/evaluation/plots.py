"""Plots of an evaluation: cumulative ranks, and metrics by segment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from skipcl_lightning._files import write_whole
from skipcl_lightning.evaluation.segments import SEGMENTS

if TYPE_CHECKING:
    from skipcl_lightning.evaluation.report import EvaluationReport

__all__ = ["INK", "make_figure", "save_figure", "save_rank_plot", "save_segment_plot", "tidy_axis"]

# Distinct for colour-blind readers, and in black-and-white print.
LISTENED, SKIPPED = "#0b6e5f", "#d1603d"
_MODELS = ("#8a8f98", "#3b6fd4", "#0b6e5f", "#d1603d", "#8e5bb5")
INK = "#333333"


def save_rank_plot(
    path: str | Path,
    sessions: Mapping[str, pl.DataFrame],
    *,
    num_items: int,
    top_k: int = 10,
    sampled: bool = False,
) -> None:
    """Plot the cumulative share of held-out targets by rank, all models in one axis.

    Solid curves are the listened targets, dashed curves the skipped ones. A skip-aware model widens the gap
    between its two curves. The legend holds the shares at `top_k`, which are the two hit rates.

    Args:
        path: The PNG file; it appears complete or not at all.
        sessions: By model, a frame with `rank` (from 1) and `skipped` (bool).
        num_items: The number of ranked items: V, or the sampled candidates and the target.
        top_k: The marked rank.
        sampled: Whether the candidates are sampled, which the plot then says.

    Raises:
        OSError: The file cannot be written.
    """
    figure = make_figure(7.2, 4.8)
    axis = figure.subplots()
    for number, (name, frame) in enumerate(sessions.items()):
        colours = (_MODELS[number % len(_MODELS)],) * 2 if len(sessions) > 1 else (LISTENED, SKIPPED)
        # The first model is the widest line, so that later ones on top of it don't hide it.
        width = 2 + 0.9 * (len(sessions) - 1 - number)
        _draw_ranks(axis, frame, num_items, top_k, colours, name, width)
    axis.axvline(top_k, color="0.7", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axis.annotate(
        f"first {top_k}", (top_k, 1.0), xytext=(4, -2), textcoords="offset points", color="0.45", va="top"
    )
    axis.set(xscale="log", xlim=(1, num_items), ylim=(0, 1))
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.xaxis.set_major_formatter(lambda rank, _: f"{rank:,.0f}")
    axis.set_xlabel("rank of the held-out track" + (", among sampled candidates" if sampled else ""))
    axis.set_ylabel("share of held-out tracks up to this rank")
    tidy_axis(axis, "y")
    figure.legend(
        loc="outside lower center",
        ncols=min(3, len(sessions)),
        frameon=False,
        fontsize=7.5,
        handlelength=3,
        columnspacing=1,
        title=f"share among the first {top_k}",
    )
    for line in figure.legends[0].get_lines():
        line.set_linewidth(2)  # dashes grow with the width: a wide line's first dash would fill the handle
    save_figure(figure, path)


def save_segment_plot(
    path: str | Path, reports: Sequence["EvaluationReport"], *, metric: str = "hit_rate@10"
) -> None:
    """Plot a metric by segment with its intervals, one panel for each segmentation.

    Args:
        path: The PNG file; it appears complete or not at all.
        reports: One or several models on the same data.
        metric: The metric, without the postfix of sampled candidates.

    Raises:
        ValueError: The reports have no such metric.
        OSError: The file cannot be written.
    """
    figure = make_figure(10, 6.8)
    axes = list(figure.subplots(2, 2, sharex=True).ravel())
    colours = [LISTENED, SKIPPED, "#4c6ef5", "#868e96"]
    for number, report in enumerate(reports):
        if metric + report.postfix not in report.values:
            raise ValueError(f"`metric` must be one of the reports', got {metric!r}. See `report.values`.")
        values = report.segments.filter(pl.col("metric") == metric + report.postfix)
        for axis, title in zip(axes, SEGMENTS.values(), strict=True):
            part = values.filter(pl.col("segmented_by") == title)
            shift = 0.24 * (number - (len(reports) - 1) / 2)
            _draw_segments(axis, part, colours[number % len(colours)], report.name, shift)
            axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    for axis in axes:
        axis.set_xlabel(metric)
        axis.tick_params(labelbottom=True)
        axis.set_xlim(left=min(0, axis.get_xlim()[0]))
        axis.invert_yaxis()
    if len(reports) > 1:
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside upper right", frameon=False, ncols=len(reports)
        )
    save_figure(figure, path)


def make_figure(width: float, height: float, *, dpi: int = 160) -> Any:
    """Return a figure, its sides in inches, that needs no display and changes no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure to a PNG file, which appears complete or not at all."""
    write_whole(Path(path), lambda temporary: figure.savefig(temporary, format="png"))


def _draw_ranks(
    axis: Any,
    frame: pl.DataFrame,
    num_items: int,
    top_k: int,
    colours: tuple[str, str],
    name: str,
    width: float,
) -> None:
    grid = np.unique(np.round(np.geomspace(1, num_items, 400)))
    for skipped, colour in zip((False, True), colours, strict=True):
        ranks = np.sort(frame.filter(pl.col("skipped") == skipped)["rank"].to_numpy())
        if not len(ranks):
            continue
        share = np.searchsorted(ranks, grid, side="right") / len(ranks)
        hit_rate = float((ranks <= top_k).mean())
        kind = "skipped" if skipped else "listened"
        style = (0, (5, 2)) if skipped else "-"
        label = f"{name}, {kind}: {hit_rate:.1%} of {len(ranks):,}"
        axis.plot(grid, share, color=colour, linewidth=width, linestyle=style, label=label)
        axis.plot([top_k], [hit_rate], "o", color=colour, markersize=3 + width, zorder=5)


def _draw_segments(axis: Any, part: pl.DataFrame, colour: str, label: str, shift: float) -> None:
    values = part["value"].to_numpy()
    ends = [part[name].cast(pl.Float64).to_numpy() for name in ("low", "high")]
    errors = np.nan_to_num(np.abs(np.stack([values - ends[0], ends[1] - values])))
    places = np.arange(part.height)
    axis.errorbar(values, places + shift, xerr=errors, fmt="o", color=colour, capsize=3, label=label, ms=5)
    ticks = [f"{segment}  ({count:,})" for segment, count in part.select("segment", "targets").iter_rows()]
    axis.set_yticks(places, ticks, fontsize=9)
    axis.margins(y=0.12)
    tidy_axis(axis, "x")


def tidy_axis(axis: Any, along: str) -> None:
    """Draw a faint grid along `x`, `y` or `both`, and remove the frame on the sides without values."""
    axis.grid(axis=along, alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=INK)
