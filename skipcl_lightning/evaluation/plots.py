"""Plots of an evaluation: cumulative ranks, and metrics by segment."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from skipcl_lightning.evaluation.segments import SEGMENTS

__all__ = ["INK", "make_figure", "save_rank_plot", "save_segment_plot", "tidy_axis", "write_whole"]

# Distinct for colour-blind readers, and in black-and-white print.
LISTENED, SKIPPED = "#0b6e5f", "#d1603d"
INK = "#333333"


class SegmentedReport(Protocol):
    """The part of an `EvaluationReport` that a picture of segments needs."""

    @property
    def name(self) -> str:
        """The name of the model."""
        ...

    @property
    def postfix(self) -> str:
        """The end of the metrics' names."""
        ...

    @property
    def values(self) -> Mapping[str, float]:
        """The metrics by name."""
        ...

    @property
    def segments(self) -> pl.DataFrame:
        """Metrics with intervals, one row for each segment and metric."""
        ...


def save_rank_plot(
    path: Path,
    sessions: Mapping[str, pl.DataFrame],
    *,
    num_items: int,
    top_k: int = 10,
    sampled: bool = False,
) -> None:
    """Plot the cumulative share of held-out targets by rank, listened and skipped separately, for each model.

    A skip-aware model widens the gap between the two curves. At `top_k` the gap is the difference of the hit
    rates, which the plot shows as numbers.

    Args:
        path: The PNG file; it appears complete or not at all.
        sessions: By model, a frame with `rank` (from 1) and `skipped` (bool).
        num_items: The number of ranked items: V, or the sampled candidates and the target.
        top_k: The marked rank.
        sampled: Whether the candidates are sampled, which the plot then says.

    Raises:
        OSError: The file cannot be written.
    """
    figure = make_figure(4.6 * len(sessions) + 0.4, 4.6)
    axes = figure.subplots(1, len(sessions), sharey=True, squeeze=False)[0]
    for axis, (name, frame) in zip(axes, sessions.items(), strict=True):
        _draw_ranks(axis, frame, num_items, top_k)
        axis.set_title(name, loc="left", fontweight="bold", color=INK)
        axis.set_xlabel("rank of the held-out track" + (", among sampled candidates" if sampled else ""))
    axes[0].set_ylabel("share of tracks ranked so high or higher")
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png"))


def save_segment_plot(path: Path, reports: Sequence[SegmentedReport], *, metric: str = "hit_rate@10") -> None:
    """Plot a metric by segment with its intervals, one panel for each segmentation.

    Args:
        path: The PNG file; it appears complete or not at all.
        reports: One or several models on the same data.
        metric: The metric, without the postfix of sampled candidates.

    Raises:
        ValueError: The reports have no such metric.
        OSError: The file cannot be written.
    """
    figure = make_figure(15, 4.2)
    axes = figure.subplots(1, len(SEGMENTS), sharex=True)
    colours = [LISTENED, SKIPPED, "#4c6ef5", "#868e96"]
    for number, report in enumerate(reports):
        if metric + report.postfix not in report.values:
            raise ValueError(f"`metric` must be one of the reports', got {metric!r}. See `report.values`.")
        rows = report.segments.filter(pl.col("metric") == metric + report.postfix)
        for axis, title in zip(axes, SEGMENTS.values(), strict=True):
            part = rows.filter(pl.col("segmented_by") == title)
            shift = 0.24 * (number - (len(reports) - 1) / 2)
            _draw_segments(axis, part, colours[number % len(colours)], report.name, shift)
            axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    for axis in axes:
        axis.set_xlabel(metric)
        axis.set_xlim(left=min(0, axis.get_xlim()[0]))
        axis.invert_yaxis()
    if len(reports) > 1:
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside upper right", frameon=False, ncols=len(reports)
        )
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png"))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name and rename it, so no incomplete file is left.

    Args:
        path: The file.
        write: Function that writes to a given path.

    Raises:
        OSError: The file cannot be written.
    """
    # Not from `tempfile`, whose files only their owner may read.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_figure(width: float, height: float) -> Any:
    """Return a figure that needs no display and changes no global state.

    Args:
        width: In inches.
        height: In inches.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not by pyplot, which needs a display and keeps global state.
    figure = Figure(figsize=(width, height), layout="constrained", dpi=160)
    FigureCanvasAgg(figure)
    return figure


def _draw_ranks(axis: Any, frame: pl.DataFrame, num_items: int, top_k: int) -> None:
    grid = np.unique(np.round(np.geomspace(1, num_items, 400)))
    shares = {}
    for skipped, label, colour in ((False, "listened to", LISTENED), (True, "skipped", SKIPPED)):
        ranks = np.sort(frame.filter(pl.col("skipped") == skipped)["rank"].to_numpy())
        if not len(ranks):
            continue
        share = np.searchsorted(ranks, grid, side="right") / len(ranks)
        shares[skipped] = share
        axis.plot(grid, share, color=colour, linewidth=2.4, label=f"{label} ({len(ranks):,})")
        hit_rate = float((ranks <= top_k).mean())
        axis.plot([top_k], [hit_rate], "o", color=colour, markersize=6, zorder=5)
        axis.annotate(
            f"{hit_rate:.0%}",
            (top_k, hit_rate),
            xytext=(8, -10) if skipped else (-8, 6),
            textcoords="offset points",
            color=colour,
            ha="left" if skipped else "right",
            fontweight="bold",
        )
    if len(shares) == 2:
        higher = shares[False] >= shares[True]
        axis.fill_between(grid, shares[True], shares[False], where=higher, color=LISTENED, alpha=0.10, lw=0)
        axis.fill_between(grid, shares[True], shares[False], where=~higher, color=SKIPPED, alpha=0.18, lw=0)
    axis.axvline(top_k, color="0.7", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axis.annotate(
        f"first {top_k}", (top_k, 1.0), xytext=(4, -2), textcoords="offset points", color="0.45", va="top"
    )
    axis.set(xscale="log", xlim=(1, num_items), ylim=(0, 1))
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.xaxis.set_major_formatter(lambda rank, _: f"{rank:,.0f}")
    tidy_axis(axis, "y")
    axis.legend(frameon=False, loc="lower right")


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
    """Draw a faint grid, and remove the frame on the sides without values.

    Args:
        axis: A `matplotlib.axes.Axes`.
        along: The axis of the grid: `x`, `y` or `both`.
    """
    axis.grid(axis=along, alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=INK)
