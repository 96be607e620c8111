"""Command line `skipcl`, with the commands `fit`, `configs`, `demo`, `prepare` and others."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser

from skipcl_lightning.cli.configs import add_configs, configs
from skipcl_lightning.cli.demo import demo
from skipcl_lightning.cli.prepare import add_prepare, run_prepare
from skipcl_lightning.study import study

__all__ = ["main"]

COMMANDS: dict[str, Callable[..., Any]] = {"demo": demo, "study": study}
# LightningCLI parses and runs these commands.
TRAINING_COMMANDS = {
    "fit": "Train a model, as a configuration says: see `skipcl configs`.",
    "validate": "Measure a trained model on the tracks to validate on.",
    "test": "Measure a trained model on the held-out tracks.",
    "predict": "Write the best next tracks of every session to a file.",
}


def main() -> None:
    """Run the command that the command line names."""
    if sys.argv[1:] and sys.argv[1] in TRAINING_COMMANDS:
        # A late import: LightningCLI is slow to import, and the other commands do not need it.
        from skipcl_lightning.cli.training import run_training

        run_training(sys.argv[1:])
        return
    parser = ArgumentParser(prog="skipcl", description="Skip-aware session recommendation.")
    commands = parser.add_subcommands()
    for name, summary in TRAINING_COMMANDS.items():
        commands.add_subcommand(name, ArgumentParser(description=summary), help=summary)
    for name, function in COMMANDS.items():
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        command = ArgumentParser(description=summary)
        command.add_argument("--config", action="config", help="a YAML file with settings")
        command.add_function_arguments(function, as_positional=True)
        commands.add_subcommand(name, command, help=summary)
    add_prepare(commands)
    add_configs(commands)
    settings = parser.parse_args()
    values = settings[settings.subcommand]
    if settings.subcommand == "prepare":
        run_prepare(values)
    elif settings.subcommand == "configs":
        configs(values.name)
    else:
        arguments = values.as_dict()
        arguments.pop("config", None)
        try:
            COMMANDS[settings.subcommand](**arguments)
        except (ValueError, OSError) as error:
            # The message explains the error; a traceback would hide it.
            raise SystemExit(f"skipcl {settings.subcommand}: {error}") from error
