"""Sessions and skips from a listening history: cut at pauses, labelled by the next play."""

from collections.abc import Sequence
from functools import partial

import polars as pl

from skipcl_lightning._checks import check_choice, check_number
from skipcl_lightning.data.canonical_table import (
    Table,
    count_missing,
    describe_columns,
    first_rows,
    in_canonical_order,
    in_listening_order,
    refuse_compact_dates,
    resolve_schema,
    to_frame,
)

__all__ = [
    "PLAIN_HISTORY",
    "cut_at_gaps",
    "cut_history",
    "feedback_from_ratio",
    "flag_to_feedback",
    "join_histories",
    "label_and_cut",
    "label_by_next_play",
    "require_plays",
    "runs_newest_first",
    "sessionise",
    "times_fall",
    "to_microseconds",
]

PLAY_RATIO_LABELS = ("binary", "ratio")
_MICROSECONDS = 1_000_000
_PLACE = "(place)"
# More than the rows of any file, so that the next file's come after them.
_MOST_ROWS = 1 << 40
_ROWS_LOOKED_AT = 10_000
_FEWEST_FALLS = 3
_OWN_SESSIONS = "Or give the table sessions of its own, as `session_id`."
PLAIN_HISTORY = "`gap_minutes=None` returns the plain history, which can be filtered and then cut."


def sessionise(frame: Table, *, gap_minutes: float, duration: str | None = None) -> pl.LazyFrame:
    """Number the sessions of a history; a pause longer than `gap_minutes` starts a new one.

    With a `user_id`, each user's plays are cut separately and a session is named `"user/number"`, so later
    plays do not change the names of earlier sessions. Without it, the name is the number.

    Args:
        frame: A table with `timestamp` (Datetime, or a number of seconds), the start of a play, and
            optionally `user_id`. Other columns are kept.
        gap_minutes: The longest pause within a session, above 0. A pause of exactly this length is within.
        duration: The column with the length of a play in seconds; the pause then begins at the end of a play,
            otherwise at its start. Null and NaN count as 0.

    Returns:
        The table, sorted by user and time (equal times in the row order), with `session_id`: String with a
        `user_id`, else Int64 from 0.

    Raises:
        TypeError: `frame` is no table or `gap_minutes` no number.
        ValueError: A column is missing, `timestamp` has another type, the table has a `session_id` already,
            or `gap_minutes` is not above 0. When collected: a row has no user or no time.

    Examples:
        >>> plays = pl.DataFrame({"item_id": ["a", "b", "c"], "timestamp": [0, 600, 3000]})
        >>> sessionise(plays, gap_minutes=20).collect()["session_id"].to_list()
        [0, 0, 1]
    """
    history = _open_history(frame, "session_id", "cut the sessions", duration)
    # Of small integers, the product would not fit into their own type.
    length = pl.lit(0) if duration is None else pl.col(duration).cast(pl.Float64) * _MICROSECONDS
    length = length.round().cast(pl.Int64, strict=False).fill_null(0)
    return cut_history(history, "frame", _OWN_SESSIONS, gap_minutes=gap_minutes, length=length)


def cut_history(
    history: pl.LazyFrame, name: str, cure: str, *, gap_minutes: float, length: pl.Expr | int = 0
) -> pl.LazyFrame:
    """Cut a history like `sessionise`; errors have the name and the cure. `length` is in microseconds."""
    start = _start(history)
    plays = _by_time(require_plays(history, name, cure))
    return cut_at_gaps(plays, start, start + length, gap_minutes)


def label_by_next_play(frame: Table, *, skip_seconds: float) -> pl.LazyFrame:
    """Label skips in a log of starts: an item was skipped if the next play began soon after it.

    The next play is the same user's, in any session, so an item before a long pause counts as listened. The
    last play of a user has no next one; its feedback is 0, unknown.

    Args:
        frame: A table with `timestamp` (Datetime, or a number of seconds), the start of a play, and
            optionally `user_id`; without it all plays are of one user. Other columns are kept.
        skip_seconds: The longest time in seconds from the start of a skipped item to the next start, above 0.
            Exactly this long is a skip.

    Returns:
        The table, sorted by user and time (equal times in the row order), with `feedback` (Float32): -1
        skipped, +1 listened, 0 unknown.

    Raises:
        TypeError: `frame` is no table or `skip_seconds` no number.
        ValueError: `timestamp` is missing or has another type, the table has a `feedback` already, or
            `skip_seconds` is not above 0. When collected: a row has no user or no time.

    Examples:
        >>> plays = pl.DataFrame({"user_id": ["u", "u", "v"], "timestamp": [0, 20, 25]})
        >>> label_by_next_play(plays, skip_seconds=30).collect()["feedback"].to_list()
        [-1.0, 0.0, 0.0]
    """
    check_number("skip_seconds", skip_seconds, minimum=0, open_minimum=True)
    history = _open_history(frame, "feedback", "tell the skips")
    return _label(require_plays(history, "frame", _OWN_SESSIONS), skip_seconds)


def _label(history: pl.LazyFrame, skip_seconds: float) -> pl.LazyFrame:
    """Sort a history, and add the feedback."""
    start = _start(history)
    pause = start.shift(-1) - start
    if "user_id" in history.collect_schema():
        pause = pl.when(pl.col("user_id") == pl.col("user_id").shift(-1)).then(pause)
    skipped = pause <= _whole_microseconds(skip_seconds)
    return _by_time(history).with_columns(flag_to_feedback(skipped).alias("feedback"))


def _start(history: pl.LazyFrame) -> pl.Expr:
    """Return the start of each play in microseconds."""
    return to_microseconds(pl.col("timestamp"), history.collect_schema()["timestamp"])


def _by_time(history: pl.LazyFrame) -> pl.LazyFrame:
    """Sort a history by user and time; equal times stay in the row order."""
    users = ["user_id"] if "user_id" in history.collect_schema() else []
    return history.sort(*users, "timestamp", maintain_order=True)


def flag_to_feedback(skipped: pl.Expr) -> pl.Expr:
    """Return a flag as Float32 feedback: -1 for true, +1 for false, 0 (unknown) for null."""
    return pl.when(skipped).then(-1.0).when(~skipped).then(1.0).otherwise(0.0).cast(pl.Float32)


def feedback_from_ratio(ratio: pl.Expr, *, label: str, skip_ratio: float) -> pl.Expr:
    """Return the share of an item that was played as Float32 feedback in [-1, 1].

    Null, NaN, infinite or negative shares are unknown and give 0. `binary` gives -1 up to `skip_ratio` and +1
    above. `ratio` gives the distance from `skip_ratio`, scaled so that 0 gives -1 and 1 or more gives +1.
    """
    check_choice("label", label, PLAY_RATIO_LABELS)
    check_number("skip_ratio", skip_ratio, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    part = ratio.cast(pl.Float64)
    if label == "binary":
        known = pl.when(part <= skip_ratio).then(-1.0).otherwise(1.0)
    else:
        scale = pl.when(part <= skip_ratio).then(skip_ratio).otherwise(1 - skip_ratio)
        known = ((part - skip_ratio) / scale).clip(-1, 1)
    told = part.is_finite() & (part >= 0)
    return pl.when(told).then(known).otherwise(0.0).cast(pl.Float32).name.keep()


def label_and_cut(
    histories: Sequence[pl.LazyFrame], *, skip_seconds: float, gap_minutes: float | None
) -> pl.LazyFrame:
    """Join the starts of plays in several files; label and cut them unless `gap_minutes` is None."""
    history = join_histories(histories)
    check_number("skip_seconds", skip_seconds, minimum=0, open_minimum=True)
    if gap_minutes is None:
        return history
    history = require_plays(in_listening_order(history), "paths", PLAIN_HISTORY)
    # Before labels are made, because a copy would seem to end its own play at once.
    labelled = _label(history.unique(maintain_order=True), skip_seconds)
    start = _start(labelled)
    return in_canonical_order(cut_at_gaps(labelled, start, start, gap_minutes))


def join_histories(histories: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
    """Concatenate the histories of several files, and keep the order of listening of equal times.

    A file runs newest first if, among its first 10,000 rows, times fall at least three times, and more than
    nine times as often as they rise. If one does, all rows get a `tie_order`, which reverses the equal times
    of such files.
    """
    newest_first = [runs_newest_first(history) for history in histories]
    if not any(newest_first):
        return pl.concat(histories)
    numbered = []
    for number, (history, backwards) in enumerate(zip(histories, newest_first, strict=True)):
        place = pl.col(_PLACE).cast(pl.Int64)
        order = number * _MOST_ROWS + (-place if backwards else place)
        numbered.append(history.with_row_index(_PLACE).with_columns(order.alias("tie_order")).drop(_PLACE))
    return pl.concat(numbered)


def runs_newest_first(history: pl.LazyFrame) -> bool:
    """Return whether times fall in the first rows of each listener or session."""
    schema = history.collect_schema()
    keys = [key for key in ("user_id", "session_id") if key in schema][:1]
    first = first_rows(history, ["timestamp", *keys], _ROWS_LOOKED_AT)
    return times_fall(first["timestamp"], first[keys[0]] if keys else None)


def times_fall(times: pl.Series, owners: pl.Series | None = None) -> bool:
    """Return whether a series of times, numbers or ISO 8601 texts, runs from the newest to the oldest.

    Only neighbours of one owner, the listener or the session, are compared.
    """
    before = times.shift(1)
    falling, rising = times < before, times > before
    if owners is not None:
        together = owners == owners.shift(1)
        falling, rising = falling & together, rising & together
    falls, rises = int(falling.sum()), int(rising.sum())
    return falls >= _FEWEST_FALLS and falls > 9 * rises


def _open_history(frame: Table, made: str, remake: str, duration: str | None = None) -> pl.LazyFrame:
    """Return a table, after a check that it has times and not yet the column `made`."""
    history = to_frame("frame", frame).lazy()
    schema = resolve_schema("frame", history)
    for column in ["timestamp"] if duration is None else ["timestamp", duration]:
        if column not in schema:
            raise ValueError(
                f"`frame` must have the column {column!r}, got {describe_columns(schema)}. "
                "Rename the column that holds it."
            )
    if duration is not None and not (schema[duration].is_numeric() or schema[duration] == pl.Null):
        raise ValueError(
            f"`duration` must name a column of seconds, got {duration!r} of {schema[duration]}. Convert "
            "it, such as with `pl.col(...).dt.total_microseconds() / 1e6` for lengths of time."
        )
    if made in schema:
        raise ValueError(f"`frame` must not have a column {made!r} yet, got one. Drop it to {remake} anew.")
    return history


def require_plays(history: pl.LazyFrame, name: str, cure: str) -> pl.LazyFrame:
    """Raise, when a history is collected, if a row has no time, or no user where others have one.

    The plays of several unknown listeners would otherwise become sessions of one; a blank id is none.
    """
    # No push-down (polars' default), so that a filter further on cannot hide such rows.
    return history.map_batches(partial(_check_plays, name=name, cure=cure))


def _check_plays(history: pl.DataFrame, *, name: str, cure: str) -> pl.DataFrame:
    times = history["timestamp"]
    refuse_compact_dates(name, times)
    known = times.is_finite() if times.dtype.is_float() else times.is_not_null()
    missing = {"time": history.height - int(known.sum())}
    if "user_id" in history.columns:
        missing["user"] = count_missing(history["user_id"])
    for what, rows in missing.items():
        if rows:
            raise ValueError(
                f"`{name}` must have a {what} in every row where sessions are cut at pauses, got none in "
                f"{rows:,} of {history.height:,} rows. Drop these rows: they are of no known session. {cure}"
            )
    return history


def cut_at_gaps(ordered: pl.LazyFrame, start: pl.Expr, end: pl.Expr, gap_minutes: float) -> pl.LazyFrame:
    """Add `session_id` to plays sorted by user and time; `start` and `end` are in microseconds."""
    check_number("gap_minutes", gap_minutes, minimum=0, open_minimum=True)
    pause = start - end.shift(1)
    begins = (pause > _whole_microseconds(gap_minutes * 60)).fill_null(False)
    number = begins.cast(pl.Int64).cum_sum()
    if "user_id" in ordered.collect_schema():
        name = pl.format("{}/{}", pl.col("user_id").cast(pl.String), number.over("user_id"))
    else:
        name = number
    return ordered.with_columns(name.alias("session_id"))


def _whole_microseconds(seconds: float) -> int:
    """Return a limit of pauses; no pause is as long as the largest, which fits into 64 bits."""
    return round(min(seconds * _MICROSECONDS, 2**62))


def to_microseconds(timestamp: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Return a timestamp as whole microseconds, whose sums are exact; null if it is null or NaN."""
    if dtype == pl.Datetime:
        return timestamp.dt.epoch("us")
    if dtype.is_integer():
        return timestamp.cast(pl.Int64) * _MICROSECONDS
    if dtype.is_float():
        return (timestamp * _MICROSECONDS).round().cast(pl.Int64, strict=False)
    raise ValueError(
        f"`timestamp` must be a Datetime or a number of seconds, got {dtype}. "
        "Convert it first, for example with `pl.col(...).str.to_datetime()`."
    )
