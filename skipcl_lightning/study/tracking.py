"""Runs of the study in Weights & Biases."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["Mode", "Tracking", "tracked"]

Mode = Literal["none", "offline", "online"]
PROJECT = "skipcl"


@dataclass(frozen=True)
class Tracking:
    """Where runs are logged.

    Args:
        mode: `offline`, which needs no account, or `online`.
        group: The runs' common group.
        folder: Where W&B keeps its files.
    """

    mode: Literal["offline", "online"]
    group: str
    folder: Path


@contextmanager
def tracked(
    tracking: Tracking | None, name: str, settings: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A run in W&B for as long as the context lasts; marked as failed if an error ends it.

    Args:
        tracking: Where; None for nowhere.
        name: The run's.
        settings: Its configuration.

    Yields:
        What takes the metrics, which become the run's summary.

    Examples:
        >>> with tracked(None, "run", {}) as log:
        ...     log({"hit_rate@10": 0.5})
    """
    if tracking is None:
        yield lambda _: None
        return
    import wandb  # slow to import, and most studies do without

    tracking.folder.mkdir(parents=True, exist_ok=True)
    with wandb.init(
        project=PROJECT,
        group=tracking.group,
        name=name,
        dir=tracking.folder,
        mode=tracking.mode,
        config=dict(settings),
        settings=wandb.Settings(silent=True),
    ) as run:
        yield lambda metrics: run.summary.update(dict(metrics))
