"""Reader of any other log: a table whose columns are mapped to the canonical names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

import polars as pl

from skipcl_lightning._checks import check_choice, check_number
from skipcl_lightning.data.canonical_table import (
    CANONICAL_COLUMNS,
    Table,
    are_compact_dates,
    check_names,
    describe_columns,
    describe_polars_error,
    first_rows,
    in_listening_order,
    resolve_schema,
    to_frame,
)
from skipcl_lightning.data.prepare.sessions import (
    cut_history,
    feedback_from_ratio,
    flag_to_feedback,
    join_histories,
)
from skipcl_lightning.data.readers.parsing import (
    Column,
    Paths,
    cast_column,
    flag_column,
    integer_column,
    list_files,
    number_column,
    parse_columns,
    scan_csv_text,
    suggest_columns,
    text_column,
    time_column,
)

__all__ = ["read_table"]

Unit = Literal["seconds", "milliseconds"]
_PER_SECOND = {"seconds": 1, "milliseconds": 1000}
_ROWS_LOOKED_AT = 1000
_GRADE = "Grade a flag yourself with `pl.when(...).then(1.0).otherwise(-1.0)`."
_FEEDBACK_CURE = f"Name a flag of skips as `skipped`, or the played time as `played`. {_GRADE}"
_TIME_CURE = 'Give another format as in `time_format="%d/%m/%Y %H:%M:%S"`.'


def read_table(
    source: Paths | Table,
    *,
    item: str,
    session: str | None = None,
    feedback: str | None = None,
    skipped: str | None = None,
    played: str | None = None,
    duration: str | None = None,
    unit: Unit | None = None,
    skip_ratio: float | None = None,
    skip_seconds: float | None = None,
    explicit_feedback: str | None = None,
    timestamp: str | None = None,
    time_format: str | None = None,
    position: str | None = None,
    user: str | None = None,
    separator: str = ",",
    gap_minutes: float | None = None,
    columns: Sequence[str] = (),
) -> pl.LazyFrame:
    r"""Return any log as a canonical table: map its columns, and cut sessions if it has none.

    Ids from a CSV file stay strings, so "007" is not 7. Other columns are parsed strictly: a wrong value is
    an error that names the file and the row. Parquet files and frames keep their numeric types. A blank id is
    null. Rows of equal time stay in the order of the source, or in reverse if the source runs from the newest
    row to the oldest.

    Args:
        source: CSV files (gzipped or not), Parquet files, a folder with either, or a table: polars, pandas or
            Arrow, or a list of dictionaries.
        item: The column with the item's id.
        session: The column with the session's id; without it, `timestamp` and `gap_minutes` are needed.
        feedback: The column with the feedback, a number in [-1, 1]; null becomes 0, unknown. Without it,
            `skipped` and `played`, all feedback is unknown: for next-item learning only.
        skipped: In place of `feedback`, the column that says whether the item was skipped, as true and false
            or 1 and 0: true becomes -1, false +1, null 0.
        played: In place of `feedback`, the column with the played time: at most `skip_seconds` becomes -1,
            more +1. Null or negative values become 0, unknown.
        duration: The column with the item's length in the unit of `played`. The feedback is then proportional
            to the played share: nothing is -1, `skip_ratio` 0, all of it +1.
        unit: The unit of `played` and `duration`; None for `seconds`.
        skip_ratio: With `duration`, the share below which an item counts as skipped, in (0, 1); None for 0.5.
        skip_seconds: With `played` but no `duration`, the longest time of a skip in seconds, above 0; None
            for 30.
        explicit_feedback: The column with likes and dislikes, a number in [-1, 1]: below 0 disliked, above 0
            liked; null becomes 0, unknown.
        timestamp: The column with the time: Datetime, a number of SECONDS, or text in ISO 8601 such as
            `2024-05-01T10:00:00Z`. Text without an offset is UTC.
        time_format: The format of times in text, such as `"%d/%m/%Y %H:%M:%S"`, or `"%Y%m%d"` for 20240501;
            None for ISO 8601.
        position: The column with the order within a session.
        user: The column with the listener's id, which no row may lack if sessions are cut here.
        separator: The character between the columns of a CSV file; `"\t"` is a tab, also as the two
            characters that a shell may pass.
        gap_minutes: The longest pause within a session, if sessions are cut here.
        columns: Other columns to keep under their names, for `SessionDataModule(context=...)`; those of a CSV
            file are texts.

    Raises:
        TypeError: `source` is neither paths nor a table, a number is none, or `columns` no list of names.
        ValueError: A column is missing (the message lists the columns) or has an unusable type, CSV and
            Parquet are mixed, a path does not exist, settings exclude each other or are unused, sessions or
            their order are not defined, or times are compact dates without a `time_format`. When collected:
            a value is wrong (the message names the file, the row, the column and the value), or sessions are
            cut here and a row has no user or no time.

    Examples:
        >>> log = pl.DataFrame(
        ...     {"track": ["a", "b"], "who": ["u", "u"], "time": [0, 60], "stars": [1.0, None]}
        ... )
        >>> read_table(
        ...     log, item="track", user="who", timestamp="time", feedback="stars", gap_minutes=30
        ... ).collect().rows()
        [('u/0', 'a', 1.0, 0, 'u'), ('u/0', 'b', 0.0, 60, 'u')]
        >>> log = pl.DataFrame({"track": ["a", "b"], "list": [1, 1], "n": [1, 2], "skip": [True, False]})
        >>> read_table(log, item="track", session="list", position="n", skipped="skip").collect().rows()
        [(1, 'a', -1.0, 1), (1, 'b', 1.0, 2)]
    """
    roles = {
        "session_id": session,
        "item_id": item,
        "feedback": feedback,
        "skipped": skipped,
        "played": played,
        "duration": duration,
        "explicit_feedback": explicit_feedback,
        "position": position,
        "timestamp": timestamp,
        "user_id": user,
    }
    given = {role: name for role, name in roles.items() if name is not None}
    check_names("columns", columns)
    for column in columns:
        if column in (*roles, *CANONICAL_COLUMNS):
            raise ValueError(
                f"`columns` must not name a column like one of the table's own, got {column!r}. Rename it."
            )
        given[column] = column
    _check_order(given, gap_minutes)
    _check_time_format(given, time_format)
    _check_signals(given, unit, skip_ratio, skip_seconds)
    log = _scan(source, given, time_format, _to_separator(separator))
    _refuse_compact_dates(log, timestamp)
    if position is None:
        log = join_histories([log])
    signals = {"feedback": _feedback(given, unit, skip_ratio, skip_seconds)}
    if explicit_feedback is not None:
        signals["explicit_feedback"] = pl.col("explicit_feedback")
    mapped = log.with_columns(
        signal.fill_null(0).cast(pl.Float32).alias(name) for name, signal in signals.items()
    )
    if gap_minutes is not None:
        cure = "Or name a column of sessions as `session`."
        mapped = cut_history(in_listening_order(mapped), "source", cure, gap_minutes=gap_minutes)
    made = {*signals, "session_id", "tie_order"} & set(mapped.collect_schema())
    kept = [name for name in CANONICAL_COLUMNS if name in given or name in made]
    return mapped.select(*kept, *columns)


def _refuse_compact_dates(log: pl.LazyFrame, name: str | None) -> None:
    """Raise if the first times are numbers such as 20240131, which would be seconds in the year 1970."""
    if name is None or not log.collect_schema()["timestamp"].is_numeric():
        return
    times = first_rows(log, ["timestamp"], _ROWS_LOOKED_AT)["timestamp"]
    if are_compact_dates(times):
        raise ValueError(
            f"`timestamp` must name a column of seconds or times, got {name!r} of dates such as "
            f'{times.drop_nulls()[0]:.0f}. Pass `time_format="%Y%m%d"` for text, as in a CSV file; cast '
            "another column with `.cast(pl.String)` first."
        )


def _feedback(
    given: Mapping[str, str], unit: Unit | None, skip_ratio: float | None, skip_seconds: float | None
) -> pl.Expr:
    """Return the feedback from the given columns."""
    if "feedback" in given:
        return pl.col("feedback")
    if "skipped" in given:
        return flag_to_feedback(pl.col("skipped"))
    if "played" not in given:
        return pl.lit(0.0)
    played = pl.col("played").cast(pl.Float64)
    if "duration" in given:
        ratio = played / pl.col("duration").cast(pl.Float64)
        return feedback_from_ratio(ratio, label="ratio", skip_ratio=0.5 if skip_ratio is None else skip_ratio)
    longest = (30 if skip_seconds is None else skip_seconds) * _PER_SECOND[unit or "seconds"]
    return flag_to_feedback(pl.when(played.is_finite() & (played >= 0)).then(played <= longest))


def _check_order(given: Mapping[str, str], gap_minutes: float | None) -> None:
    """Raise unless the sessions, and the order within them, are defined exactly once."""
    if "session_id" not in given and ("timestamp" not in given or gap_minutes is None):
        raise ValueError(
            "`session` must name a column, got None. Without one, give `timestamp` and `gap_minutes`: "
            "pauses then tell sessions apart."
        )
    if "session_id" in given and gap_minutes is not None:
        raise ValueError(
            "`gap_minutes` must be None where `session` names a column, got both. Drop one of them."
        )
    if not {"timestamp", "position"} & set(given):
        raise ValueError(
            "`timestamp` or `position` must name a column, got None for both. A session's order needs one."
        )


def _check_time_format(given: Mapping[str, str], time_format: str | None) -> None:
    """Raise if the format of the times cannot be used."""
    if time_format is None:
        return
    if "timestamp" not in given:
        raise ValueError(f"`time_format` must be None without `timestamp`, got {time_format!r}. Drop it.")
    if "%" not in time_format:
        raise ValueError(
            f"`time_format` must be a format with fields such as %Y, got {time_format!r}. "
            'Write it as in `time_format="%d/%m/%Y %H:%M:%S"`.'
        )
    try:
        pl.Series([""]).str.to_datetime(time_format, strict=False)
    except pl.exceptions.ComputeError as error:
        raise ValueError(
            f"`time_format` must be a format that polars can read, got {time_format!r}: "
            f"{describe_polars_error(error)}. An hour alone is none: add minutes to format and texts."
        ) from error


def _check_signals(
    given: Mapping[str, str], unit: Unit | None, skip_ratio: float | None, skip_seconds: float | None
) -> None:
    """Raise if the feedback has two sources, or a setting is unused."""
    named = [name for name in ("feedback", "skipped", "played") if name in given]
    if len(named) > 1:
        raise ValueError(
            "`feedback`, `skipped` and `played` must not be given together, got "
            f"{' and '.join(map(repr, named))}. Keep one of them."
        )
    played, duration = "played" in given, "duration" in given
    for name, value, needed, fits in (
        ("duration", given.get("duration"), "with `played`", played),
        ("unit", unit, "with `played`", played),
        ("skip_ratio", skip_ratio, "with `duration`", duration),
        ("skip_seconds", skip_seconds, "with `played` without `duration`", played and not duration),
    ):
        if value is not None and not fits:
            raise ValueError(f"`{name}` must only be given {needed}, got {value!r}. Drop it.")
    if unit is not None:
        check_choice("unit", unit, _PER_SECOND)
    if skip_seconds is not None:
        check_number("skip_seconds", skip_seconds, minimum=0, open_minimum=True)


def _to_separator(separator: str) -> str:
    r"""Return the separator, a tab for the two characters `\t`."""
    character = "\t" if separator == "\\t" else separator
    if len(character) != 1 or not character.isascii() or character in '\r\n"':
        raise ValueError(
            f"`separator` must be one ASCII character other than a quotation mark or a line break, got "
            f"{separator!r}. Convert a file with a longer separator first."
        )
    return character


def _scan(
    source: Paths | Table,
    given: Mapping[str, str],
    time_format: str | None,
    separator: str,
) -> pl.LazyFrame:
    """Return the source as one lazy table, with columns named after their roles."""
    rows = isinstance(source, Sequence) and len(source) > 0 and isinstance(source[0], Mapping)
    if rows or not isinstance(source, str | Path | Sequence):
        return _select(to_frame("source", cast("Table", source)).lazy(), None, given, time_format)
    files = list_files(cast("Paths", source), ["*.csv", "*.csv.gz", "*.parquet"], name="source")
    parquet = {file.suffix == ".parquet" for file in files}
    if len(parquet) == 2:
        raise ValueError("`source` must hold CSV or Parquet files, got both. Read them one kind at a time.")
    if True in parquet:
        logs = [_select(pl.scan_parquet(file, glob=False), file, given, time_format) for file in files]
        _refuse_other_types(files, logs, given)
        return pl.concat(logs)
    tables = [
        scan_csv_text(file, list(given.values()), separator=separator, name="source", has_separator=True)
        for file in files
    ]
    columns = _csv_columns(given, tables[0], time_format)
    return pl.concat(
        [
            parse_columns(table, file, columns, name="source")
            for table, file in zip(tables, files, strict=True)
        ]
    )


def _refuse_other_types(
    files: Sequence[Path], logs: Sequence[pl.LazyFrame], given: Mapping[str, str]
) -> None:
    """Raise unless the columns of Parquet files have the types of the first file."""
    first = logs[0].collect_schema()
    for file, log in zip(files, logs, strict=True):
        for role, dtype in log.collect_schema().items():
            # polars fits a later column of nulls only.
            if dtype not in (first[role], pl.Null):
                raise ValueError(
                    f"`source` must hold Parquet files with one type in column {given[role]!r}, got "
                    f"{first[role]} in {str(files[0])!r} and {dtype} in {str(file)!r}. Read each with "
                    "`pl.scan_parquet`, cast the column, and pass the result of `pl.concat`."
                )


def _csv_columns(given: Mapping[str, str], table: pl.LazyFrame, time_format: str | None) -> list[Column]:
    """Return the parsing of the columns of CSV files; the first time decides whether times are numbers."""
    parsers = _text_parsers(time_format)
    if time_format is None and "timestamp" in given and _starts_with_number(table, given["timestamp"]):
        parsers["timestamp"] = number_column
    columns = [parsers.get(role, text_column)(name, optional=True) for role, name in given.items()]
    return _fitted(columns, given, table)


def _text_parsers(time_format: str | None) -> dict[str, Callable[..., Column]]:
    """Return the parsing of text by role; all other roles are texts."""
    return {
        "feedback": partial(number_column, minimum=-1, maximum=1, cure=_FEEDBACK_CURE),
        "explicit_feedback": partial(number_column, minimum=-1, maximum=1, cure=_GRADE),
        "skipped": flag_column,
        "played": number_column,
        "duration": number_column,
        "position": integer_column,
        "timestamp": partial(time_column, time_format=time_format, cure=_TIME_CURE),
    }


def _fitted(columns: Sequence[Column], given: Mapping[str, str], table: pl.LazyFrame) -> list[Column]:
    """Return columns that are named after their roles, with the cure for those whose first value is wrong."""
    named = [replace(column, output=role) for column, role in zip(columns, given, strict=True)]
    names = list(dict.fromkeys(column.name for column in named if column.convert))
    rows = first_rows(table, names, _ROWS_LOOKED_AT)
    return [
        replace(column, cure=column.convert) if column.convert and _begins_wrong(column, rows) else column
        for column in named
    ]


def _begins_wrong(column: Column, rows: pl.DataFrame) -> bool:
    """Return whether the first value that is not blank has another form than the column's."""
    values = rows[column.name].drop_nulls()
    if values.dtype == pl.String:
        values = values.filter(values.str.strip_chars() != "")
    return column.parse(values.head(1)).null_count() > 0


def _starts_with_number(table: pl.LazyFrame, name: str) -> bool:
    """Return whether the first value of a text column that is not blank is a number."""
    texts = table.select(pl.col(name).str.strip_chars()).filter(pl.col(name) != "")
    return bool(first_rows(texts, [name], 1)[name].cast(pl.Float64, strict=False).is_not_null().any())


def _select(
    frame: pl.LazyFrame, file: Path | None, given: Mapping[str, str], time_format: str | None
) -> pl.LazyFrame:
    """Return the needed columns of a frame, or of a Parquet file, named after their roles."""
    schema = resolve_schema("source", frame)
    missing = [name for name in given.values() if name not in schema]
    if missing:
        where = "`source`" if file is None else repr(str(file))
        raise ValueError(
            f"`source` must have the column {', '.join(map(repr, missing))}, got {describe_columns(schema)} "
            f"in {where}.{suggest_columns(missing, schema)} Name one of these instead."
        )
    if time_format is not None and schema[given["timestamp"]] != pl.String:
        name = given["timestamp"]
        raise ValueError(
            f"`time_format` must be None where column {name!r} is {schema[name]}, "
            f"got {time_format!r}. Only text has a format."
        )
    columns = [_typed_column(role, name, schema[name], time_format) for role, name in given.items()]
    if all(schema[column.name] == column.dtype != pl.String for column in columns):
        return frame.select(pl.col(name).alias(role) for role, name in given.items())
    return parse_columns(
        frame.select(list(dict.fromkeys(given.values()))),
        file,
        _fitted(columns, given, frame),
        name="source",
    )


def _typed_column(role: str, name: str, dtype: pl.DataType, time_format: str | None) -> Column:
    """Return the parsing of a column of a frame."""
    text = dtype == pl.String
    if role in ("feedback", "explicit_feedback", "played", "duration", "position"):
        if not (dtype.is_numeric() or dtype == pl.Null):
            numbers = "numbers in [-1, 1]" if role.endswith("feedback") else "numbers"
            kind = "Int64" if role == "position" else "Float64"
            cure = {"feedback": _FEEDBACK_CURE, "explicit_feedback": _GRADE}.get(
                role, f"Convert it, for example with `pl.col(...).cast(pl.{kind})`."
            )
            raise ValueError(f"`{role}` must name a column of {numbers}, got {name!r} of {dtype}. {cure}")
    elif role == "skipped":
        if not (text or dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
            raise ValueError(
                f"`skipped` must name a column of true and false, got {name!r} of {dtype}. "
                "Convert it to Boolean."
            )
        return flag_column(name, optional=True)
    elif role == "timestamp" and dtype == pl.Date:
        return cast_column(name, pl.Datetime("us"))
    elif text:
        return _text_parsers(time_format).get(role, text_column)(name, optional=True)
    return cast_column(name, dtype)
