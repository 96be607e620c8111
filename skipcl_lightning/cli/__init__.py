"""The command line `skipcl`; each command imports what it needs, so that help is fast."""

import difflib
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

__all__ = ["main"]

COMMANDS = {
    "demo": "Train with and without a skip head on simulated sessions, and compare.",
    "configs": "List the ready configurations, or print one to begin from.",
    "prepare": "Prepare a log of any size as a session store.",
    "fit": "Train a model by a configuration.",
    "validate": "Evaluate a trained model on the validation set.",
    "test": "Evaluate a trained model on the test set.",
    "predict": "Write the best next items of all sessions but too short ones (min_session_length) to a file.",
    "recommend": "Show the best next items after given sessions, or after any session of a file (--file).",
    "export": "Write a trained model to a folder: weights, items, ONNX and torch.export.",
    "study": "Compare skip heads over backbones, weights, seeds and data sets.",
}
# The functions whose arguments are the settings of a command.
FUNCTIONS = {
    "demo": "skipcl_lightning.cli.demo",
    "recommend": "skipcl_lightning.cli.recommend",
    "export": "skipcl_lightning.cli.export",
    "study": "skipcl_lightning.study",
}
TRAINING_COMMANDS = ("fit", "validate", "test", "predict")


def main() -> None:
    """Run the command that the command line names."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        _print_help()
        raise SystemExit(0 if arguments else 2)
    command, *rest = arguments
    if command == "--version":
        sys.stdout.write(f"skipcl {version('skipcl-lightning')}\n")
    elif command not in COMMANDS:
        raise SystemExit(
            f"skipcl: no command {command!r}.{suggest(command, COMMANDS)} `skipcl --help` lists all."
        )
    else:
        try:
            _run(command, rest)
        except KeyboardInterrupt:
            raise SystemExit(f"skipcl {command}: interrupted. Nothing incomplete was left.") from None


def suggest(name: str, names: Iterable[str]) -> str:
    """Return a sentence, after a space, that suggests the closest known name; empty if none is close."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _print_help() -> None:
    width = max(map(len, COMMANDS))
    lines = [f"    {name.ljust(width)}  {summary}" for name, summary in COMMANDS.items()]
    text = "\n".join(lines)
    sys.stdout.write(
        "usage: skipcl [--version] COMMAND [--help] ...\n\nSkip-aware session recommendation.\n\n"
        f"commands:\n{text}\n\nskipcl COMMAND --help explains the settings of a command.\n"
    )


def _run(command: str, arguments: list[str]) -> None:
    if command in TRAINING_COMMANDS:
        import_module("skipcl_lightning.cli.training").run_training([command, *arguments])
    elif command == "configs":
        import_module("skipcl_lightning.cli.configs").run_configs(arguments)
    elif command == "prepare":
        import_module("skipcl_lightning.cli.prepare").run_prepare(arguments)
    else:
        _call(command, arguments)


def _call(command: str, arguments: list[str]) -> None:
    """Call the function of a command with the settings of the command line."""
    from jsonargparse import ArgumentParser

    from skipcl_lightning.cli.configs import check_yaml, parser_mode

    function = getattr(import_module(FUNCTIONS[command]), command)
    parser = ArgumentParser(
        prog=f"skipcl {command}", description=COMMANDS[command], parser_mode=parser_mode()
    )
    parser.add_argument("--config", action="config", help="a YAML file with settings")
    parser.add_function_arguments(function, as_positional=True)
    try:
        for before, argument in pairwise(["", *arguments]):
            file = argument if before == "--config" else argument.partition("--config=")[2]
            if file:
                check_yaml(Path(file))
        settings = parser.parse_args(arguments).as_dict()
        settings.pop("config", None)
        function(**settings)
    except (ValueError, TypeError, OSError, ImportError) as error:
        # The message explains the error; a traceback would hide it.
        raise SystemExit(f"skipcl {command}: {error}") from error
