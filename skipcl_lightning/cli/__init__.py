"""The command line: ``skipcl demo``, ``prepare``, ``simulate`` and ``study``."""

import inspect
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser

from skipcl_lightning.cli.demo import demo
from skipcl_lightning.cli.prepare import add_prepare, run_prepare
from skipcl_lightning.cli.simulate import simulate
from skipcl_lightning.study import study

__all__ = ["main"]

COMMANDS: dict[str, Callable[..., Any]] = {"demo": demo, "simulate": simulate, "study": study}


def main() -> None:
    """Run the command that the command line names."""
    parser = ArgumentParser(prog="skipcl", description="Skip-aware session recommendation.")
    commands = parser.add_subcommands()
    for name, function in COMMANDS.items():
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        command = ArgumentParser(description=summary)
        command.add_argument("--config", action="config", help="a YAML file with settings")
        command.add_function_arguments(function, as_positional=True)
        commands.add_subcommand(name, command, help=summary)
    add_prepare(commands)
    settings = parser.parse_args()
    values = settings[settings.subcommand]
    if settings.subcommand == "prepare":
        run_prepare(values)
    else:
        arguments = values.as_dict()
        arguments.pop("config", None)
        COMMANDS[settings.subcommand](**arguments)
