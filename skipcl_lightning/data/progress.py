"""How long work tells how far it is."""

from collections.abc import Callable

__all__ = ["Progress", "no_progress"]

# The step's name, how much of it is done, and of how much; None where nobody knows yet.
Progress = Callable[[str, int, int | None], None]


def no_progress(step: str, done: int, total: int | None) -> None:
    """Tell nobody."""
