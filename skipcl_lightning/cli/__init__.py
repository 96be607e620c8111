"""The command line: ``skipcl demo``."""

from jsonargparse import auto_cli

from skipcl_lightning.cli.demo import demo

__all__ = ["main"]


def main() -> None:
    """Run the command that the command line names."""
    auto_cli({"demo": demo}, prog="skipcl")
