"""The parser of the training commands: help, comments and errors that fit on a screen."""

import re
import sys
from argparse import Action
from collections.abc import Mapping
from types import MappingProxyType
from typing import IO, Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.heads import NEXT_ITEM_LOSSES, SKIP_HEADS

__all__ = ["TrainingParser", "shorten_error"]

SUBCLASSES = re.compile(r", known subclasses: [\w., ]+")
# Of a torch module jsonargparse knows hundreds of subclasses, and would name them all.
PARTS: Mapping[str, Mapping[str, type]] = MappingProxyType(
    {
        "backbone": BACKBONES,
        "skip_head": SKIP_HEADS,
        "heads": SKIP_HEADS,
        "next_item_loss": NEXT_ITEM_LOSSES,
    }
)
MOST_NAMES = 1000
# What jsonargparse says of each other type that a setting could have had.
NOISE = re.compile(
    r"\s*(-\s)?(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value type: .*"
    r"|Expected a <class '(NoneType|dict)'>|Missing required keys: \{'name'\})"
)
GIVEN = re.compile(r"\s*Given value: ")
LONGEST_VALUE = 100


class ShortHelp(DefaultHelpFormatter):
    """Names the classes that suit an argument, and not all that torch has."""

    def _get_help_string(self, action: Action) -> str:
        text = super()._get_help_string(action)
        part = PARTS.get(action.dest.rpartition(".")[2])
        if part is None and len(text) < MOST_NAMES:
            return text
        return SUBCLASSES.sub("" if part is None else f", or one of {', '.join(part)}", text)


class TrainingParser(LightningArgumentParser):
    """LightningCLI's parser, whose usage is a line, and whose errors say what is wrong only."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"formatter_class": ShortHelp, **settings})

    def print_usage(self, file: IO[str] | None = None) -> None:  # type: ignore[override]  # argparse's own type
        """A line, where all settings would be a hundred.

        Args:
            file: Where to; standard output if None.
        """
        prog = self.prog.replace(" [options]", "")
        (file or sys.stdout).write(f"usage: {prog} --config CONFIG [--SETTING VALUE …]\n")

    def instantiate_classes(self, cfg: Any, **settings: Any) -> Any:
        """What Lightning 2.6 still calls `instantiate` by, for which jsonargparse warns.

        Args:
            cfg: The configuration.
            settings: As for `instantiate`.

        Returns:
            The configuration with objects.
        """
        return self.instantiate(cfg, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong, and end.

        Args:
            message: What jsonargparse found.
            ex: The error behind it.
        """
        super().error(shorten_error(message), ex)


def shorten_error(message: str) -> str:
    """What is wrong, without all types that a value could have had and the settings around it.

    Args:
        message: What jsonargparse found.

    Returns:
        Its lines that say something.

    Examples:
        >>> shorten_error("Given value type: <class 'dict'>")
        ''
    """
    lines = message.splitlines()
    return "\n".join(
        line
        for line in lines
        if not NOISE.fullmatch(line) and not (GIVEN.match(line) and len(line) > LONGEST_VALUE)
    )
