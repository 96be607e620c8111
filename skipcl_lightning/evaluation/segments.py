"""Segments of sessions, by which a report is split."""

from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

__all__ = ["SEGMENTS", "add_segments", "popularity_deciles"]

# Column name to its title in the report.
SEGMENTS = {
    "length_segment": "session length",
    "popularity_segment": "popularity of the target",
    "skip_segment": "skip rate of the session",
    "repeat_segment": "repeat or explore",
}
_LENGTHS = (5, 10, 20, 50, 100)
_SKIP_RATES = (0.25, 0.5, 0.75)


def popularity_deciles(item_counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the popularity decile of each item, by its count in the training set.

    Args:
        item_counts: [V + 1] int64; index 0 is padding and has no decile.

    Returns:
        [V + 1] int64: from 1 for the most frequent tenth to 10 for the least; 0 at padding. Ties are
        ordered by item index.

    Examples:
        >>> popularity_deciles(np.array([0, 5, 9]))
        array([0, 6, 1])
    """
    order = np.argsort(-item_counts[1:], kind="stable")
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return np.concatenate(([0], 10 * places // len(order) + 1))


def add_segments(sessions: pl.DataFrame) -> pl.DataFrame:
    """Add a column for each segmentation in `SEGMENTS`.

    Args:
        sessions: Rows with `length`, `popularity_decile`, `target_count`, `skip_rate` and `repeat`. Targets
            without plays in the training set are a segment of their own.

    Returns:
        The rows with the new columns, which are ordered categories.

    Examples:
        >>> row = {"length": 7, "popularity_decile": 9, "target_count": 0, "skip_rate": 0, "repeat": True}
        >>> add_segments(pl.DataFrame([row])).select(pl.col(SEGMENTS)).row(0)
        ('6-10', 'not in training', 'none', 'repeat')
    """
    lengths = [f"1-{_LENGTHS[0]}"]
    lengths += [f"{low + 1}-{high}" for low, high in pairwise(_LENGTHS)]
    lengths.append(f"over {_LENGTHS[-1]}")
    deciles = ["1 (most played)", *map(str, range(2, 10)), "10 (least played)", "not in training"]
    rates = ["none", "up to 25 %", "25 to 50 %", "50 to 75 %", "over 75 %"]
    length, rate, decile = (
        sessions[name].to_numpy() for name in ("length", "skip_rate", "popularity_decile")
    )
    places = {
        # A boundary value belongs to the lower segment.
        "length_segment": (lengths, np.searchsorted(_LENGTHS, length, side="left")),
        "popularity_segment": (deciles, np.where(sessions["target_count"].to_numpy() > 0, decile - 1, 10)),
        "skip_segment": (rates, np.searchsorted((0.0, *_SKIP_RATES), rate, side="left")),
        "repeat_segment": (["repeat", "explore"], (~sessions["repeat"].to_numpy()).astype(np.int64)),
    }
    return sessions.with_columns(
        pl.Series(column, np.array(names)[place], dtype=pl.Enum(names))
        for column, (names, place) in places.items()
    )
