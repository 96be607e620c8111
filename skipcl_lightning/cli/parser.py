"""Parser of the training commands, with short usage, help and error messages."""

import re
import sys
import traceback
from argparse import Action
from collections.abc import Mapping
from types import MappingProxyType
from typing import IO, Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.cli import suggest
from skipcl_lightning.heads import NEXT_ITEM_LOSSES, SKIP_HEADS

__all__ = ["TrainingParser", "cut_lines", "root_cause", "suggest_part"]

# jsonargparse would list all the hundreds of subclasses of `torch.nn.Module`.
PARTS: Mapping[str, Mapping[str, type]] = MappingProxyType(
    {
        "backbone": BACKBONES,
        "skip_head": SKIP_HEADS,
        "heads": SKIP_HEADS,
        "next_item_loss": NEXT_ITEM_LOSSES,
    }
)
# A longer line of help or of an error lists all classes or settings.
LONGEST_LINE = 400


class ShortHelp(DefaultHelpFormatter):
    """Help formatter that names only the classes that suit an argument."""

    def _get_help_string(self, action: Action) -> str:
        part = PARTS.get(action.dest.rpartition(".")[2])
        if part is None:
            return cut_lines(super()._get_help_string(action))
        return f"{action.help} (one of {', '.join(part)}, or the path of a class of your own)"


class TrainingParser(LightningArgumentParser):
    """LightningCLI's parser with a one-line usage and short error messages."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"formatter_class": ShortHelp, **settings})

    def print_usage(self, file: IO[str] | None = None) -> None:  # type: ignore[override]  # argparse's own type
        """Print the usage in one line, to standard output by default; all settings would take a hundred."""
        prog = self.prog.replace(" [options]", "")
        (file or sys.stdout).write(f"usage: {prog} --config CONFIG [--SETTING VALUE …]\n")

    def instantiate_classes(self, cfg: Any, **settings: Any) -> Any:
        """Call `instantiate`: Lightning 2.6 still uses this old name, for which jsonargparse warns."""
        return self.instantiate(cfg, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print a shortened error message and its cause, and exit.

        Args:
            message: The message of jsonargparse.
            ex: The error that caused it.
        """
        text, cause = cut_lines(message), root_cause(ex) if ex else None
        text = text if cause is None or cause is ex else f"{text}\nThe cause: {cause}"
        suggestion = suggest_part(str(cause or message))
        super().error(f"{text}.{suggestion}" if suggestion else text, ex)


def suggest_part(message: str) -> str:
    """Return a sentence that suggests the closest name of a built-in part for the words of a message.

    Args:
        message: The message of an error.

    Returns:
        A sentence after a space, or nothing.

    Examples:
        >>> suggest_part("Expected a dot import path string: SASRek")
        ' Did you mean SASRec?'
    """
    known = sorted({name for names in PARTS.values() for name in names})
    words = [word for word in re.findall(r"\w+", message) if word not in known and not word.islower()]
    return next((found for word in words if (found := suggest(word, known))), "")


def root_cause(error: BaseException) -> BaseException:
    """Return the error from which jsonargparse raised its own.

    Args:
        error: An error, perhaps raised by jsonargparse from another.

    Returns:
        The first error of the chain that jsonargparse did not raise, or the start of the chain.

    Examples:
        >>> root_cause(ValueError("`x` must be 1"))
        ValueError('`x` must be 1')
    """
    while error.__cause__ is not None and _raised_in(error).startswith("jsonargparse"):
        error = error.__cause__
    return error


def _raised_in(error: BaseException) -> str:
    """Return the name of the module that raised an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


def cut_lines(text: str) -> str:
    """Cut the lines that would fill a screen.

    Args:
        text: Lines of help or of an error.

    Returns:
        The same lines, none longer than 400 characters.

    Examples:
        >>> len(cut_lines("x" * 1000))
        400
    """
    lines = text.splitlines()
    return "\n".join(line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…" for line in lines)
