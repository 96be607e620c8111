"""`skipcl configs`: the ready configurations of each data set and backbone."""

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
    """Add the command.

    Args:
        commands: The sub-commands of the whole command line, from `ArgumentParser.add_subcommands`.
    """
    parser = ArgumentParser(description="List the ready configurations, or print one to begin from.")
    parser.add_argument(
        "name", nargs="?", help="the one to print, such as mssd/sasrec; all are listed without it"
    )
    commands.add_subcommand("configs", parser, help=parser.description)


def configs(name: str | None = None) -> None:
    """List the ready configurations, or print one to begin from.

    Args:
        name: Of the one to print, such as mssd/sasrec; all are listed without it.
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
    """The ready configurations.

    Returns:
        Names of a data set and a backbone.

    Examples:
        >>> "mssd/sasrec" in configuration_names()
        True
    """
    return [f"{dataset}/{backbone}" for dataset in _titles("data") for backbone in _titles("backbones")]


def read_configuration(name: str) -> str:
    """A ready configuration: what the data set says of data and trainer, and the backbone of the model.

    Args:
        name: One of `configuration_names()`.

    Returns:
        YAML, with comments.

    Raises:
        ValueError: There is none of that name.

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
    # A bidirectional backbone's mask token takes a position too.
    places = {"max_length": max_length, "max_length_and_mask": str(int(max_length) + 1)}
    model = Template(_read("backbones", backbone)).substitute(places)
    return f"{data.rstrip()}\n{model}"


def expand_arguments(arguments: Sequence[str]) -> list[str]:
    """Put the ready configurations in the place of their names, and comments into what is printed.

    Args:
        arguments: What stands on the command line.

    Returns:
        What LightningCLI understands.

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
    """Whether a ready configuration is meant; a file of the user's goes before it."""
    return text in names and not Path(text).exists()


def _titles(kind: str) -> list[str]:
    return sorted(
        file.name.removesuffix(".yaml") for file in (FOLDER / kind).iterdir() if file.name.endswith(".yaml")
    )


def _read(kind: str, title: str) -> str:
    return (FOLDER / kind / f"{title}.yaml").read_text(encoding="utf-8")


def _summary(text: str) -> str:
    """The first line, which is a comment."""
    return text.partition("\n")[0].removeprefix("# ")
