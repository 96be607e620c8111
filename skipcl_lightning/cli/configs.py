"""Command `skipcl configs`, with a ready configuration for each data set and backbone."""

import re
import sys
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from skipcl_lightning._checks import check_choice

__all__ = ["add_configs", "configs", "configuration_names", "expand_arguments", "read_configuration"]

FOLDER = files("skipcl_lightning.cli") / "configurations"
MAX_LENGTH = re.compile(r"^    max_length: (\d+)", flags=re.MULTILINE)


def add_configs(commands: Any) -> None:
    """Add the command `configs` to the sub-commands from `ArgumentParser.add_subcommands`."""
    parser = ArgumentParser(description="List the ready configurations, or print one to begin from.")
    parser.add_argument(
        "name", nargs="?", help="the one to print, such as mssd/sasrec; all are listed without it"
    )
    commands.add_subcommand("configs", parser, help=parser.description)


def configs(name: str | None = None) -> None:
    """List the ready configurations, or print one as a starting point.

    Args:
        name: The configuration to print, such as mssd/sasrec; None lists all.
    """
    if name is not None:
        try:
            sys.stdout.write(read_configuration(name))
        except ValueError as error:
            raise SystemExit(f"skipcl configs: {error}") from error
        return
    table = Table(
        title="skipcl configs NAME prints one; skipcl fit --config NAME trains by it", title_justify="left"
    )
    for column in ("data set", "what it is", "configurations"):
        table.add_column(column)
    for dataset in _titles("data"):
        names = "\n".join(f"{dataset}/{backbone}" for backbone in _titles("backbones"))
        table.add_row(dataset, _summary(_read("data", dataset)), names, end_section=True)
    Console().print(table)


def configuration_names() -> list[str]:
    """Return the names of the ready configurations, such as `mssd/sasrec`: data set, then backbone.

    Examples:
        >>> "mssd/sasrec" in configuration_names()
        True
    """
    return [f"{dataset}/{backbone}" for dataset in _titles("data") for backbone in _titles("backbones")]


def read_configuration(name: str) -> str:
    """Return a ready configuration: data and trainer settings of the data set, then the backbone's model.

    Args:
        name: One of `configuration_names()`.

    Returns:
        YAML, with comments.

    Raises:
        ValueError: No configuration has this name.

    Examples:
        >>> "class_path: SASRec" in read_configuration("mssd/sasrec")
        True
        >>> read_configuration("mssd")
        Traceback (most recent call last):
            ...
        ValueError: `name` must be one of ..., got 'mssd'.
    """
    check_choice("name", name, configuration_names())
    dataset, backbone = name.split("/")
    data = _read("data", dataset)
    (max_length,) = MAX_LENGTH.findall(data)
    # A bidirectional backbone needs one more position, for the mask token.
    places = {"max_length": max_length, "max_length_and_mask": str(int(max_length) + 1)}
    model = Template(_read("backbones", backbone)).substitute(places)
    return f"{data.rstrip()}\n{model}"


def expand_arguments(arguments: Sequence[str]) -> list[str]:
    """Replace names of ready configurations by their YAML, and make `--print_config` include comments.

    Args:
        arguments: The arguments of the command line.

    Returns:
        Arguments that LightningCLI understands.

    Examples:
        >>> expand_arguments(["fit", "--print_config"])
        ['fit', '--print_config=comments']
        >>> expand_arguments(["fit", "--config", "mssd/sasrec"])[2].startswith("# ")
        True
    """
    return list(_expand(arguments))


def _expand(arguments: Sequence[str]) -> Iterator[str]:
    names = configuration_names()
    previous = ""
    for argument in arguments:
        flag, separator, value = argument.partition("=")
        if argument == "--print_config":
            yield "--print_config=comments"
        elif previous in ("--config", "-c") and _is_name(argument, names):
            yield read_configuration(argument)
        elif flag == "--config" and separator and _is_name(value, names):
            yield f"--config={read_configuration(value)}"
        else:
            yield argument
        previous = argument


def _is_name(text: str, names: Sequence[str]) -> bool:
    """Return whether the text names a ready configuration; a file with this path takes precedence."""
    return text in names and not Path(text).exists()


def _titles(kind: str) -> list[str]:
    return sorted(
        file.name.removesuffix(".yaml") for file in (FOLDER / kind).iterdir() if file.name.endswith(".yaml")
    )


def _read(kind: str, title: str) -> str:
    return (FOLDER / kind / f"{title}.yaml").read_text(encoding="utf-8")


def _summary(text: str) -> str:
    """Return the first line, a comment, without its `#`."""
    return text.partition("\n")[0].removeprefix("# ")
