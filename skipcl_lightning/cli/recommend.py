"""Command `skipcl recommend`: the best next items after sessions from the command line or a file."""

import os
import signal
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import cache, partial
from itertools import pairwise
from multiprocessing import active_children, get_context, parent_process
from operator import add
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from skipcl_lightning._checks import check_integer
from skipcl_lightning._files import write_whole
from skipcl_lightning.batch import PADDING_INDEX, is_rejected
from skipcl_lightning.cli.predictions import check_ending, check_folder, write_table
from skipcl_lightning.data import SessionEncoder
from skipcl_lightning.data.canonical_table import name_unreadable
from skipcl_lightning.data.encoder import find_order, group_sessions
from skipcl_lightning.data.prepare.inputs import Category
from skipcl_lightning.data.prepare.sessions import runs_newest_first
from skipcl_lightning.data.readers.parsing import (
    ROW,
    Column,
    flag_column,
    integer_column,
    number_column,
    parse_columns,
    read_header,
    text_column,
    time_column,
)
from skipcl_lightning.data.vocabulary import to_ids
from skipcl_lightning.export.item_index import ItemIndex
from skipcl_lightning.recommender import Recommender

__all__ = ["parse_session", "recommend"]

# A file, the first of its rows, the one after the last, and the arguments of `Recommender.recommend`.
Job = tuple[Path, int, int, dict[str, Any]]
Results = Generator["Counts"]
ROWS_IN_MEMORY = 2**18


class Given(NamedTuple):
    """Names, known items, feedback and context of sessions, and counts that include what was left out."""

    names: list[Any]
    items: list[list[Any]]
    feedback: list[list[float]]
    explicit_feedback: list[list[float]] | None
    context: dict[str, list[Any]]
    plays: int
    sessions: int


class Counts(NamedTuple):
    """Sessions with and without a known track, plays, those of unknown tracks, and recommendations."""

    sessions: int = 0
    strange: int = 0
    plays: int = 0
    unknown: int = 0
    rows: int = 0


def recommend(
    checkpoint: Path,
    session: list[str] | str | None = None,
    file: Path | None = None,
    histories: Path | None = None,
    top_k: int = 10,
    exclude_seen: bool | None = None,
    exclude_skipped: bool = True,
    unknown: Literal["error", "ignore"] = "error",
    skip_penalty: float | None = None,
    output: Path | None = None,
    processes: int = 1,
    index: Path | None = None,
) -> None:
    """Show the best next items after given sessions.

    Args:
        checkpoint: The checkpoint of a trained model, such as checkpoints/best.ckpt.
        session: A session such as "a:1,b:-1", or a list of them: item ids in the order of listening, each
            with its feedback in [-1, 1] after a colon; without one, the feedback is unknown. An id that the
            model knows may itself end with a colon and a number.
        file: In place of it, a CSV or Parquet file with session_id, item_id and perhaps feedback and
            explicit_feedback, in [-1, 1]. The rows of a session are sorted by position, or else by timestamp;
            without these columns they must be in the order of listening. A model with context inputs needs
            their columns of the training log too; an empty field is unknown.
        histories: With `file`, another such file: what the listener of each session heard before it, by the
            session_id of `file`, without rejected tracks or with their feedback. For a model that was trained
            with a history_length.
        top_k: Items for each session.
        exclude_seen: Leave out the session's own items; null for the model's own setting.
        exclude_skipped: Leave out the items that the session skipped.
        unknown: What to do with items that the model does not know, and with rows without an item: `error`
            names the first, `ignore` leaves them out, and sessions without another, and says how many.
        skip_penalty: How much the ranking avoids tracks that the model expects to be skipped, at least 0. It
            needs a model with the head SkipPrediction.
        output: A .csv or .parquet file for the recommendations; without it they are printed. With it, a
            Parquet `file` whose sessions have their rows one after the other may be larger than memory.
        processes: Processes that share such a file. Each holds the model.
        index: The file of a search index for a large catalogue, which makes the search faster and almost
            exact. It is built and written if there is none.

    Raises:
        ValueError: There are no sessions or two sources of them, a file has another format or lacks a column
            of the context, a session has an unknown item, or `processes` cannot share the file.
        ChildProcessError: A process was killed, perhaps for its memory.
        FileNotFoundError: A file does not exist.
    """
    check_integer("processes", processes)
    _check_sources(session, file, histories, output)
    settings = {
        "top_k": top_k,
        "exclude_seen": exclude_seen,
        "exclude_skipped": exclude_skipped,
        "unknown": unknown,
        "skip_penalty": skip_penalty,
        "index": index,
    }
    recommender = Recommender.from_checkpoint(checkpoint)
    if index is not None:
        _open_index(index, recommender)  # before other processes look for it
    cuts = None
    if file is not None and histories is None and output is not None:
        cuts = _cut(file, processes)
    if processes > 1 and cuts is None:
        raise ValueError(
            "`processes` must be 1, except for an `output` from a Parquet `file` without `histories`, whose "
            f"sessions have their rows one after the other, got {processes}. Sort the file, or leave it out."
        )
    console = Console()
    if cuts is not None and file is not None and output is not None:
        jobs = [(file, start, stop, settings) for start, stop in pairwise(cuts)]
        rank = (
            partial(_rank_here, recommender)
            if processes == 1
            else partial(_rank_elsewhere, checkpoint, processes)
        )
        counts = _write_parts(output, rank, jobs, console)
    else:
        given, earlier = _collect(session, file, histories, recommender.encoder, unknown)
        found, counts = _rank(recommender, given, earlier, settings)
        _check_known(counts)
        if output is None:
            _print(found, console)
        else:
            write_table(found.lazy(), output)
    if output is not None:
        console.print(
            f"{counts.rows:,} recommendations for {counts.sessions:,} sessions: {output}", markup=False
        )
    if unknown == "ignore":
        console.print(
            f"Left out: {counts.unknown:,} plays of unknown tracks, {counts.strange:,} sessions without a "
            "known track."
        )


def _print(found: pl.DataFrame, console: Console) -> None:
    """Show recommendations as a table."""
    table = Table()
    for column in found.columns:
        table.add_column(column)
    for row in found.iter_rows():
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
    console.print(table)


def _rank(
    recommender: Recommender, given: Given, earlier: list[list[Any]] | None, settings: dict[str, Any]
) -> tuple[pl.DataFrame, Counts]:
    """Return the recommendations for sessions, and what they are."""
    if settings["index"] is not None:
        settings = {**settings, "index": _open_index(settings["index"], recommender)}
    found = pl.DataFrame()
    if given.names:
        found = recommender.recommend(
            given.items,
            given.feedback,
            explicit_feedback=given.explicit_feedback,
            histories=earlier,
            context=given.context,
            session_ids=given.names,
            **settings,
        )
    known, sessions = sum(map(len, given.items)), len(given.names)
    return found, Counts(sessions, given.sessions - sessions, given.plays, given.plays - known, len(found))


@cache
def _open_index(path: Path, recommender: Recommender) -> ItemIndex:
    return ItemIndex.load_or_build(path, recommender.scorer, recommender.encoder)


def _check_known(counts: Counts) -> None:
    """Raise if the model knows no track of any session."""
    if not counts.sessions:
        raise ValueError(
            f"`unknown` must leave a session, got {counts.strange:,} without a known track. Use the ids of "
            "the training log."
        )


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
    if output is not None:
        check_ending("output", output)
        check_folder(output)


def _write_parts(
    output: Path, rank: Callable[[list[Job], list[Path]], Results], jobs: list[Job], console: Console
) -> Counts:
    """Write the recommendations of all parts into one file, which appears only when it is complete."""
    total = Counts()
    with (
        TemporaryDirectory(prefix=f".{output.name}.", dir=output.absolute().parent) as folder,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("Plays", total=jobs[-1][2])
        places = [Path(folder, f"{number:09}.parquet") for number in range(len(jobs))]
        with closing(rank(jobs, places)) as results:
            for counts in results:
                total = Counts(*map(add, total, counts))
                progress.advance(task, counts.plays)
        _check_known(total)
        # Without patterns, because a folder may have brackets in its name.
        whole = pl.scan_parquet([place for place in places if place.exists()], glob=False)
        write_table(whole, output)
    return total


def _rank_here(recommender: Recommender, jobs: list[Job], places: list[Path]) -> Results:
    """Rank one part after the other."""
    return (_rank_part(recommender, job, place) for job, place in zip(jobs, places, strict=True))


def _rank_elsewhere(checkpoint: Path, processes: int, jobs: list[Job], places: list[Path]) -> Results:
    """Rank parts in several processes, which end with this generator."""
    threads = max(1, torch.get_num_threads() // processes)
    others = set(active_children())
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            with _without_interrupts():
                futures = {
                    pool.submit(_rank_in_worker, checkpoint, threads, job, place)
                    for job, place in zip(jobs, places, strict=True)
                }
            while futures:
                # Ctrl-C may reach another thread, which does not wake this one.
                done, futures = wait(futures, timeout=0.2, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BaseException as error:
            # Also at Ctrl-C: nobody waits for the rest.
            for process in set(active_children()) - others:
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise ChildProcessError(
                    f"`processes` must be few enough for the memory, got {processes}, of which one was "
                    "killed. Each of them holds the model: take fewer."
                ) from error
            raise


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let processes that start within ignore Ctrl-C, which this process answers, after the context."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _rank_in_worker(checkpoint: Path, threads: int, job: Job, place: Path) -> Counts:
    return _rank_part(_load(checkpoint, threads), job, place)


@cache
def _load(checkpoint: Path, threads: int) -> Recommender:
    """Return the recommender of a process, which ends with the one that started it."""
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    return Recommender.from_checkpoint(checkpoint)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _rank_part(recommender: Recommender, job: Job, place: Path) -> Counts:
    """Write the recommendations for the sessions of some rows of a file."""
    file, start, stop, settings = job
    with name_unreadable("file"):
        scan = pl.scan_parquet(file, glob=False)
        table = scan.slice(start, stop - start).collect()
        # The first rows of the whole file say whether it runs from the newest row to the oldest.
        if find_order(table.columns) == "timestamp" and "tie_order" not in table.columns:
            step = -1 if runs_newest_first(scan.select("session_id", "timestamp")) else 1
            table = table.with_columns(tie_order=step * pl.int_range(pl.len()))
    given = _to_given("file", file, table, recommender.encoder, settings["unknown"])
    found, counts = _rank(recommender, given, None, settings)
    if counts.sessions:
        write_whole(place, found.write_parquet)
    return counts


def _cut(file: Path, processes: int) -> list[int] | None:
    """Return the rows where parts of whole sessions begin, and the number of rows.

    None for another format, and where the rows of a session are not one after the other.
    """
    if file.suffix != ".parquet" or not file.exists():
        return None
    ids, row = pl.col("session_id"), pl.col("row")
    with name_unreadable("file"):
        scan = pl.scan_parquet(file, glob=False)
        if "session_id" not in scan.collect_schema():
            return None
        rows = scan.select(pl.len()).collect().item()
        # Some parts for each process, which may not take the same time.
        size = ROWS_IN_MEMORY if processes == 1 else min(ROWS_IN_MEMORY, rows // (4 * processes) + 1)
        begins = ids.ne_missing(ids.shift()) | (row == 0)
        firsts = scan.select(ids).with_row_index("row").filter(begins)
        parts = firsts.group_by(row // size).agg(row.min().alias("start"), pl.len().alias("sessions"))
        cuts = parts.collect(engine="streaming")
        different = scan.select(ids.n_unique()).collect(engine="streaming").item()
    if cuts["sessions"].sum() != different:
        return None
    return [*cuts["start"].sort(), rows] if rows else [0, 0]


def parse_session(text: str, known: Container[str] = ()) -> tuple[list[str], list[float]]:
    """Return the items and the feedback of a session such as `a:1,b:-1,c`; no feedback is 0.

    A part that is one of the `known` ids is an item without feedback, even if it ends with a number. Only a
    number in [-1, 1] is feedback.
    """
    items, feedback = [], []
    for part in filter(None, (part.strip() for part in text.split(","))):
        item, value = (part, 0.0) if part in known else _split_feedback(part)
        items.append(item)
        feedback.append(value)
    if not items:
        raise ValueError(f"`session` must hold item ids, got {text!r}. Write it as in a:1,b:-1.")
    return items, feedback


def _split_feedback(part: str) -> tuple[str, float]:
    item, _, number = part.rpartition(":")
    try:
        value = float(number)
    except ValueError:
        return part, 0.0
    return (item, value) if item and -1 <= value <= 1 else (part, 0.0)


def _collect(
    session: list[str] | str | None,
    file: Path | None,
    histories: Path | None,
    encoder: SessionEncoder,
    unknown: str,
) -> tuple[Given, list[list[Any]] | None]:
    """Return the sessions, and the tracks before each of them."""
    context = encoder.context
    if file is not None:
        given = _read_sessions("file", file, encoder, unknown)
        earlier = None if histories is None else _read_histories(histories, given.names, encoder, unknown)
        return given, earlier
    if context is not None and context.columns:
        raise ValueError(
            f"`file` must be given for a model with the context {', '.join(context.columns)}, got `session`. "
            "Write the sessions with these columns."
        )
    texts = [session] if isinstance(session, str) else session or []
    parsed = [parse_session(text, encoder.vocabulary) for text in texts]
    rows = [(number, *row) for number, one in enumerate(parsed) for row in zip(*one, strict=True)]
    schema = {"session_id": pl.Int64, "item_id": pl.String, "feedback": pl.Float64}
    return _to_given("session", None, pl.DataFrame(rows, schema, orient="row"), encoder, unknown), None


def _read_histories(file: Path, names: list[Any], encoder: SessionEncoder, unknown: str) -> list[list[Any]]:
    """Return the tracks before each session, without those that were rejected."""
    given = _read_sessions("histories", file, encoder.replace(context=None), unknown)
    likes = given.explicit_feedback or [[0.0] * len(one) for one in given.items]
    found = {}
    for name, tracks, feedback, explicit in zip(given.names, given.items, given.feedback, likes, strict=True):
        rejected = is_rejected(np.array(feedback), np.array(explicit), encoder.skip_threshold)
        found[name] = [track for track, out in zip(tracks, rejected, strict=True) if not out]
    if names and not found.keys() & set(names):
        raise ValueError(
            f"`histories` must have sessions of `file` in session_id, got {next(iter(found), None)!r}. "
            "Use the ids of the sessions that follow, of the same type."
        )
    return [found.get(name, []) for name in names]


def _read_sessions(argument: str, file: Path, encoder: SessionEncoder, unknown: str) -> Given:
    """Return the sessions in a file."""
    check_ending(argument, file)
    if not file.exists():
        raise FileNotFoundError(f"`{argument}` must be a file that exists, got {str(file)!r}.")
    if file.suffix == ".csv":
        read_header(file, ["session_id", "item_id"], name=argument)
    with name_unreadable(argument):
        if file.suffix == ".csv":
            table = pl.read_csv(file, infer_schema=False, glob=False)
        else:
            table = pl.read_parquet(file, glob=False)
    return _to_given(argument, file, table, encoder, unknown)


def _to_given(
    argument: str, file: Path | None, table: pl.DataFrame, encoder: SessionEncoder, unknown: str
) -> Given:
    """Return the sessions of a table, of a file or of the command line."""
    needed = [] if encoder.context is None else encoder.context.columns
    table = _parse_texts(argument, file, table, encoder)
    known = table
    if {"session_id", "item_id"} <= set(table.columns):  # Otherwise the error names them below.
        known = _keep_known(argument, file, table, encoder, unknown)
    found: dict[str, Any] = group_sessions(known, needed, name=argument)
    if table.is_empty():
        cure = "Write one as in a:1,b:-1." if file is None else f"Name another file than {str(file)!r}."
        raise ValueError(f"`{argument}` must hold at least one session, got none. {cure}")
    items, names = found["item_id"], found["session_id"].to_list()
    to_ids(f"{argument}: session_id", names)  # Otherwise the error names `session_ids`.
    return Given(
        names,
        items,
        found.get("feedback") or [[0.0] * len(one) for one in items],
        found.get("explicit_feedback"),
        {column: found[column] for column in needed},
        table.height,
        table["session_id"].n_unique(),
    )


def _parse_texts(
    argument: str, file: Path | None, table: pl.DataFrame, encoder: SessionEncoder
) -> pl.DataFrame:
    """Return the table with numbers and times in place of texts: the context, the order and the feedback."""
    categories = {} if encoder.context is None else encoder.context.categories
    context = [] if encoder.context is None else encoder.context.columns
    needed = [*context, find_order(table.columns), "feedback", "explicit_feedback"]
    texts = [name for name in dict.fromkeys(needed) if name and table.schema.get(name) == pl.String]
    if texts:
        parsers = [_text_parser(name, table[name], categories.get(name)) for name in texts]
        # The first row is the header.
        rows = table.lazy().select(texts).with_row_index(ROW, offset=2)
        table = table.with_columns(parse_columns(rows, file, parsers, name=argument).collect())
    return table


def _text_parser(name: str, texts: pl.Series, categories: Sequence[Category] | None) -> Column:
    """Return the parsing of a column that is text; the training log tells the type of a category."""
    if categories is not None:
        kind = type(categories[0])
        parser = {bool: flag_column, int: integer_column}.get(kind, text_column)
        return parser(name, optional=True)
    if name == "position":
        return integer_column(name)
    if name in ("feedback", "explicit_feedback"):
        return number_column(name, minimum=-1, maximum=1, optional=True)
    numbers = texts.str.strip_chars().cast(pl.Float64, strict=False)
    return (time_column if numbers.null_count() == len(numbers) else number_column)(name, optional=True)


def _keep_known(
    argument: str, file: Path | None, table: pl.DataFrame, encoder: SessionEncoder, unknown: str
) -> pl.DataFrame:
    """Return the plays of tracks that the model knows, with ids of its type; `error` refuses others."""
    vocabulary = encoder.vocabulary
    with name_unreadable(argument):
        ids = _to_type(argument, table["item_id"], vocabulary.dtype)
    known = ids.is_not_null().to_numpy().copy()
    known[known] = vocabulary.encode(ids.drop_nulls(), unknown="ignore") != PADDING_INDEX
    strange = table.filter(~pl.Series(known, dtype=pl.Boolean))
    if strange.height and unknown == "error":
        session, item = strange.select("session_id", "item_id").row(0)
        wanted = "integer ids" if vocabulary.dtype == pl.Int64 else "ids"
        where = "" if file is None else f" of {str(file)!r}"
        raise ValueError(
            f"`{argument}` must hold {wanted} that the model knows, got {item!r} in session {session!r}"
            f"{where} ({strange.height:,} such plays in {table.height:,}). Use the ids of the training "
            "log, or leave such plays out with `--unknown ignore`."
        )
    return table.with_columns(ids.alias("item_id")).filter(pl.Series(known, dtype=pl.Boolean))


def _to_type(argument: str, ids: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Return ids of the type that the model knows, null where one has another form."""
    if ids.dtype == pl.Null:
        return ids.cast(dtype)
    if dtype == pl.Int64 and (ids.dtype == pl.String or ids.dtype.is_numeric()):
        return integer_column("item_id", optional=True).parse(ids)
    if ids.dtype.is_integer():
        ids = ids.cast(pl.String)
    return ids if ids.dtype == pl.String else to_ids(argument, ids, dtype)
