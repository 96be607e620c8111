"""What stands in the logs of the Music Streaming Sessions Dataset, and how often, as counted in excerpts."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning.data.simulate import EARLY, Floats, Integers

__all__ = ["LONGEST", "NAMED", "draw_ids", "draw_lengths", "flag_skips", "surround_tracks", "tell_severity"]

LONGEST = 20

# Counts over both excerpts, unless said otherwise: 1,381 rows of 180 sessions.
_LENGTHS = [22, 9, 14, 16, 5, 12, 2, 6, 5, 5, 84]  # 10 to 20
_HOURS = [5, 6, 3, 1, 2, 5, 5, 8, 4, 8, 9, 8, 6, 14, 6, 12, 11, 18, 7, 8, 10, 11, 10, 3]  # 0 to 23
_PREMIUM = [32, 148]
_CONTEXTS = ["catalog", "charts", "editorial_playlist", "personalized_playlist", "radio", "user_collection"]
_CONTEXT_COUNTS = [38, 3, 41, 9, 27, 62]
_SHUFFLES = [[238, 67], [17, 9], [185, 128], [51, 3], [199, 0], [299, 185]]  # without and with, by context
_SEEKS_FORWARD, _SEEKS_BACK = [1356, 19, 4, 1, 1], [1338, 30, 6, 4, 1, 2]
# How a track ends, by what its flags say: skip_1, skip_2 but not 1, skip_3 but not 2, none, not_skipped.
_ENDS = ["trackdone", "fwdbtn", "endplay", "logout", "backbtn"]
_ENDINGS = [[0, 375, 35, 0], [1, 127, 34, 0], [6, 141, 47, 2], [4, 12, 7, 0], [484, 2, 2, 0]]
_BACK_BUTTON, _BEGINNING = 4, 5
# How the next one starts, by the end before it; the last row is a session's first track.
_STARTS = ["trackdone", "fwdbtn", "backbtn", "clickrow", "appload", "playbtn", "remote"]
_STARTINGS = [
    [1, 0, 0, 0, 0, 0, 0],
    [0, 1, 0, 0, 0, 0, 0],
    [2, 1, 0, 106, 2, 1, 2],
    [0, 1, 0, 0, 1, 0, 0],
    [0, 0, 1, 0, 0, 0, 0],
    [3, 4, 0, 3, 0, 1, 0],  # of the complete excerpt, the only one with first tracks
]
# No pause, a short one, a long one; and rows without and with a switch of context; by start.
_PAUSES = [[309, 167, 25], [568, 50, 9], [92, 3, 2], [117, 11, 7], [0, 2, 2], [1, 1, 0], [1, 1, 1]]
_SWITCHES = [[499, 2], [626, 1], [97, 0], [82, 53], [3, 1], [0, 2], [1, 2]]
# Whether the hour, local to the listener, is of the day before the log's: none before 17.
_DAY_BEFORE = [[1, 0]] * 17 + [[15, 3], [6, 1], [4, 4], [0, 10], [0, 11], [0, 10], [0, 3]]

# Fitted, so that the shares of the flags are those of the complete excerpt and the hour changes as often.
_BOUNDS = [EARLY, -0.332, 0.0, 0.727]
_MINUTES = np.array([0.1, 0.4, 2.0, 3.2, 3.5])

# The columns that are drawn as numbers, with the words that the numbers stand for.
NAMED = {
    "context_type": pl.Series(_CONTEXTS),
    "hist_user_behavior_reason_start": pl.Series(_STARTS),
    "hist_user_behavior_reason_end": pl.Series(_ENDS),
}


def draw_lengths(random: np.random.Generator, count: int) -> Integers:
    """[count] the numbers of tracks of sessions, 10 to 20."""
    return LONGEST + 1 - len(_LENGTHS) + _draw(random, _LENGTHS, count)


def tell_severity(feedback: Floats) -> Integers:
    """Of the same shape: 0 for skip_1, 1 for skip_2, 2 for skip_3, 3 for no flag, 4 for not_skipped."""
    return np.digitize(feedback, _BOUNDS)


def flag_skips(severities: Integers) -> dict[str, NDArray[np.bool_]]:
    """The four flags, of which each skip includes the later ones."""
    flags = {f"skip_{number}": severities < number for number in (1, 2, 3)}
    return {**flags, "not_skipped": severities == len(_BOUNDS)}


def surround_tracks(
    random: np.random.Generator, severities: Integers, goes_back: NDArray[np.bool_]
) -> dict[str, NDArray[np.generic]]:
    """The columns that tell how and where the tracks were played, by what became of them."""
    count = len(severities)
    ends = np.where(goes_back, _BACK_BUTTON, _draw(random, _ENDINGS, severities))
    starts = _draw(random, _STARTINGS, np.insert(ends[:, :-1], 0, _BEGINNING, axis=1))
    first = np.zeros(severities.shape, dtype=np.bool_)
    first[:, 0] = True
    switches = (_draw(random, _SWITCHES, starts) == 1) & ~first
    # At a switch there is a new context; until the next one it stays.
    contexts = _draw(random, _CONTEXT_COUNTS, severities.shape)
    shuffles = _draw(random, _SHUFFLES, contexts)
    since = np.maximum.accumulate(np.where(switches, np.arange(severities.shape[1]), 0), axis=1)
    pauses = np.where(first, -1, _draw(random, _PAUSES, starts))
    hours = _draw(random, _HOURS, (count, 1))
    before = _draw(random, _DAY_BEFORE, hours)
    minutes = _MINUTES[severities]
    elapsed = 60 * random.random((count, 1)) + np.cumsum(minutes, axis=1) - minutes
    hours = hours + (elapsed // 60).astype(np.int64)
    return {
        "context_switch": switches.astype(np.int8),
        "no_pause_before_play": (pauses == 0).astype(np.int8),
        "short_pause_before_play": (pauses == 1).astype(np.int8),
        # In the excerpts a short pause is always flagged as a long one too.
        "long_pause_before_play": (pauses >= 1).astype(np.int8),
        "hist_user_behavior_n_seekfwd": _draw(random, _SEEKS_FORWARD, severities.shape),
        "hist_user_behavior_n_seekback": _draw(random, _SEEKS_BACK, severities.shape),
        "hist_user_behavior_is_shuffle": np.take_along_axis(shuffles, since, axis=1) == 1,
        "hour_of_day": hours % 24,
        "date": hours // 24 - before,
        "premium": _draw(random, _PREMIUM, (count, 1)) == 1,
        "context_type": np.take_along_axis(contexts, since, axis=1),
        "hist_user_behavior_reason_start": starts,
        "hist_user_behavior_reason_end": ends,
    }


def _draw(
    random: np.random.Generator,
    counts: list[int] | list[list[int]],
    kinds: Integers | int | tuple[int, ...],
) -> Integers:
    """Numbers in proportion to the counts: those of each kind, or, for a shape, the only ones."""
    table = np.atleast_2d(np.array(counts))
    kinds = kinds if isinstance(kinds, np.ndarray) else np.zeros(kinds, dtype=np.int64)
    cumulative: Floats = np.cumsum(table, axis=1) / np.sum(table, axis=1, keepdims=True)
    values = random.random(kinds.shape)
    drawn: Integers = np.zeros(kinds.shape, dtype=np.int64)
    for column in cumulative.T[:-1]:
        drawn += values >= column[kinds]
    return drawn


def draw_ids(random: np.random.Generator, count: int) -> pl.Series:
    """[count] random ids of the form of a UUID, version 4."""
    numbers = random.integers(256, size=(count, 16), dtype=np.uint8)
    numbers[:, 6] = numbers[:, 6] & 0x0F | 0x40
    numbers[:, 8] = numbers[:, 8] & 0x3F | 0x80
    digits = np.frombuffer(numbers.tobytes().hex().encode(), dtype=np.uint8).reshape(count, 32)
    text = np.insert(digits, [8, 12, 16, 20], ord("-"), axis=1)  # [count, 36]
    lines = np.insert(text, 36, ord("\n"), axis=1).tobytes().decode().rstrip("\n")
    return pl.Series("id", [lines]).str.split("\n").explode(empty_as_null=False)
