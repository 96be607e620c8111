"""Command `skipcl configs`, with a ready configuration for each data set and backbone."""

import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from skipcl_lightning.cli import suggest

__all__ = [
    "check_yaml",
    "configuration_names",
    "expand_arguments",
    "parser_mode",
    "read_configuration",
    "run_configs",
]

FOLDER = files("skipcl_lightning.cli") / "configurations"
# Loggers that need a folder.
LOCAL_LOGGERS = ("CSVLogger", "TensorBoardLogger")
# More than any configuration has.
_MOST_BYTES = 1_000_000
_MOST_NODES = 100_000
# PyYAML takes the square of the depth in time, and a stack of Python's for each level.
_MOST_DEEP = 100
MAX_LENGTH = re.compile(r"^    max_length: (\d+)", flags=re.MULTILINE)


def run_configs(arguments: Sequence[str]) -> None:
    """List the ready configurations, or print the one that the command line names."""
    parser = ArgumentParser(
        prog="skipcl configs", description="List the ready configurations, or print one to begin from."
    )
    parser.add_argument("name", nargs="?", help="the one to print, such as mssd/sasrec; without it, a list")
    name = parser.parse_args(arguments).name
    if name is not None:
        try:
            sys.stdout.write(read_configuration(name))
        except ValueError as error:
            raise SystemExit(f"skipcl configs: {error}") from error
        return
    table = Table()
    table.add_column("data set", no_wrap=True)
    table.add_column("what it is")
    for dataset in _titles("data"):
        table.add_row(dataset, _summary(_read("data", dataset)))
    console = Console()
    console.print(table)
    models = ", ".join(_titles("backbones"))
    lines = (
        f"Models: {models}. The name of a configuration is data set/model:",
        "  skipcl configs mssd/sasrec       # print it, and how its data are prepared",
        "  skipcl fit --config mssd/sasrec  # train with it",
    )
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def configuration_names() -> list[str]:
    """Return the names of the ready configurations, such as `mssd/sasrec`: data set, then backbone."""
    return [f"{dataset}/{backbone}" for dataset in _titles("data") for backbone in _titles("backbones")]


def read_configuration(name: str) -> str:
    """Return a ready configuration as YAML: data and trainer of the data set, then the backbone's model."""
    names = configuration_names()
    if name not in names:
        raise ValueError(
            f"`name` must be one of the ready configurations, got {name!r}.{suggest(name, names)} "
            "`skipcl configs` lists them."
        )
    dataset, backbone = name.split("/")
    data = _read("data", dataset)
    (max_length,) = MAX_LENGTH.findall(data)
    # A bidirectional backbone needs one more position, for the mask token.
    places = {"max_length": max_length, "max_length_and_mask": str(int(max_length) + 1)}
    model = Template(_read("backbones", backbone)).substitute(places)
    return f"{data.rstrip()}\n{model}"


def expand_arguments(arguments: Sequence[str]) -> Iterator[str]:
    """Replace names of ready configurations by their YAML, and make `--print_config` include comments."""
    previous = ""
    for argument in arguments:
        flag, separator, value = argument.partition("=")
        if argument == "--print_config":
            yield "--print_config=comments"
        elif previous in ("--config", "-c"):
            yield _configuration(argument)
        elif flag == "--config" and separator:
            yield f"--config={_configuration(value)}"
        else:
            yield argument
        logger = value if flag == "--trainer.logger" else argument if previous == "--trainer.logger" else ""
        has_folder = any(one.startswith("--trainer.logger.save_dir") for one in arguments)
        if logger in LOCAL_LOGGERS and not has_folder:
            yield "--trainer.logger.save_dir=."
        previous = argument


def check_yaml(file: Path) -> None:
    """Raise unless a configuration can be read in bounded time and memory.

    Aliases let a few lines stand for billions, or for themselves without an end.

    Args:
        file: The configuration.

    Raises:
        ValueError: It is no text in UTF-8, is too large or too deep, or repeats or contains itself.
    """
    refused = f"`--config` must be a configuration in YAML, got {str(file)!r}"
    if not file.is_file() or file.stat().st_size > _MOST_BYTES:
        raise ValueError(
            f"{refused}, which is no file of at most {_MOST_BYTES:,} bytes. See `skipcl configs`."
        )
    try:
        _count_nodes(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{refused}: {error}. Write it as `skipcl configs` prints one, in UTF-8.") from error


def _count_nodes(text: str) -> None:
    """Raise if the nodes of a YAML text, with those that its aliases stand for, are too many."""
    sizes: dict[str, int] = {}
    # The anchors of the open collections, and how many nodes each has.
    opened: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, 1))
            if len(opened) > _MOST_DEEP:
                raise ValueError(f"its lists and mappings are nested more than {_MOST_DEEP} deep")
            continue
        # An open collection has no size yet: one that contains itself never ends.
        size = sizes.get(anchor or "", _MOST_NODES) if isinstance(event, yaml.AliasEvent) else 1
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            sizes[anchor] = size
        opened[-1] = opened[-1][0], opened[-1][1] + size
        if opened[-1][1] >= _MOST_NODES:
            raise ValueError("aliases (*) make it too large, or contain themselves")


def parser_mode() -> str:
    """Return the mode by which jsonargparse reads YAML after these checks, which it learns here."""
    # Here, because `skipcl --help` must not import it.
    from jsonargparse import get_loader, set_loader

    def load_yaml(text: str) -> Any:
        if len(text) > _MOST_BYTES:
            raise ValueError(f"YAML must have at most {_MOST_BYTES:,} bytes, got {len(text):,}. Split it.")
        if "*" in text or len(text) > _MOST_DEEP:
            try:
                _count_nodes(text)
            except ValueError as error:
                raise ValueError(f"YAML must be small and without cycles: {error}. Write it out.") from error
        return get_loader("yaml")(text)

    # Not under the name "yaml", which other programs of a process use.
    mode = "yaml of skipcl"
    set_loader(mode, load_yaml, exceptions=(yaml.YAMLError,))
    return mode


def _configuration(text: str) -> str:
    """Return the YAML of a ready configuration, or the path of a file; a file takes precedence."""
    names = configuration_names()
    if "\n" in text:
        return text
    if Path(text).exists():
        check_yaml(Path(text))
        return text
    if text in names:
        return read_configuration(text)
    raise ValueError(
        f"`--config` must be a file or a ready configuration, got {text!r}.{suggest(text, names)} "
        "`skipcl configs` lists them."
    )


def _titles(kind: str) -> list[str]:
    return sorted(
        file.name.removesuffix(".yaml") for file in (FOLDER / kind).iterdir() if file.name.endswith(".yaml")
    )


def _read(kind: str, title: str) -> str:
    return (FOLDER / kind / f"{title}.yaml").read_text(encoding="utf-8")


def _summary(text: str) -> str:
    """Return the first line, a comment, without its `#`."""
    return text.partition("\n")[0].removeprefix("# ")
