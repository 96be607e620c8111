"""Command `skipcl recommend`: the best next items after sessions from the command line or a file."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import polars as pl
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from skipcl_lightning._files import write_whole
from skipcl_lightning.data import ContextEncoder, SessionEncoder
from skipcl_lightning.data.canonical_table import name_unreadable
from skipcl_lightning.data.encoder import group_sessions
from skipcl_lightning.data.readers.parsing import (
    ROW,
    Column,
    flag_column,
    integer_column,
    number_column,
    parse_columns,
    text_column,
    time_column,
)
from skipcl_lightning.recommender import Recommender

__all__ = ["parse_session", "recommend"]

# The names, items, feedback and context of sessions.
Given = tuple[list[Any] | None, list[list[Any]], list[list[float]], dict[str, list[Any]]]
WRITERS = {".csv": "sink_csv", ".parquet": "sink_parquet"}
ROWS_IN_MEMORY = 2**18


def recommend(
    checkpoint: Path,
    session: list[str] | str | None = None,
    file: Path | None = None,
    histories: Path | None = None,
    top_k: int = 10,
    exclude_seen: bool = False,
    exclude_skipped: bool = True,
    unknown: Literal["error", "ignore"] = "error",
    skip_penalty: float | None = None,
    output: Path | None = None,
) -> None:
    """Show the best next items after given sessions.

    Args:
        checkpoint: The checkpoint of a trained model, such as checkpoints/best.ckpt.
        session: A session such as "a:1,b:-1", or a list of them: item ids in the order of listening, each
            with its feedback in [-1, 1] after a colon; without one, the feedback is unknown.
        file: In place of it, a CSV or Parquet file with session_id, item_id and perhaps feedback, its rows in
            the order of listening. A model with context inputs needs their columns of the training log too,
            such as timestamp; an empty field is unknown.
        histories: With `file`, another such file: what the listener of each session heard before it, by the
            session_id of `file`, without skipped tracks or with their feedback. For a model that was trained
            with a history_length.
        top_k: Items for each session.
        exclude_seen: Leave out the session's own items.
        exclude_skipped: Leave out the items that the session skipped.
        unknown: What to do with items that the model does not know: `error` names the first, `ignore` leaves
            them out.
        skip_penalty: How much the ranking avoids tracks that the model expects to be skipped, at least 0. It
            needs a model with the head SkipPrediction.
        output: A .csv or .parquet file for the recommendations; without it they are printed. With it, a
            Parquet `file` whose sessions have their rows one after the other may be larger than memory.

    Raises:
        ValueError: There are no sessions or two sources of them, a file has another format or lacks a column
            of the context, or a session has an unknown item.
        FileNotFoundError: A file does not exist.
    """
    _check_sources(session, file, histories, output)
    recommender = Recommender.from_checkpoint(checkpoint)
    parts, earlier, total = _in_parts(
        session, file, histories, recommender.encoder, is_printed=output is None
    )

    def rank(given: Given) -> pl.DataFrame:
        names, items, feedback, context = given
        return recommender.recommend(
            items,
            feedback,
            histories=earlier,
            context=context,
            session_ids=names,
            top_k=top_k,
            exclude_seen=exclude_seen,
            exclude_skipped=exclude_skipped,
            unknown=unknown,
            skip_penalty=skip_penalty,
        )

    if output is not None:
        _write(output, parts, rank, total)
        return
    table = Table()
    found = rank(next(parts))
    for column in found.columns:
        table.add_column(column)
    for row in found.iter_rows():
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
    Console().print(table)


def _check_sources(
    session: list[str] | str | None, file: Path | None, histories: Path | None, output: Path | None
) -> None:
    """Raise if arguments contradict each other, or the output cannot be written."""
    if (session is None) == (file is None):
        raise ValueError('`session` or `file` must be given, got both or none. Try --session "a:1,b:-1".')
    if histories is not None and file is None:
        raise ValueError(
            f"`histories` must be left out without `file`, got {histories}. It names its sessions."
        )
    if output is None:
        return
    if output.suffix not in WRITERS:
        raise ValueError(f"`output` must end with .csv or .parquet, got {output}.")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"`output` must be in a folder that exists, got {output}. Make the folder first.")


def _in_parts(
    session: list[str] | str | None,
    file: Path | None,
    histories: Path | None,
    encoder: SessionEncoder,
    *,
    is_printed: bool,
) -> tuple[Iterator[Given], list[list[Any]] | None, int]:
    """Return the sessions in parts, the tracks before them if they are one part, and the number of plays."""
    integers = encoder.vocabulary.dtype == pl.Int64
    if file is not None and histories is None and not is_printed and _can_be_cut(file):
        total = pl.scan_parquet(file).select(pl.len()).collect().item()
        parts, earlier = _read_parts(file, encoder.context), None
    else:
        given, earlier = _collect(session, file, histories, encoder)
        parts, total = iter([given]), sum(map(len, given[1]))
    if integers:
        parts = ((one[0], _to_integers(one[1]), one[2], one[3]) for one in parts)
        earlier = earlier and _to_integers(earlier)
    return parts, earlier, total


def _write(output: Path, parts: Iterable[Given], rank: Callable[[Given], pl.DataFrame], total: int) -> None:
    """Write the recommendations of all parts into one file, which appears only when it is complete."""
    rows, sessions = 0, 0
    console = Console()
    with (
        TemporaryDirectory(prefix=f".{output.name}.", dir=output.absolute().parent) as folder,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("Plays", total=total)
        for number, part in enumerate(parts):
            found = rank(part)
            found.write_parquet(Path(folder, f"{number:09}.parquet"))
            rows, sessions = rows + len(found), sessions + len(part[1])
            progress.advance(task, sum(map(len, part[1])))
        whole = pl.scan_parquet(Path(folder, "*.parquet"))
        write_whole(output, getattr(whole, WRITERS[output.suffix]))
    console.print(f"{rows:,} recommendations for {sessions:,} sessions: {output}", markup=False)


def _can_be_cut(file: Path) -> bool:
    """Return whether the sessions of a Parquet file have their rows one after the other."""
    if file.suffix != ".parquet" or not file.exists():
        return False
    with name_unreadable("file"):
        scan = pl.scan_parquet(file)
        if "session_id" not in scan.collect_schema():
            return False
        ids = pl.col("session_id")
        starts = ids.ne_missing(ids.shift()).sum()
        # The first row of all begins a session, unless its id is null, which is refused later.
        return bool(scan.select(starts == ids.n_unique()).collect(engine="streaming").item())


def _read_parts(file: Path, context: ContextEncoder | None) -> Iterator[Given]:
    """Yield whole sessions of a Parquet file, from some rows at a time."""
    scan, start = pl.scan_parquet(file), 0
    waiting: pl.DataFrame | None = None
    while True:
        with name_unreadable("file"):
            table = scan.slice(start, ROWS_IN_MEMORY).collect()
        start += len(table)
        is_last = len(table) < ROWS_IN_MEMORY
        table = table if waiting is None else pl.concat([waiting, table])
        if not is_last:
            # The last session may go on.
            goes_on = table["session_id"].eq_missing(table["session_id"].last())
            table, waiting = table.filter(~goes_on), table.filter(goes_on)
        if len(table) or not start:  # An empty file is refused with the sessions.
            yield _to_given("file", file, table, context)
        if is_last:
            return


def parse_session(text: str) -> tuple[list[Any], list[float]]:
    """Return the items and the feedback of a session such as `a:1,b:-1,c`; no feedback is 0."""
    items, feedback = [], []
    for part in filter(None, (part.strip() for part in text.split(","))):
        item, _, number = part.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            item, value = part, 0.0
        if not item:
            item, value = part, 0.0
        items.append(item)
        feedback.append(value)
    if not items:
        raise ValueError(f"`session` must hold item ids, got {text!r}. Write it as in a:1,b:-1.")
    return items, feedback


def _collect(
    session: list[str] | str | None, file: Path | None, histories: Path | None, encoder: SessionEncoder
) -> tuple[Given, list[list[Any]] | None]:
    """Return the sessions, and the tracks before each of them."""
    context = encoder.context
    if file is not None:
        given = _read_sessions("file", file, context)
        earlier = (
            None if histories is None else _read_histories(histories, given[0] or [], encoder.skip_threshold)
        )
        return given, earlier
    if context is not None and context.columns:
        raise ValueError(
            f"`file` must be given for a model with the context {', '.join(context.columns)}, got `session`. "
            "Write the sessions with these columns."
        )
    texts = [session] if isinstance(session, str) else session or []
    parsed = [parse_session(text) for text in texts]
    return (None, [one[0] for one in parsed], [one[1] for one in parsed], {}), None


def _read_histories(file: Path, names: list[Any], skip_threshold: float) -> list[list[Any]]:
    """Return the tracks before each session, without those that were skipped."""
    earlier, items, feedback, _ = _read_sessions("histories", file)
    found = {
        name: [item for item, signal in zip(tracks, signals, strict=True) if signal >= skip_threshold]
        for name, tracks, signals in zip(earlier or [], items, feedback, strict=True)
    }
    if not found.keys() & set(names):
        raise ValueError(
            f"`histories` must have sessions of `file` in session_id, got {next(iter(found), None)!r}. "
            "Use the ids of the sessions that follow, of the same type."
        )
    return [found.get(name, []) for name in names]


def _read_sessions(argument: str, file: Path, context: ContextEncoder | None = None) -> Given:
    """Return names, items, feedback and context of the sessions in a file."""
    if file.suffix not in WRITERS:
        raise ValueError(f"`{argument}` must end with .csv or .parquet, got {file}.")
    if not file.exists():
        raise FileNotFoundError(f"`{argument}` must be a file that exists, got {str(file)!r}.")
    with name_unreadable(argument):
        table = pl.read_csv(file, infer_schema=False) if file.suffix == ".csv" else pl.read_parquet(file)
    return _to_given(argument, file, table, context)


def _to_given(argument: str, file: Path, table: pl.DataFrame, context: ContextEncoder | None) -> Given:
    """Return the same for rows of the file."""
    needed = [] if context is None else context.columns
    if context is not None and (texts := [name for name in needed if table.schema.get(name) == pl.String]):
        parsers = [_text_parser(name, table[name], context) for name in texts]
        # The first row is the header.
        rows = table.lazy().select(texts).with_row_index(ROW, offset=2)
        table = table.with_columns(parse_columns(rows, file, parsers, name=argument).collect())
    if table.schema.get("feedback") == pl.String:
        with name_unreadable(argument):
            table = table.with_columns(pl.col("feedback").cast(pl.Float64))
    found: dict[str, Any] = group_sessions(table, needed, name=argument)
    items = found["item_id"]
    feedback = found.get("feedback") or [[0.0] * len(one) for one in items]
    return found["session_id"].to_list(), items, feedback, {column: found[column] for column in needed}


def _text_parser(name: str, texts: pl.Series, context: ContextEncoder) -> Column:
    """Return the parsing of a context column that is text; the training log tells its type."""
    categories = context.categories.get(name)
    if categories is not None:
        kind = type(categories[0])
        parser = {bool: flag_column, int: integer_column}.get(kind, text_column)
        return parser(name, optional=True)
    numbers = texts.str.strip_chars().cast(pl.Float64, strict=False)
    return (time_column if numbers.null_count() == len(numbers) else number_column)(name, optional=True)


def _to_integers(sessions: list[list[Any]]) -> list[list[int]]:
    return [[_to_integer(item) for item in one] for one in sessions]


def _to_integer(item: Any) -> Any:
    try:
        return int(item)
    except ValueError as error:
        raise ValueError(f"`session` must hold integer ids for this model, got {item!r}.") from error
