"""Command `skipcl prepare`, which converts the files of a public log to a session store."""

import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from skipcl_lightning.data import (
    LeaveOneOut,
    SplitBySession,
    SplitByTime,
    prepare_store,
    read_30music,
    read_lfm1k,
    read_lfm2b,
    read_listenbrainz,
    read_movielens,
    read_mssd,
    read_streaming_history,
    read_table,
    read_yambda,
)
from skipcl_lightning.data.prepare.inputs import (
    BUILT_IN,
    ContextEncoder,
    choose_context,
    resolve_vocabulary,
)
from skipcl_lightning.data.prepare.preparation import FeedbackWarning
from skipcl_lightning.data.splits import Split, Targets

__all__ = ["make_parser", "make_split", "run_prepare"]

SOURCES: dict[str, Callable[..., pl.LazyFrame]] = {
    "mssd": read_mssd,
    "lfm1k": read_lfm1k,
    "lfm2b": read_lfm2b,
    "yambda": read_yambda,
    "30music": read_30music,
    "streaming_history": read_streaming_history,
    "listenbrainz": read_listenbrainz,
    "movielens": read_movielens,
    "table": read_table,
}
# `prepare_store` labels and cuts these histories part by part, since their readers would do so in memory.
HISTORIES = ("lfm1k", "lfm2b", "yambda", "listenbrainz")
SplitName = Literal["leave_one_out", "session", "time"]


def make_split(
    split: SplitName = "leave_one_out",
    validation_share: float | None = None,
    test_share: float | None = None,
    validation_from: str | None = None,
    test_from: str | None = None,
    targets: Targets | None = None,
    split_seed: int | None = None,
) -> Split:
    """Create the split that the settings of the command line describe.

    Args:
        split: What to hold out: the last two items of each session, whole sessions, or the latest events.
        validation_share: Share of sessions in the validation set, in (0, 1); session split only, default
            0.1.
        test_share: Share of sessions in the test set, in (0, 1); session split only, default 0.1.
        validation_from: Start of the validation period; time split only: ISO 8601, or seconds such as 900s.
        test_from: Start of the test period; time split only, same format.
        targets: Which items of a session to predict, `last` or `every`; session and time splits only.
        split_seed: Random seed, 0 or more; session split only, default 0.

    Raises:
        ValueError: A setting is missing, or belongs to another split.
    """
    given: dict[str, Any] = {
        name: value for name, value in locals().items() if name != "split" and value is not None
    }
    known = {
        "leave_one_out": (),
        "session": ("validation_share", "test_share", "targets", "split_seed"),
        "time": ("validation_from", "test_from", "targets"),
    }[split]
    foreign = [name for name in given if name not in known]
    if foreign:
        raise ValueError(
            f"`{foreign[0]}` must be left alone with `split` {split!r}, got {given[foreign[0]]!r}."
        )
    if split == "leave_one_out":
        return LeaveOneOut()
    if split == "session":
        if "split_seed" in given:
            given["seed"] = given.pop("split_seed")
        return SplitBySession(**given)
    for name in ("validation_from", "test_from"):
        if name not in given:
            raise ValueError(f"`{name}` must be given with `split` 'time', got None.")
        given[name] = _to_moment(given[name])
    return SplitByTime(**given)


def _to_moment(text: str) -> str | float:
    """Convert seconds such as 900s to a number; return all other text unchanged, as ISO 8601."""
    return float(text.removesuffix("s")) if re.fullmatch(r"-?\d+(\.\d+)?s", text) else text


def make_parser() -> ArgumentParser:
    """Return the parser of `skipcl prepare`, with one sub-command for each source."""
    description = "Prepare a log of any size as a session store."
    parser = ArgumentParser(prog="skipcl prepare", description=description)
    sources = parser.add_subcommands(dest="source")
    for name, reader in SOURCES.items():
        summary = (inspect.getdoc(reader) or "").partition("\n")[0]
        source = ArgumentParser(description=f"{summary} The result is a session store.")
        (paths, *_) = inspect.signature(reader).parameters
        source.add_argument("paths", nargs="+", type=Path, help="files, or one folder that is searched")
        source.add_argument("--folder", type=Path, required=True, help="the store's own folder")
        source.add_function_arguments(reader, skip={paths, "columns"})
        source.add_function_arguments(make_split)
        skipped: set[str | int] = {"log", "folder", "split", "on_progress", "gap_minutes", "skip_seconds"}
        source.add_function_arguments(prepare_store, skip=skipped | {"context"})
        source.add_argument(
            "--context",
            type=list[str],
            default=[],
            help="inputs of a play's context: gap, hour, weekday, place and names of columns of the log",
        )
        sources.add_subcommand(name, source, help=summary)
    return parser


def run_prepare(arguments: Sequence[str]) -> None:
    """Prepare the store that the arguments of the command line describe."""
    settings = make_parser().parse_args(list(arguments))
    source: str = settings.source
    values: dict[str, Any] = settings[source].as_dict()
    # A shell leaves the tilde of `--folder=~/store`.
    paths, folder = values.pop("paths"), values.pop("folder").expanduser()
    reader = SOURCES[source]
    console = Console()
    steps: dict[str, TaskID] = {}
    try:
        split = make_split(**_take(values, make_split))
        store_settings = _take(values, prepare_store)
        if source in HISTORIES:
            store_settings |= _take_history(values)
        if "columns" in inspect.signature(reader).parameters:
            given = store_settings["vocabulary"]
            known = None if given is None else resolve_vocabulary(given)
            chosen = choose_context(store_settings["context"], known)
            names = chosen.categories if isinstance(chosen, ContextEncoder) else chosen
            values["columns"] = [name for name in names if name not in BUILT_IN]
        log = reader(paths[0] if len(paths) == 1 else paths, **values)
        bar = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,}"),
            TimeElapsedColumn(),
        )
        with (
            Progress(*bar, console=console, transient=True) as progress,
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always", FeedbackWarning)

            def tell(step: str, done: int, total: int | None) -> None:
                if step not in steps:
                    steps[step] = progress.add_task(step, total=total)
                progress.update(steps[step], completed=done, total=total)

            data = prepare_store(log, folder, split=split, on_progress=tell, **store_settings)
    except (ValueError, OSError, pl.exceptions.PolarsError) as error:
        # The message explains the error; a traceback would hide it.
        raise SystemExit(f"skipcl prepare {source}: {error}") from error
    size = sum(file.stat().st_size for file in folder.iterdir())
    again = "" if steps else "Nothing to do: it was prepared before. "
    cautions = "".join(f"Warning: {warning.message}\n" for warning in caught)
    if source == "table" and data.drop_report.share_unknown == 1:
        cautions += (
            "No column says what was skipped: name one with `--skipped`, `--feedback`, or `--played` and "
            "`--duration`, unless the log has none.\n"
        )
    console.print(
        f"{data}\n{cautions}{again}{size / 1e6:,.1f} MB: {folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _take(values: dict[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Remove the settings of a function from all settings, and return them."""
    names = inspect.signature(function).parameters
    shared = ("gap_minutes", "skip_seconds")
    return {name: values.pop(name) for name in list(values) if name in names and name not in shared}


def _take_history(values: dict[str, Any]) -> dict[str, Any]:
    """Move the session rules from the reader's settings to the store's, so that the reader cuts nothing."""
    history: dict[str, Any] = {
        name: values.pop(name) for name in ("gap_minutes", "skip_seconds") if name in values
    }
    if history["gap_minutes"] is None:
        raise ValueError(
            "`gap_minutes` must be a number, got None. Give 20, for one: a store holds sessions."
        )
    values["gap_minutes"] = None
    return history
