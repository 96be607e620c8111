"""Progress bar that fits a terminal of 80 columns."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

__all__ = ["ShortProgressBar"]

# Lightning gives the metrics about 17 of 80 columns.
_SHORT = {"train/loss": "loss", "val/skip_hit_rate@": "SkipHR@", "val/hit_rate@": "HR@"}


class ShortProgressBar(RichProgressBar):
    """Lightning's progress bar, with short names of our metrics, each on a line of its own."""

    def __init__(self) -> None:
        super().__init__(theme=RichProgressBarTheme(metrics_text_delimiter="\n"))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics without the version of the run, which is the name of its folder."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {_shorten(name): value for name, value in metrics.items()}


def _shorten(name: str) -> str:
    for long, short in _SHORT.items():
        name = name.replace(long, short)
    return name
