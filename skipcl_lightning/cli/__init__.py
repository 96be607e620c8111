"""The command line: ``skipcl demo`` and ``skipcl study``."""

from jsonargparse import auto_cli

from skipcl_lightning.cli.demo import demo
from skipcl_lightning.study import study

__all__ = ["main"]


def main() -> None:
    """Run the command that the command line names."""
    auto_cli({"demo": demo, "study": study}, prog="skipcl")
