"""Reader of Yambda, listening logs of Yandex Music."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from skipcl_lightning.data.canonical_table import in_canonical_order
from skipcl_lightning.data.prepare.sessions import (
    PLAIN_HISTORY,
    cut_history,
    feedback_from_ratio,
)
from skipcl_lightning.data.readers.parsing import (
    Column,
    Paths,
    cast_column,
    list_files,
    parse_columns,
    scan_parquet,
)

__all__ = ["read_yambda"]

_INTEGERS = ("uid", "item_id", "timestamp")
_EVENTS = ("listen", "like", "dislike", "unlike", "undislike")


def read_yambda(
    listens: Paths,
    *,
    likes: Paths | None = None,
    dislikes: Paths | None = None,
    unlikes: Paths | None = None,
    undislikes: Paths | None = None,
    label: str = "binary",
    skip_ratio: float = 0.5,
    gap_minutes: float | None = 20.0,
) -> pl.LazyFrame:
    """Read Yambda's flat files: plays with the played share, and likes and dislikes.

    An unlike takes back a like, and an undislike a dislike. Each play gets the user's latest opinion of its
    item at that time; later events are not used, except those within the play's own five seconds, the
    resolution of the times. Plays are read lazily; all opinions are held in memory.

    Args:
        listens: `listens.parquet` with `uid`, `item_id`, `timestamp` (seconds since the data set began, in
            steps of 5), `played_ratio_pct` (percent of the item; may exceed 100), several such files, or a
            folder that is searched for that name. Or the file `multi_event.parquet`, which also has the
            opinions, marked by `event_type`.
        likes: `likes.parquet` with `uid`, `item_id`, `timestamp`, or a folder that has it.
        dislikes: `dislikes.parquet`, likewise.
        unlikes: `unlikes.parquet`, likewise, which needs `likes`.
        undislikes: `undislikes.parquet`, likewise, which needs `dislikes`.
        label: `binary`: -1 if at most `skip_ratio` of the item was played, else +1; `ratio`: the distance
            from `skip_ratio`, from -1 for nothing to +1 for the whole. Null gives 0, unknown.
        skip_ratio: The largest share that counts as skipped, in (0, 1); the data set's own "listened" is
            above 0.5.
        gap_minutes: The longest pause within a session, from one `timestamp` to the next, above 0. None for
            the plain history, in the order of the files.

    Returns:
        A canonical table, sorted by user and time: `session_id` (String), `item_id` (Int64), `feedback`, with
        opinions `explicit_feedback` (+1 liked, -1 disliked, 0 neither), `timestamp` (Int64, seconds),
        `user_id` (Int64), `copy_key` (the percentage played); without `session_id` for `gap_minutes=None`.

    Raises:
        TypeError: A setting is no number.
        ValueError: A path does not exist, a folder has no such file, a file lacks a column or has it in
            another type, `unlikes` or `undislikes` have nothing to undo, opinions are given beside
            `multi_event.parquet` or that is mixed with `listens.parquet`, or a setting is wrong. When
            collected: an `event_type` is unknown.

    Reference:
        Ploshkin et al., "Yambda-5B: A Large-Scale Multi-modal Dataset for Ranking And Retrieval", 2025, arXiv
        2505.22238.

    Examples:
        >>> import tempfile
        >>> plays = {"uid": [1, 1], "item_id": [7, 7], "timestamp": [0, 60], "played_ratio_pct": [9, 100]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = [Path(folder) / "listens.parquet", Path(folder) / "likes.parquet"]
        ...     pl.DataFrame(plays).write_parquet(files[0])
        ...     pl.DataFrame({"uid": [1], "item_id": [7], "timestamp": [30]}).write_parquet(files[1])
        ...     table = read_yambda(files[0], likes=files[1]).collect()
        >>> table.select("session_id", "feedback", "explicit_feedback").rows()
        [('1/0', -1.0, 0.0), ('1/0', 1.0, 1.0)]
    """
    part = pl.col("played_ratio_pct") / 100
    feedback = feedback_from_ratio(part, label=label, skip_ratio=skip_ratio).alias("feedback")
    given = {"like": likes, "dislike": dislikes, "unlike": unlikes, "undislike": undislikes}
    _check_undone(given)
    plays, opinions = _scan(listens, {event: paths for event, paths in given.items() if paths is not None})
    # Times have steps of 5 s, so plays of one step are copies only if their played shares are equal.
    copy_key = pl.col("played_ratio_pct").alias("copy_key")
    history = plays.select("user_id", "item_id", "timestamp", feedback, copy_key)
    if opinions is not None:
        history = _add_opinions(history, opinions)
    if gap_minutes is None:
        return history
    return in_canonical_order(cut_history(history, "listens", PLAIN_HISTORY, gap_minutes=gap_minutes))


def _check_undone(given: Mapping[str, Paths | None]) -> None:
    """Raise if opinions are taken back that are not read."""
    for event in ("like", "dislike"):
        if given[event] is None and given[f"un{event}"] is not None:
            raise ValueError(
                f"`un{event}s` must come with `{event}s`, got it alone. It takes back what they say."
            )


def _scan(listens: Paths, given: Mapping[str, Paths]) -> tuple[pl.LazyFrame, pl.LazyFrame | None]:
    """Return the plays, and the opinions if there are any."""
    tables = [
        _scan_file(file, "listens", ["played_ratio_pct"])
        for file in list_files(listens, ["listens.parquet"], name="listens")
    ]
    typed = ["event" in table.collect_schema() for table in tables]
    if not any(typed):
        return pl.concat(tables), _scan_opinions(given)
    if given or not all(typed):
        raise ValueError(
            "`listens` must be the only file with opinions where it has an `event_type`, got "
            f"{'others beside it' if given else 'files with and without'}. Give one form or the other."
        )
    events = pl.concat(tables)
    opinions = events.filter(pl.col("event") != "listen").drop("played_ratio_pct")
    return events.filter(pl.col("event") == "listen"), opinions


def _scan_opinions(given: Mapping[str, Paths]) -> pl.LazyFrame | None:
    """Return the files of opinions as one table; takebacks come after the opinions."""
    tables = [
        _scan_file(file, f"{event}s").with_columns(pl.lit(event).alias("event"))
        for event, paths in given.items()
        for file in list_files(paths, [f"{event}s.parquet"], name=f"{event}s")
    ]
    return pl.concat(tables) if tables else None


def _scan_file(file: Path, name: str, numbers: Sequence[str] = ()) -> pl.LazyFrame:
    """Return one file with the canonical names and types, and its `event` if it has one."""
    table = scan_parquet(file, _INTEGERS, numbers, name=name)
    columns = [
        cast_column(column, pl.Int64, output=canonical)
        for canonical, column in zip(("user_id", "item_id", "timestamp"), _INTEGERS, strict=True)
    ]
    columns += [cast_column(column, pl.Float64) for column in numbers]
    if numbers and "event_type" in table.collect_schema():
        wanted = f"one of {', '.join(_EVENTS)}"
        columns.append(Column("event_type", _to_events, pl.String, wanted, output="event"))
    return parse_columns(table.select(column.name for column in columns), file, columns, name=name)


def _to_events(values: pl.Series) -> pl.Series:
    events = values.cast(pl.String, strict=False)
    return events.set(~events.is_in(_EVENTS), None)


def _add_opinions(plays: pl.LazyFrame, opinions: pl.LazyFrame) -> pl.LazyFrame:
    """Add to each play its user's opinion of the item at that time."""
    histories = (
        opinions.sort("timestamp", maintain_order=True)
        .group_by("user_id", "item_id")
        .agg(pl.col("timestamp").alias("times"), _opinion().alias("opinions"))
    )
    # Not `join_asof`, which would sort all plays; a lookup keeps their order.
    joined = plays.join(histories, on=["user_id", "item_id"], how="left", maintain_order="left")
    past = (pl.col("times") - pl.col("timestamp")).list.eval(pl.element() <= 0).list.sum()
    latest = pl.col("opinions").list.get(past.cast(pl.Int64) - 1, null_on_oob=True)
    opinion = pl.when(past > 0).then(latest).otherwise(0).fill_null(0).cast(pl.Float32)
    return joined.with_columns(opinion.alias("explicit_feedback")).drop("times", "opinions")


def _opinion() -> pl.Expr:
    """Return the opinion after each event of one user and item; the later of a like and a dislike counts."""
    liked, disliked = _latest({"like": 1, "unlike": 0}), _latest({"dislike": -1, "undislike": 0})
    both = (liked != 0) & (disliked != 0)
    return pl.when(both).then(_latest({"like": 1, "dislike": -1})).otherwise(liked + disliked)


def _latest(values: Mapping[str, int]) -> pl.Expr:
    """Return the value of the latest of some events, 0 before the first."""
    found = pl.col("event").replace_strict(values, default=None, return_dtype=pl.Int32)
    return found.forward_fill().fill_null(0)
