"""The sessions that all libraries get: made up, of 5 to 20 tracks, with a skewed popularity."""

from pathlib import Path

import numpy as np
from common import HELD_OUT

# Like the Music Streaming Sessions Dataset, in which about half of all tracks are skipped.
SKIP_SHARE = 0.5
SHORTEST, LONGEST = 5, 20


def write_sessions(path: Path, num_items: int, num_sessions: int, seed: int = 0) -> int:
    """Write sessions in which each of the items is trained on at least once.

    Else the catalogues would differ, since some libraries count only the items that training has. Where the
    items need more sessions than are asked for, there are more: half of the tracks that are trained on then
    are each item once, the others are drawn by popularity (Zipf).

    Args:
        path: The file, in numpy's npz format.
        num_items: V.
        num_sessions: At least so many.
        seed: Of all that is drawn.

    Returns:
        How many sessions there are.
    """
    random = np.random.default_rng(seed)
    trained = (SHORTEST + LONGEST) / 2 - HELD_OUT
    num_sessions = max(num_sessions, int(2 * num_items / trained) + 1)
    lengths = random.integers(SHORTEST, LONGEST + 1, num_sessions)
    plays = int(lengths.sum())
    popularity = np.cumsum(1.0 / np.arange(1, num_items + 1))
    order = 1 + random.permutation(num_items)
    drawn = np.searchsorted(popularity, popularity[-1] * random.random(plays))
    items = order[np.minimum(drawn, num_items - 1)]
    starts = np.cumsum(lengths) - lengths
    positions = np.arange(plays) - np.repeat(starts, lengths)
    training = np.flatnonzero(positions < np.repeat(lengths - HELD_OUT, lengths))
    items[random.choice(training, num_items, replace=False)] = order
    skipped = random.random(plays) < SKIP_SHARE
    skipped[starts] = False  # a session that nobody listened to would be dropped, by us alone
    np.savez(path, items=items, skipped=skipped, lengths=lengths, num_items=num_items)
    return num_sessions
