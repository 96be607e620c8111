"""Callback that shows the trade-off between listened and skipped tracks, and may choose the penalty."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from skipcl_lightning._checks import check_integer
from skipcl_lightning.callbacks.loggers import publish_picture, publish_table
from skipcl_lightning.callbacks.protocol import skipcl_parts
from skipcl_lightning.evaluation import SkipTradeOff, skip_trade_off
from skipcl_lightning.evaluation.skip_trade_off import PENALTIES, check_margin, check_penalties

__all__ = ["SkipTradeOffTable"]


class SkipTradeOffTable(Callback):
    """Callback that measures `skip_trade_off` on the validation set, and logs its table and its plot.

    It runs at the start of each validation, and ranks the validation set once for each penalty. W&B and
    TensorBoard receive the table `val/skip_trade_off` and the image `val/skip_trade_off_plot`. A `CSVLogger`
    receives `val_skip_trade_off.csv` and `val_skip_trade_off_plot.png` in its folder; new files overwrite old
    ones. The suggested penalty is logged as `val/suggested_skip_penalty`.

    With `set_penalty`, a training gives the suggested penalty to the module, so the validation metrics and
    the checkpoints that follow have it, and loading one restores it. List the callback after
    `ChooseTransitionWeight`, because the suggestion depends on the weight of the transitions.

    For the trade-off of the best checkpoint alone, call `trainer.validate(module, data, ckpt_path="best")`
    with this callback; the penalty then stays as it is. In a run of several processes, each process ranks
    the whole validation set.

    Args:
        penalties: The penalties, each at least 0; 0 is added if it is missing.
        cut_off: k of the hit rates.
        margin: As for `skip_trade_off`, the largest loss of hit rate to accept, above 0 and below 1.
        set_penalty: Whether a training sets the module's `skip_penalty` to the suggested one.
        num_resamples: Bootstrap resamples of the sessions, at least 1.
        every_n_epochs: Measure in every n-th epoch of training.

    Raises:
        TypeError: A setting has the wrong type, or, when a run starts, the module is no `SkipCLModule` or its
            data no `SessionDataModule`.
        ValueError: A setting is out of range. When a run starts: the module has no `SkipPrediction` head, or
            its weights are sharded. When it measures: the validation set has no listened or no skipped
            targets.

    Examples:
        >>> callbacks = [SkipTradeOffTable(penalties=(0.1, 0.25, 0.5), set_penalty=True)]
    """

    def __init__(
        self,
        *,
        penalties: Sequence[float] = PENALTIES,
        cut_off: int = 10,
        margin: float | None = None,
        set_penalty: bool = False,
        num_resamples: int = 200,
        every_n_epochs: int = 1,
    ) -> None:
        check_penalties(penalties)
        check_margin(margin)
        check_integer("cut_off", cut_off)
        check_integer("num_resamples", num_resamples)
        check_integer("every_n_epochs", every_n_epochs)
        self.penalties = tuple(penalties)
        self.cut_off = cut_off
        self.margin = margin
        self.set_penalty = set_penalty
        self.num_resamples = num_resamples
        self.every_n_epochs = every_n_epochs
        #: The latest trade-off, on every process; None before the first.
        self.front: SkipTradeOff | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise unless the module predicts skips and its data can be ranked again."""
        if stage not in ("fit", "validate"):
            return
        _ = skipcl_parts(trainer, pl_module, self)[0].skip_prediction  # raises without one
        sharded = isinstance(trainer.strategy, ModelParallelStrategy)
        if sharded:
            raise ValueError(
                "`strategy` must keep all weights on each process for SkipTradeOffTable, got "
                "ModelParallelStrategy. Leave the callback out, and call `skip_trade_off` after the training."
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, log, and set the penalty if asked to; not in the sanity check."""
        fits = trainer.state.fn == "fit"
        if trainer.sanity_checking or (fits and trainer.current_epoch % self.every_n_epochs):
            return
        module, data = skipcl_parts(trainer, pl_module, self)
        # A loader draws a seed from torch's generator, on which the training depends.
        with torch.random.fork_rng(devices=[]):
            front = skip_trade_off(
                module,
                data,
                penalties=self.penalties,
                cut_off=self.cut_off,
                margin=self.margin,
                num_resamples=self.num_resamples,
            )
        self.front = front
        # Sums on a device may be rounded otherwise on another.
        penalty = float(trainer.strategy.broadcast(front.penalty))
        if self.set_penalty and fits:
            module.skip_penalty = penalty
        module.log("val/suggested_skip_penalty", penalty, sync_dist=True)
        if trainer.is_global_zero and trainer.loggers:
            _publish(trainer, front)


def _publish(trainer: Trainer, front: SkipTradeOff) -> None:
    table = front.table.with_columns(suggested=pl.col("skip_penalty") == front.penalty)
    publish_table(trainer, "val/skip_trade_off", table)
    with TemporaryDirectory(prefix="skipcl-") as folder:
        publish_picture(trainer, "val/skip_trade_off_plot", front.save_plot(Path(folder) / "front.png"))
