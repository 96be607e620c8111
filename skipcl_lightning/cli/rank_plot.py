"""The picture that explains the method: where listened and skipped tracks end in the ranking."""

import os
from pathlib import Path

import numpy as np
import polars as pl

__all__ = ["save_rank_plot"]

LISTENED, SKIPPED = "#1b7f6b", "#c8553d"


def save_rank_plot(path: Path, ranks: dict[str, pl.DataFrame], *, num_items: int) -> None:
    """Draw, for each model, the cumulative share of held-out tracks by rank.

    Args:
        path: Where the PNG is written; it appears whole or not at all.
        ranks: By model, a frame with ``rank`` (from 1) and ``skipped`` (bool).
        num_items: V.

    Raises:
        OSError: The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A figure of its own, without pyplot: no display is needed and no global state is left.
    figure = Figure(figsize=(5.2 * len(ranks), 4.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(ranks), sharey=True, squeeze=False)[0]
    for axis, (name, frame) in zip(axes, ranks.items(), strict=True):
        for skipped, label, colour in ((False, "listened", LISTENED), (True, "skipped", SKIPPED)):
            values = np.sort(frame.filter(pl.col("skipped") == skipped)["rank"].to_numpy())
            share = np.arange(1, len(values) + 1) / max(len(values), 1)
            axis.step(
                values, share, where="post", color=colour, linewidth=2, label=f"{label} ({len(values):,})"
            )
        axis.axvline(10, color="0.75", linewidth=1, linestyle="--", zorder=0)
        axis.annotate("top 10", (10, 0.98), xytext=(4, 0), textcoords="offset points", color="0.45", va="top")
        axis.set(
            xscale="log", xlim=(1, num_items), ylim=(0, 1), title=name, xlabel="rank of the held-out track"
        )
        axis.grid(alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="lower right")
    axes[0].set_ylabel("share of tracks ranked so high or higher")
    # Not of `tempfile`, whose files only their owner may read.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
