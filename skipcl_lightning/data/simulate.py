"""Simulated listening with a known truth, in which skips carry information."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning._checks import check_integer, check_number

__all__ = ["EARLY", "Catalogue", "Floats", "Habits", "Integers", "listen", "simulate_sessions"]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

_CENTRE = 0.245  # the distance at which a skip is as likely as not; gives 41 % skips at the default
_SLOPE = 9.0
EARLY = -0.473  # feedback below it is a skip that is early enough for the listener to go back


@dataclass(frozen=True)
class Habits:
    """The probabilities with which the player proposes and the listener skips."""

    follow: float
    explore: float
    drift: float
    response: float
    skip_bias: float | Floats  # for all sessions, or one each
    going_back: float = 0.0  # how often an early skip leads to the track before


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The items: [V] moods, successors, and cumulated popularity in the order of moods."""

    moods: Integers
    successors: Integers
    by_mood: Integers  # items, those of one mood together
    cumulative: Floats  # [V + 1] popularity, summed over `by_mood`
    first: Integers  # [moods + 1] where each mood begins in `by_mood`

    @classmethod
    def make(
        cls, random: np.random.Generator, num_items: int, num_moods: int, exponent: float
    ) -> "Catalogue":
        """Return items with random moods, ranks and successors."""
        moods = random.permutation(np.arange(num_items) % num_moods)
        popularity = (1.0 + random.permutation(num_items)) ** -exponent
        by_mood = np.argsort(moods, kind="stable")
        first = np.searchsorted(moods[by_mood], np.arange(num_moods + 1))
        # The next item of the same mood; the last one's successor is the mood's first.
        following = np.arange(1, num_items + 1)
        following[first[1:] - 1] = first[:-1]
        successors = np.empty(num_items, dtype=np.int64)
        successors[by_mood] = by_mood[following]
        cumulative = np.concatenate(([0.0], np.cumsum(popularity[by_mood])))
        return cls(moods, successors, by_mood, cumulative, first)

    @property
    def num_moods(self) -> int:
        """The number of moods."""
        return len(self.first) - 1

    def draw(self, random: np.random.Generator, moods: Integers) -> Integers:
        """Return [N] items of the given moods, drawn by popularity."""
        low, high = self.cumulative[self.first[moods]], self.cumulative[self.first[moods + 1]]
        return self._find(low + (high - low) * random.random(len(moods)), moods, moods)

    def draw_any(self, random: np.random.Generator, count: int) -> Integers:
        """Return [count] items of any mood, drawn by popularity."""
        return self._find(self.cumulative[-1] * random.random(count), 0, self.num_moods - 1)

    def _find(self, sums: Floats, lowest: Integers | int, highest: Integers | int) -> Integers:
        """Return the items at some sums of popularity, within moods."""
        places = np.searchsorted(self.cumulative, sums, side="right") - 1
        # A sum that is rounded up would otherwise fall into the next mood.
        items: Integers = self.by_mood[np.clip(places, self.first[lowest], self.first[highest + 1] - 1)]
        return items

    def distance(self, one: Integers, other: Integers) -> Floats:
        """Return [N] distances between moods on the circle, divided by half the circle."""
        apart = np.abs(one - other)
        shares: Floats = np.minimum(apart, self.num_moods - apart) / (self.num_moods / 2)
        return shares


def simulate_sessions(
    num_sessions: int = 4000,
    *,
    num_items: int = 1000,
    num_moods: int = 20,
    min_length: int = 10,
    max_length: int = 20,
    popularity_exponent: float = 1.0,
    follow_probability: float = 0.55,
    explore_probability: float = 0.2,
    drift_probability: float = 0.05,
    response_probability: float = 0.8,
    skip_bias: float = 0.0,
    seed: int = 0,
) -> pl.LazyFrame:
    """Simulate a player that proposes items and a listener who skips those of the wrong mood.

    The truth:

    - Moods lie on a circle; the distance of two is their way on the circle divided by half the circle, in
      [0, 1]. Each item has one mood, all moods have equally many items (up to one), and items are played in
      proportion to `rank ** -popularity_exponent` (Zipf).
    - A session has a mood, which moves to a neighbouring one with `drift_probability` after an item.
    - The player has an anchor, at first an item of the session's mood. It proposes: with
      `explore_probability`, any item by popularity; with `follow_probability`, the one fixed successor of the
      anchor, which shares its mood; otherwise an item of the anchor's mood by popularity. So items may
      repeat.
    - The listener skips with probability `sigmoid(9 * (distance - 0.245) + skip_bias)`, with the distance
      between the moods of the item and the session. By default 41 % are skipped.
    - A listened item becomes the anchor. A skipped one does with probability 1 - `response_probability`;
      otherwise the player leaves its mood, for the previous anchor or, if that has the same mood, for an item
      of a neighbouring mood. So a skip helps to predict the next item.
    - Feedback: a skip after the share r of an item has r - 1, where r is `0.9 * u ** (1 + distance)` for a
      uniform u, so items of a distant mood are skipped earlier. Of the items that are not skipped, 4 in 5 are
      played to the end and have 1, the others 0.5 to 1.

    Args:
        num_sessions: The number of sessions.
        num_items: V, at least `num_moods`. Items that are never played are not in the table.
        num_moods: The number of moods, at least 2.
        min_length: The least length of a session.
        max_length: The largest length; lengths are uniform between the two.
        popularity_exponent: The skew of popularity, 0 or more; 0 for equal popularity.
        follow_probability: Probability of the successor, in [0, 1].
        explore_probability: Probability of any item, in [0, 1]; the sum of both is at most 1.
        drift_probability: Probability that the mood moves, in [0, 1].
        response_probability: Probability that the player reacts to a skip, in [0, 1].
        skip_bias: Added to the log-odds of every skip; more skips above 0.
        seed: Seed of all draws.

    Returns:
        A lazy canonical table with `session_id` (Int64 from 0), `item_id` (String), `feedback` and `position`
        (Int64 from 1), and the truth: `session_mood` and `item_mood` (Int64), and `skip_probability`
        (Float64).

    Raises:
        TypeError: A setting is no number.
        ValueError: A setting is out of range.

    Examples:
        >>> log = simulate_sessions(100, seed=7).collect()
        >>> log["session_id"].n_unique(), log["feedback"].is_between(-1, 1).all()
        (100, True)
    """
    check_integer("num_sessions", num_sessions)
    check_integer("num_moods", num_moods, minimum=2)
    check_integer("num_items", num_items, minimum=num_moods, cure="Every mood needs an item.")
    check_integer("min_length", min_length)
    check_integer("max_length", max_length, minimum=min_length, cure="`min_length` is not more than it.")
    check_integer("seed", seed, minimum=0)
    check_number("popularity_exponent", popularity_exponent, minimum=0)
    check_number("skip_bias", skip_bias)
    check_number("explore_probability", explore_probability, minimum=0, maximum=1)
    check_number("follow_probability", follow_probability, minimum=0, maximum=1 - explore_probability)
    check_number("drift_probability", drift_probability, minimum=0, maximum=1)
    check_number("response_probability", response_probability, minimum=0, maximum=1)
    habits = Habits(
        follow_probability, explore_probability, drift_probability, response_probability, skip_bias
    )
    random = np.random.default_rng(seed)
    catalogue = Catalogue.make(random, num_items, num_moods, popularity_exponent)
    lengths = random.integers(min_length, max_length + 1, size=num_sessions)
    moods = random.integers(num_moods, size=num_sessions)
    return _to_table(catalogue, lengths, listen(random, catalogue, habits, moods, max_length))


def listen(
    random: np.random.Generator, catalogue: Catalogue, habits: Habits, moods: Integers, num_positions: int
) -> dict[str, list[NDArray[np.generic]]]:
    """Return all sessions, position by position: lists of [sessions] arrays by column."""
    columns: dict[str, list[NDArray[np.generic]]] = {}
    anchors = before = tracks = catalogue.draw(random, moods)
    goes_back = np.zeros(len(moods), dtype=np.bool_)
    for position in range(num_positions):
        proposed = _propose(random, catalogue, habits, anchors)
        before, tracks = tracks, np.where(goes_back, before, proposed)
        distances = catalogue.distance(catalogue.moods[tracks], moods)
        probabilities = 1 / (1 + np.exp(-(_SLOPE * (distances - _CENTRE) + habits.skip_bias)))
        skipped = random.random(len(moods)) < probabilities
        feedback = _rate(random, skipped, distances)
        # No number is drawn without the habit, and at the first item.
        if habits.going_back and position:
            goes_back = (feedback < EARLY) & (random.random(len(moods)) < habits.going_back)
        row = {
            "track": tracks,
            "session_mood": moods,
            "skip_probability": probabilities,
            "feedback": feedback,
            "goes_back": goes_back,
        }
        for name, values in row.items():
            columns.setdefault(name, []).append(values)
        heeded = skipped & (random.random(len(moods)) < habits.response)
        anchors = np.where(heeded, _move_away(random, catalogue, anchors, tracks), tracks)
        drifts = random.random(len(moods)) < habits.drift
        moods = (moods + drifts * random.choice([-1, 1], size=len(moods))) % catalogue.num_moods
    return columns


def _propose(
    random: np.random.Generator, catalogue: Catalogue, habits: Habits, anchors: Integers
) -> Integers:
    """[sessions] the player's next items."""
    choice = random.random(len(anchors))
    tracks = catalogue.draw(random, catalogue.moods[anchors])
    tracks = np.where(choice < habits.follow, catalogue.successors[anchors], tracks)
    explored = choice >= 1 - habits.explore
    return np.where(explored, catalogue.draw_any(random, len(anchors)), tracks)


def _move_away(
    random: np.random.Generator, catalogue: Catalogue, anchors: Integers, skipped: Integers
) -> Integers:
    """[sessions] the player's anchors after a skip, which are not of the skipped item's mood."""
    steps = random.choice([-1, 1], size=len(skipped))
    beside = catalogue.draw(random, (catalogue.moods[skipped] + steps) % catalogue.num_moods)
    return np.where(catalogue.moods[anchors] == catalogue.moods[skipped], beside, anchors)


def _rate(random: np.random.Generator, skipped: NDArray[np.bool_], distances: Floats) -> Floats:
    """[sessions] the feedback, by the share of the item that was played."""
    played = 0.9 * random.random(len(skipped)) ** (1 + distances)
    listened = np.where(random.random(len(skipped)) < 0.8, 1.0, 0.5 + 0.5 * random.random(len(skipped)))
    return np.where(skipped, played - 1, listened)


def _to_table(
    catalogue: Catalogue, lengths: Integers, columns: dict[str, list[NDArray[np.generic]]]
) -> pl.LazyFrame:
    """Return the existing positions, session after session."""
    rows = {name: np.stack(values, axis=1) for name, values in columns.items()}  # [sessions, positions]
    sessions, positions = np.nonzero(np.arange(rows["track"].shape[1]) < lengths[:, None])
    flat = {name: values[sessions, positions] for name, values in rows.items()}
    tracks = flat.pop("track")
    names = pl.Series([f"track-{number}" for number in range(len(catalogue.moods))])
    table = pl.DataFrame(
        {
            "session_id": sessions,
            "item_id": names.gather(tracks),
            "feedback": flat["feedback"].astype(np.float32),
            "position": positions + 1,
            "session_mood": flat["session_mood"],
            "item_mood": catalogue.moods[tracks],
            "skip_probability": flat["skip_probability"],
        }
    )
    return table.lazy()
