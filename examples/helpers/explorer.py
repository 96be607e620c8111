"""What the skip explorer computes: tracks and their names, logged sessions, lists of next tracks, and a map.

Nothing here knows gradio. Tracks are named by their place in the model's vocabulary, from 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning import Recommender

LISTENED, SKIPPED = 1.0, -1.0
MOST_PLAYS = 100  # of a session; the oldest are forgotten
MOST_SESSIONS = 200  # of a log
MOST_ROWS = 200_000  # of a log, in which its first sessions are looked for
MOST_FOUND = 6  # tracks of a search
LONGEST_QUERY = 100  # characters
LONGEST_NAME = 80  # characters
LARGEST_LIST = 50  # recommendations
DEPTH = 500  # ranks that are remembered, to see from where a track moved


@dataclass(frozen=True)
class Play:
    """A track of a session, by its place in the vocabulary, with its feedback in [-1, 1]."""

    track: int
    feedback: float = LISTENED

    @property
    def skipped(self) -> bool:
        """Whether the track was skipped."""
        return self.feedback < 0


@dataclass(frozen=True)
class Move:
    """One row of the list: a track with its rank, and its rank before the last action."""

    track: int
    rank: int
    skip_probability: float | None
    before: int | None  # None: was not among the remembered ranks
    compared: bool  # False: there was no list before

    @property
    def text(self) -> str:
        """Return the move in signs: an arrow and by how many ranks."""
        if not self.compared:
            return ""
        if self.before is None:
            return "new"
        if self.before == self.rank:
            return "="
        return f"{'▲' if self.before > self.rank else '▼'} {abs(self.before - self.rank)}"

    @property
    def words(self) -> str:
        """Return the move in words, for screen readers and hints."""
        if not self.compared:
            return ""
        if self.before is None:
            return "new in the list"
        if self.before == self.rank:
            return "same rank"
        return f"{'up' if self.before > self.rank else 'down'} from rank {self.before}"


@dataclass(frozen=True)
class Moment:
    """A session with its list, and the list before the last action.

    Args:
        plays: The session, in the order of time.
        action: The last action in words.
        kind: The last action in a word. Actions of the dial in a row are one action.
        ranks: The rank of each track of the list.
        skips: The skip probability of each track of the list; empty for a model without a skip head.
        before: The ranks before the last action; empty if there was no list.
    """

    plays: tuple[Play, ...] = ()
    action: str = ""
    kind: str = ""
    ranks: Mapping[int, int] = field(default_factory=dict)
    skips: Mapping[int, float] = field(default_factory=dict)
    before: Mapping[int, int] = field(default_factory=dict)

    def moves(self, top_k: int) -> list[Move]:
        """Return the first `top_k` tracks of the list."""
        return [
            Move(track, rank, self.skips.get(track), self.before.get(track), bool(self.before))
            for track, rank in self.ranks.items()
            if rank <= top_k
        ]

    def gone(self, top_k: int) -> list[tuple[int, int | None]]:
        """Return the tracks that left the first `top_k` with the last action, and their ranks now."""
        return [
            (track, self.ranks.get(track))
            for track, rank in self.before.items()
            if rank <= top_k and self.ranks.get(track, DEPTH + 1) > top_k
        ]


class Explorer:
    """A recommender with named tracks, and a place on a map for each of them.

    Args:
        recommender: A trained model.
        names: `item_id` and `name` of tracks; None for ids alone. Tracks without a name have their id.
    """

    def __init__(self, recommender: Recommender, names: pl.DataFrame | None = None) -> None:
        self.recommender = recommender
        items = recommender.embed_items()
        self.ids: list[Any] = items["item_id"].to_list()
        self.places = {item: place for place, item in enumerate(self.ids)}
        self.names = name_tracks(items["item_id"], names)
        self._lower = pl.Series(self.names).str.to_lowercase()
        self._lower_ids = items["item_id"].cast(pl.String).str.to_lowercase()
        self.points, self.shown_variance = project(items["embedding"].to_numpy())
        encoder = recommender.encoder.context
        # All unknown: the page knows tracks and feedback alone.
        self._context = None if encoder is None else dict.fromkeys(encoder.columns)
        self.predicts_skips = recommender.scorer.predicts_skips

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, query: str) -> list[int]:
        """Return the tracks whose name or id contains the text, those that begin with it first."""
        text = " ".join(query[:LONGEST_QUERY].lower().split())
        if not text:
            return []
        names, ids = self._lower, self._lower_ids
        found = names.str.contains(text, literal=True) | ids.str.contains(text, literal=True)
        begins = names.str.starts_with(text) | ids.str.starts_with(text)
        places = [found & begins, found & ~begins]
        return [int(place) for part in places for place in part.arg_true().head(MOST_FOUND)][:MOST_FOUND]

    def press(self, plays: Sequence[Play], action: str, place: int) -> tuple[tuple[Play, ...], str]:
        """Return the session after a button, and the action in words.

        Args:
            plays: The session before.
            action: `listen` or `skip` a track, or `switch` a play between listened and skipped.
            place: The track's place in the vocabulary, or the play's place in the session.

        Raises:
            ValueError: There is no such action or place.
        """
        size = len(plays) if action == "switch" else len(self)
        if action not in ("listen", "skip", "switch") or type(place) is not int or not 0 <= place < size:
            raise ValueError("The button must be one of the page as it is now. Load the page again.")
        if action == "switch":
            track = plays[place].track
            play = Play(track, LISTENED if plays[place].skipped else SKIPPED)
            changed = (*plays[:place], play, *plays[place + 1 :])
            words = f"Changed {self.names[track]} to {'skipped' if play.skipped else 'listened'}"
            return changed, words
        play = Play(place, LISTENED if action == "listen" else SKIPPED)
        return (*plays, play), f"{'Skipped' if play.skipped else 'Listened to'} {self.names[place]}"

    def step(
        self,
        moment: Moment,
        plays: Sequence[Play],
        action: str,
        *,
        kind: str,
        penalty: float,
        leave_out_played: bool,
    ) -> Moment:
        """Return the moment after an action, with its new list.

        Args:
            moment: The moment before.
            plays: The session after the action.
            action: The action in words.
            kind: The action in a word; `dial` continues the `dial` before it, `open` begins anew.
            penalty: The weight of skip prediction in the scores, at least 0.
            leave_out_played: Leave out all tracks of the session, not only the skipped ones.
        """
        plays = tuple(plays)[-MOST_PLAYS:]
        before = moment.before if kind == moment.kind == "dial" else moment.ranks
        after = replace(
            moment, plays=plays, action=action, kind=kind, before={} if kind == "open" else before
        )
        if not plays:
            return replace(after, ranks={}, skips={}, before={})
        frame = self.recommender.recommend(
            [[self.ids[play.track] for play in plays]],
            [[play.feedback for play in plays]],
            context=self._context,
            top_k=min(DEPTH, len(self)),
            exclude_seen=leave_out_played,
            skip_penalty=penalty if self.predicts_skips else None,
        )
        tracks = [self.places[item] for item in frame["item_id"]]
        skips = frame["skip_probability"].to_list() if self.predicts_skips else []
        return replace(
            after,
            ranks=dict(zip(tracks, frame["rank"].to_list(), strict=True)),
            skips=dict(zip(tracks, skips, strict=False)),
        )


def name_tracks(ids: pl.Series, names: pl.DataFrame | None) -> list[str]:
    """Return the name of each id: the table's first, in one line and shortened, or else the id."""
    shown = ids.cast(pl.String)
    if names is not None:
        if not {"item_id", "name"} <= set(names.columns):
            raise ValueError(
                f"`names` must have the columns 'item_id' and 'name', got {', '.join(names.columns)}. "
                "Rename the columns of your table."
            )
        table = names.select(pl.col("item_id").cast(pl.String), pl.col("name").cast(pl.String))
        table = table.filter(pl.col("name").str.strip_chars() != "").unique("item_id", keep="first")
        joined = pl.DataFrame({"item_id": shown}).join(table, on="item_id", how="left", maintain_order="left")
        shown = joined["name"].fill_null(shown)
    # Control characters would break a line or a table.
    shown = shown.str.replace_all(r"[\p{Cc}\s]+", " ").str.strip_chars()
    return shown.to_frame("name").select(shorten(pl.col("name")))["name"].to_list()


def shorten(name: pl.Expr) -> pl.Expr:
    """Cut long names, and mark the cut."""
    long = name.str.len_chars() > LONGEST_NAME
    return pl.when(long).then(name.str.slice(0, LONGEST_NAME - 1) + "…").otherwise(name)


def project(embeddings: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Return [V, 2] coordinates on the two principal components, and the share of the variance they hold.

    The sign of each component is the one in which its largest loading is positive, so a map is drawn the
    same way each time.
    """
    centred = embeddings - embeddings.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes[:, ::-1][:, :2]
    if axes.shape[1] < 2:
        axes = np.concatenate([axes, np.zeros_like(axes)], axis=1)
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), [0, 1]] < 0, -1, 1)
    total = float(variances.sum())
    return centred @ axes, float(variances[-2:].sum()) / total if total > 0 else 1.0


def read_sessions(log: pl.LazyFrame, explorer: Explorer) -> dict[str, tuple[Play, ...]]:
    """Return the first sessions of a log by a label, with the tracks that the model knows.

    Args:
        log: A canonical table: `session_id`, `item_id`, `feedback`, and `position` or `timestamp`.
        explorer: The model's tracks.

    Raises:
        ValueError: A column is missing, or no session has a track that the model knows.
    """
    columns = log.collect_schema().names()
    order = [column for column in ("timestamp", "position") if column in columns]
    missing = {"session_id", "item_id", "feedback"} - set(columns)
    if missing or not order:
        raise ValueError(
            "`log` must have the columns 'session_id', 'item_id', 'feedback' and 'position' or 'timestamp', "
            f"got {', '.join(columns)}. `skipcl prepare` and `read_table` write such tables."
        )
    first = log.select("session_id").head(MOST_ROWS).unique(maintain_order=True).head(MOST_SESSIONS)
    rows = (
        log.select("session_id", "item_id", "feedback", *order)
        .join(first, on="session_id", how="semi")
        .sort(order)
        .group_by("session_id", maintain_order=True)
        .tail(MOST_PLAYS)
    )
    sessions: dict[object, list[Play]] = {}
    for session, item, feedback in rows.select("session_id", "item_id", "feedback").collect().iter_rows():
        if item in explorer.places:
            play = Play(explorer.places[item], 0.0 if feedback is None else feedback)
            sessions.setdefault(session, []).append(play)
    if not sessions:
        raise ValueError(
            f"`log` must have tracks that the model knows, got none in its first {first.collect().height} "
            "sessions. Give the log that the model was trained on."
        )
    return {describe_session(session, plays): tuple(plays) for session, plays in sorted_by_id(sessions)}


def sorted_by_id(sessions: dict[object, list[Play]]) -> list[tuple[object, list[Play]]]:
    """Return sessions in the order of their ids, numbers as numbers."""
    return sorted(sessions.items(), key=lambda pair: (isinstance(pair[0], str), pair[0]))


def describe_session(session: object, plays: Sequence[Play]) -> str:
    """Return the label of a logged session."""
    skips = sum(play.skipped for play in plays)
    name = " ".join(str(session).split())[:LONGEST_NAME]
    return f"{name}: {len(plays)} tracks, {skips} skipped"


def read_names(path: Path | None, log: pl.LazyFrame | None) -> pl.DataFrame | None:
    """Return `item_id` and `name` from a Parquet file, or else from a column `name` of the log."""
    if path is not None:
        return pl.read_parquet(path)
    if log is None or "name" not in log.collect_schema():
        return None
    return (
        log.select("item_id", "name")
        .drop_nulls()
        .unique("item_id", keep="first", maintain_order=True)
        .collect()
    )
