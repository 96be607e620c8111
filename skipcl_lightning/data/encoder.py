"""From sessions of external ids to batches, and from recommendations to external ids."""

from collections.abc import Container, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer, check_number, is_ordered
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.data.canonical_table import (
    GRADE_FLAG,
    Table,
    describe_columns,
    in_listening_order,
    name_unreadable,
    resolve_schema,
    to_frame,
)
from skipcl_lightning.data.prepare.inputs import ContextEncoder, to_context
from skipcl_lightning.data.prepare.sessions import runs_newest_first
from skipcl_lightning.data.store.listeners import ListenerHistories
from skipcl_lightning.data.store.session_store import SessionStore
from skipcl_lightning.data.vocabulary import UNKNOWN_CHOICES, ItemVocabulary, plain, to_ids

__all__ = [
    "SessionEncoder",
    "check_columns",
    "check_rows",
    "find_order",
    "flatten",
    "group_sessions",
    "recommendation_frame",
    "session_lengths",
]

Sessions = Sequence[Sequence[str]] | Sequence[Sequence[int]]
Context = Mapping[str, Sequence[Sequence[Any]] | None]
_ROW = "(row)"


@dataclass(frozen=True, eq=False, repr=False)
class SessionEncoder:
    """Turns sessions of external ids into a batch, exactly as in training.

    Args:
        vocabulary: The items' indices.
        max_length: The largest number of items of a session; the latest are kept.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        history_length: The largest number of items of a listener's history, 0 or more.
        context: What turns the context of plays into codes; None without it.

    Raises:
        TypeError: `vocabulary` is none, or a setting is no number.
        ValueError: A setting is out of range.

    Examples:
        >>> encoder = SessionEncoder(ItemVocabulary(["a", "b", "c"]), max_length=2)
        >>> batch = encoder.encode([["a", "b", "c"], ["b"]], [[1, 1, -1], [0.5]])
        >>> batch.items
        tensor([[2, 3],
                [2, 0]])
        >>> batch.skip_mask
        tensor([[False,  True],
                [False, False]])
    """

    vocabulary: ItemVocabulary
    max_length: int
    skip_threshold: float = 0.0
    history_length: int = 0
    context: ContextEncoder | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.vocabulary, ItemVocabulary):
            raise TypeError(
                f"`vocabulary` must be an ItemVocabulary, got {type(self.vocabulary).__name__}. "
                "Make one with `ItemVocabulary(ids)`."
            )
        check_integer("max_length", self.max_length)
        check_number("skip_threshold", self.skip_threshold, minimum=-1, maximum=1, open_minimum=True)
        check_integer("history_length", self.history_length, minimum=0)

    def replace(self, **changes: Any) -> "SessionEncoder":
        """Return an encoder with other values of some arguments.

        Examples:
            >>> SessionEncoder(ItemVocabulary([7]), max_length=50).replace(max_length=9).max_length
            9
        """
        return replace(self, **changes)

    def encode(
        self,
        sessions: Sessions,
        feedback: Sequence[Sequence[float]] | None = None,
        *,
        explicit_feedback: Sequence[Sequence[float]] | None = None,
        histories: Sessions | None = None,
        context: Context | None = None,
        unknown: str = "error",
    ) -> SessionBatch:
        """Return a batch of sessions.

        Args:
            sessions: B sessions, each a sequence of external ids in the order of listening.
            feedback: The feedback on each item, in [-1, 1]; None for 0, unknown.
            explicit_feedback: Likes and dislikes, in [-1, 1]: below 0 disliked, above 0 liked, 0 unknown.
            histories: For each session, the ids of the items that its listener listened to before, without
                rejected ones, the oldest first; perhaps none. The latest `history_length` are kept.
            context: By column of the log that the encoder's context needs, a value for each item of each
                session, None where it is unknown; or None in place of the column if all of it is unknown.
                `gap`, `hour` and `weekday` come from `timestamp`, a datetime or seconds since 1970.
            unknown: What to do with items that are not in the vocabulary: raise an `error`, or `ignore` them,
                their feedback and their context.

        Returns:
            A batch of B rows in the given order, with `session_index` 0 to B - 1.

        Raises:
            TypeError: An id has another type than the vocabulary's, a session is no sequence, or feedback is
                no number (a bool could mean skipped or listened).
            ValueError: There are no sessions, one is empty (or has only ignored items), has an unknown item,
                or its feedback has another length, is NaN or outside [-1, 1]. The message names the session,
                counted from 0. Or there are `histories`, but not one a session, or `history_length` is 0. Or
                a column of the context is missing, unknown to the encoder, or of another length or type.

        Examples:
            >>> encoder = SessionEncoder(ItemVocabulary([10, 20]), max_length=50)
            >>> encoder.encode([[10, 99, 20]], unknown="ignore").items
            tensor([[1, 2]])
        """
        check_choice("unknown", unknown, UNKNOWN_CHOICES)
        lengths = session_lengths(sessions)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        signals = _flat_feedback("feedback", feedback, lengths)
        explicit = _flat_feedback("explicit_feedback", explicit_feedback, lengths)
        plays = _context_table(self.context, context, owner, lengths)
        items = self._look_up(flatten(sessions), owner, unknown)
        known = items != PADDING_INDEX
        counts = np.bincount(owner[known], minlength=len(lengths))
        if not counts.all():
            raise ValueError(
                f"`sessions` must have a known track each, got none in session {counts.argmin()}. "
                "Leave such sessions out: nothing is known of them."
            )
        store = SessionStore(
            items=items[known].astype(np.int32),
            feedback=np.zeros(counts.sum(), dtype=np.float32) if signals is None else signals[known],
            offsets=np.concatenate(([0], np.cumsum(counts))),
            session_ids=pl.int_range(len(lengths), eager=True),
            explicit_feedback=None if explicit is None else explicit[known],
            # As in training, the last play is the last one of a known item.
            context=None if self.context is None else self.context.encode(plays.filter(pl.Series(known))),
        )
        rows = np.arange(len(lengths))
        return SessionBatch(
            **store.gather(rows, counts, max_length=self.max_length),
            session_index=torch.from_numpy(rows),
            history=None if histories is None else self._encode_histories(histories, len(lengths), unknown),
            skip_threshold=self.skip_threshold,
        )

    def _encode_histories(self, histories: Sessions, sessions: int, unknown: str) -> Tensor:
        """[B, H] int64, padded on the right with 0."""
        if not self.history_length:
            raise ValueError(
                "`histories` must be None for a model that was trained without, got some. Train with "
                "`SessionDataModule(..., history_length=n)`."
            )
        check_rows("histories", histories, sessions, cure="Use an empty one for an unknown listener.")
        lengths = session_lengths(histories, name="histories", may_be_empty=True)
        owner = np.repeat(np.arange(sessions), lengths)
        flat = flatten(histories)
        items = self._look_up(flat, owner, unknown, "histories")
        known = items != PADDING_INDEX
        stops = np.cumsum(np.bincount(owner[known], minlength=sessions))
        starts = np.concatenate(([0], stops[:-1]))
        found = ListenerHistories(items[known].astype(np.int32), starts, stops)
        return found.gather(np.arange(sessions), max_length=self.history_length)

    def _look_up(
        self, flat: list[Any], owner: NDArray[np.int64], unknown: str, name: str = "sessions"
    ) -> NDArray[np.int64]:
        """Return the indices of all items; for an unknown one, raise an error that names its session."""
        items = self.vocabulary.encode(to_ids(name, flat, self.vocabulary.dtype), unknown="ignore")
        missing = np.flatnonzero(items == PADDING_INDEX)
        if unknown == "error" and missing.size:
            raise ValueError(
                f"`{name}` must hold tracks of the vocabulary, got {flat[missing[0]]!r} in session "
                f"{owner[missing[0]]} ({missing.size} unknown in all). `unknown='ignore'` leaves them out."
            )
        return items

    def state_dict(self) -> dict[str, Any]:
        """Return the values for `from_state_dict`, which `torch.load(weights_only=True)` accepts.

        Examples:
            >>> list(SessionEncoder(ItemVocabulary([7]), max_length=50).state_dict())
            ['vocabulary', 'max_length', 'skip_threshold', 'history_length', 'context']
        """
        context = None if self.context is None else self.context.state_dict()
        return {**vars(self), "vocabulary": self.vocabulary.state_dict(), "context": context}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "SessionEncoder":
        """Rebuild an encoder that makes the same batches from the result of `state_dict`.

        Examples:
            >>> encoder = SessionEncoder(ItemVocabulary([7]), max_length=50)
            >>> SessionEncoder.from_state_dict(encoder.state_dict()).max_length
            50
        """
        vocabulary = ItemVocabulary.from_state_dict(state["vocabulary"])
        # Encoders of earlier versions had no histories and no context.
        return cls(
            vocabulary,
            state["max_length"],
            state["skip_threshold"],
            state.get("history_length", 0),
            to_context(state.get("context")),
        )


def _context_table(
    encoder: ContextEncoder | None,
    context: Context | None,
    owner: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> pl.DataFrame:
    """Return the columns of the context, a row for each item, after a check against the sessions."""
    needed = [] if encoder is None else encoder.columns
    given = {} if context is None else context
    check_columns(given, len(lengths))
    if missing := [name for name in needed if name not in given]:
        raise ValueError(
            f"`context` must have {', '.join(map(repr, missing))}, which the model was trained on, got "
            f"{', '.join(map(repr, given)) or 'nothing'}. Give a value for each track, or {{{missing[0]!r}: "
            "None} if all are unknown."
        )
    if foreign := [name for name in given if name not in needed]:
        raise ValueError(
            "`context` must have only what the model was trained on, "
            f"{', '.join(map(repr, needed)) or 'nothing'}, got {foreign[0]!r}. Leave it out."
        )
    columns = {name: _context_column(name, values, lengths) for name, values in given.items()}
    return pl.DataFrame({"session_id": owner, **columns})


def _context_column(
    name: str, values: Sequence[Sequence[Any]] | None, lengths: NDArray[np.int64]
) -> pl.Series:
    if values is None:
        return pl.Series([None] * int(lengths.sum()), dtype=pl.Null)
    if not all(is_ordered(one) for one in values):
        raise TypeError(
            f"`context` must have a sequence of values for each session in {name!r}, got {values!r}. Make it "
            "a list of lists."
        )
    found = [len(one) for one in values]
    if found != lengths.tolist():
        raise ValueError(
            f"`context` must have one value a track in {name!r}, got {found} for sessions of "
            f"{lengths.tolist()}. Use None where it is unknown."
        )
    flat = flatten(values)
    # polars takes True for the integer 1.
    if len({isinstance(value, bool) for value in flat if value is not None}) > 1:
        raise TypeError(f"`context` must have one type in {name!r}, got booleans and others. Convert them.")
    try:
        column = pl.Series(flat)
        is_plain = column.dtype != pl.Object and not column.dtype.is_nested()
    except Exception:  # Whatever polars raises for objects of any class.
        is_plain = False
    if not is_plain:
        raise TypeError(
            f"`context` must have one type in {name!r}, got {flat[:5]}. Convert the values to that of "
            "training."
        )
    return column


def group_sessions(
    table: Table, context: Sequence[str] = (), *, name: str = "sessions"
) -> dict[str, pl.Series | list[Any]]:
    """Return the sessions of a table of plays, a row for each.

    A session's rows are sorted by `position`, or else by `timestamp`, if there is one. Equal values stay in
    the order of the rows; equal times are reversed where the table runs from the newest row to the oldest,
    or have the order of `tie_order`. If a session has an unknown time, all its times count as equal.

    Args:
        table: `session_id`, `item_id`, perhaps `feedback` and `explicit_feedback`, where null is 0, and the
            columns of the order and the context. Rows of one session need not be neighbours.
        context: The columns that are needed besides.
        name: The caller's argument, for errors.

    Returns:
        `session_id`, a series of different ids in the order of their first plays; and for each other column
        a list with the values of each session.

    Raises:
        TypeError: It is no table, a column holds Python objects, or feedback is no number.
        ValueError: A column is missing, or the one of the order has another type or a row without a position.
    """
    frame = to_frame(name, table).lazy()
    schema = resolve_schema(name, frame)
    needed = ["session_id", "item_id", *context]
    if not set(needed) <= set(schema):
        raise ValueError(
            f"`{name}` must have the columns {', '.join(needed)}, got {describe_columns(schema)}. "
            "Rename its columns."
        )
    for column in needed:
        if schema[column] == pl.Object:
            raise TypeError(f"`{name}` must have text or numbers in {column!r}, got objects. Convert them.")
    signals = [column for column in ("feedback", "explicit_feedback") if column in schema]
    for column in signals:
        if not (schema[column].is_numeric() or schema[column] == pl.Null):
            raise TypeError(f"`{name}` must have numbers in {column!r}, got {schema[column]}. {GRADE_FLAG}")
    order = find_order(schema)
    placed = [column for column in (order, "tie_order") if column in schema and column not in needed]
    numbers = [pl.col(column).cast(pl.Float64).fill_null(0.0) for column in signals]
    with name_unreadable(name):
        rows = frame.select(*needed, *numbers, *placed).with_row_index(_ROW).collect()
    if order is not None:
        rows = _sort_by(rows, order, name)
    kept = ("item_id", *signals, *context)
    grouped = rows.group_by("session_id", maintain_order=True).agg(pl.col(_ROW).min(), *kept).sort(_ROW)
    return {"session_id": grouped["session_id"], **{column: grouped[column].to_list() for column in kept}}


def find_order(columns: Container[str]) -> str | None:
    """Return the column that orders the rows of a session, `position` or else `timestamp`, or None."""
    return next((column for column in ("position", "timestamp") if column in columns), None)


def _sort_by(rows: pl.DataFrame, order: str, name: str) -> pl.DataFrame:
    """Return rows in the order of a column, after a check of its type."""
    dtype = rows.schema[order]
    if not (dtype.is_numeric() or dtype in (pl.Datetime, pl.Date, pl.Null)):
        raise ValueError(
            f"`{name}` must have a number or a Datetime in column {order!r}, which orders the rows, got "
            f"{dtype}. Convert it, or leave it out if the rows have the order of listening."
        )
    place = rows[order].fill_nan(None) if dtype.is_float() else rows[order]
    if order == "position" and place.null_count():
        raise ValueError(
            f"`{name}` must have a position in every row, got null in {place.null_count():,}. Fill it in, or "
            "leave the column out if the rows have the order of listening."
        )
    if order == "timestamp" and "tie_order" not in rows.columns and runs_newest_first(rows.lazy()):
        rows = rows.with_columns(tie_order=-pl.col(_ROW).cast(pl.Int64))
    whole = pl.col(order).is_not_null().all().over("session_id")
    key = pl.when(whole).then(order) if place.null_count() else pl.col(order)
    return in_listening_order(rows.with_columns(place)).sort(key, maintain_order=True)


def session_lengths(
    sessions: Sessions, *, name: str = "sessions", may_be_empty: bool = False
) -> NDArray[np.int64]:
    """Return the number of items of each session, [B] int64, at least 1 each, if sessions have an order."""
    if not is_ordered(sessions):
        raise TypeError(
            f"`{name}` must be a sequence of sessions, got {type(sessions).__name__}. "
            "Make it a list of lists of ids."
        )
    if not len(sessions):
        raise ValueError(f"`{name}` must hold at least one session, got none. There is nothing to encode.")
    for number, session in enumerate(sessions):
        if not is_ordered(session):
            raise TypeError(
                f"`{name}` must hold sequences of ids in the order of listening, got {session!r} as "
                f"session {number}. Make each a list; put a single session into a list: `[session]`."
            )
        if not (len(session) or may_be_empty):
            raise ValueError(
                f"`sessions` must not be empty, got session {number} without a track. Leave it out."
            )
    return np.array([len(session) for session in sessions], dtype=np.int64)


def check_rows(name: str, values: object, sessions: int, *, cure: str = "Make it a list of lists.") -> None:
    """Raise unless an argument is a sequence with one entry for each session."""
    if not is_ordered(values):
        raise TypeError(
            f"`{name}` must be a sequence with one entry for each session, got {type(values).__name__}. "
            f"{cure}"
        )
    found = len(cast("Sized", values))
    if found != sessions:
        raise ValueError(f"`{name}` must have one sequence a session, got {found} for {sessions}. {cure}")


def check_columns(context: Context, sessions: int) -> None:
    """Raise unless a context has for each column one entry for each session, or None."""
    if not isinstance(context, Mapping):
        raise TypeError(
            f"`context` must be a dictionary of columns, got {type(context).__name__}. Write it as in "
            "{'timestamp': [[0, 60]]}."
        )
    for values in context.values():
        if values is not None:
            check_rows("context", values, sessions, cure="Use None for a column that is unknown.")


def flatten(sessions: Iterable[Iterable[Any]]) -> list[Any]:
    """Return the values of all sessions in one list."""
    return [value for one in sessions for value in plain(one)]


def _flat_feedback(
    name: str, feedback: Sequence[Sequence[float]] | None, lengths: NDArray[np.int64]
) -> NDArray[np.float32] | None:
    """Return the feedback of all items in one row, after a check against the sessions; None without any."""
    if feedback is None:
        return None
    check_rows(name, feedback, len(lengths), cure="Use 0 for tracks without feedback.")
    flat = []
    for number, (signals, length) in enumerate(zip(feedback, lengths, strict=True)):
        values = _to_numbers(name, signals, number)
        if len(signals) != length:
            raise ValueError(
                f"`{name}` must have one value a track, got {len(signals)} for {length} in session "
                f"{number}. Use 0 for tracks without feedback."
            )
        if not np.all((values >= -1) & (values <= 1)):
            raise ValueError(
                f"`{name}` must be in [-1, 1], got {list(signals)} in session {number}. "
                "Below 0 is a skip or a dislike, above 0 a play or a like."
            )
        flat.append(values.astype(np.float32))
    return np.concatenate(flat)


def _to_numbers(name: str, signals: Sequence[float], number: int) -> NDArray[Any]:
    """Return the feedback of one session as numbers."""
    signals = plain(signals)
    # numpy converts True beside other numbers to 1.0.
    flags = isinstance(signals, list | tuple) and any(isinstance(value, bool | np.bool_) for value in signals)
    try:
        values = np.asarray(signals)
    except ValueError:  # Lists of different lengths.
        values = np.empty((0, 0))
    if not values.size and values.ndim == 1:
        return values
    if flags or values.ndim != 1 or values.dtype.kind not in "iuf":
        got = signals if isinstance(signals, list | tuple) else values.tolist()
        raise TypeError(
            f"`{name}` must be numbers in [-1, 1], got {got!r} in session {number}. Grade a flag first: "
            "`1.0 if listened else -1.0`; use 0 for tracks without feedback."
        )
    return values


def recommendation_frame(
    session_ids: pl.Series,
    items: Tensor,
    scores: Tensor,
    vocabulary: ItemVocabulary,
    skip_probability: Tensor | None = None,
) -> pl.DataFrame:
    """Return recommendations as a table with external ids, one row for each, the best of a session first.

    Args:
        session_ids: The external id of each of the N sessions.
        items: [N, k] int64 indices in 0..V; 0 yields no row.
        scores: [N, k] float32.
        vocabulary: The items.
        skip_probability: [N, k] floating point; None for no such column.

    Returns:
        A frame with `session_id`, `rank` (from 1), `item_id`, `score` and perhaps `skip_probability`.

    Examples:
        >>> import torch
        >>> sessions, items = pl.Series(["monday"]), torch.tensor([[2, 1, 0]])
        >>> scores = torch.tensor([[0.5, 0.25, -torch.inf]])
        >>> recommendation_frame(sessions, items, scores, ItemVocabulary(["song", "tune"])).rows()
        [('monday', 1, 'tune', 0.5), ('monday', 2, 'song', 0.25)]
    """
    top_k = items.shape[1]
    values = {"score": scores}
    if skip_probability is not None:
        values["skip_probability"] = skip_probability
    table = pl.DataFrame(
        {
            "row": pl.int_range(items.numel(), eager=True),
            "index": items.flatten().cpu().numpy(),
            **{name: value.flatten().float().cpu().numpy() for name, value in values.items()},
        }
    ).filter(pl.col("index") != PADDING_INDEX)
    return table.select(
        session_ids.gather(table["row"] // max(top_k, 1)).alias("session_id"),
        (pl.col("row") % max(top_k, 1) + 1).alias("rank"),
        pl.Series("item_id", vocabulary.decode(table["index"].to_numpy()), dtype=vocabulary.dtype),
        *values,
    )
