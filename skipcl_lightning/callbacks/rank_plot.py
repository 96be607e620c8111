"""Callback that plots the ranks of listened and skipped targets."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from skipcl_lightning._checks import check_integer
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.callbacks.loggers import publish_picture
from skipcl_lightning.callbacks.protocol import WatchedModule, watched_module
from skipcl_lightning.evaluation import save_rank_plot
from skipcl_lightning.evaluation.target_rows import changed_scores
from skipcl_lightning.functional import rank_batch

__all__ = ["RankPlot"]


class RankPlot(Callback):
    """Callback that plots the cumulative share of listened and of skipped targets by rank.

    It plots after validation and test. The picture's key is `val/ranks` or `test/ranks`. W&B and TensorBoard
    receive an image. A `CSVLogger` receives `val_ranks.png` or `test_ranks.png` in its folder; a new picture
    overwrites the old one. `SkipCLModule` returns its ranks; for a `WatchedModule` that does not, the
    callback ranks the targets again. Ranks are counted on the device and summed over all processes. Memory
    use does not grow with the sessions.

    Args:
        top_k: Rank to mark in the plot, with the hit rates of both curves.
        every_n_epochs: Plot validation in every n-th epoch.

    Raises:
        TypeError: A setting has the wrong type, or, when a run starts, the module is not a `WatchedModule`.
        ValueError: A setting is out of range.

    Examples:
        >>> RankPlot(top_k=20).frames
        {}
    """

    def __init__(self, *, top_k: int = 10, every_n_epochs: int = 1) -> None:
        check_integer("top_k", top_k)
        check_integer("every_n_epochs", every_n_epochs)
        self.top_k = top_k
        self.every_n_epochs = every_n_epochs
        #: Data of the latest picture by `val` and `test`, on rank 0. `listened` and `skipped` count the
        #: targets whose rank is at most this row's `rank` and greater than the previous row's.
        self.frames: dict[str, pl.DataFrame] = {}
        self._edges: Tensor | None = None
        self._counts: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Raise `TypeError` unless the module is a `WatchedModule`."""
        watched_module(pl_module, self)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the counts, in epochs that are plotted."""
        if not trainer.sanity_checking and trainer.current_epoch % self.every_n_epochs == 0:
            self._start(pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002 - Lightning's signature
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Count the ranks of a batch of B sessions with targets; several loaders count as one."""
        if self._counts is None or self._edges is None:
            return
        if batch.target_feedback is None:
            raise ValueError("`batch` must have targets, got none. Use a validation or test loader.")
        ranks = outputs.get("ranks") if isinstance(outputs, dict) else None
        if ranks is None:
            ranks = _rank_targets(watched_module(pl_module, self), batch)
        place = torch.bucketize(ranks, self._edges)
        skipped = (batch.target_feedback < batch.skip_threshold).long()
        self._counts.view(-1).index_add_(0, skipped * len(self._edges) + place, torch.ones_like(place))

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Plot the validation ranks."""
        self._draw(trainer, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Reset the counts."""
        self._start(pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Plot the test ranks."""
        self._draw(trainer, "test")

    def _start(self, pl_module: LightningModule) -> None:
        table = watched_module(pl_module, self).item_table
        num_items = len(table) - 1
        # The plot draws its curves at these ranks, so counting between them loses nothing.
        grid = np.round(np.geomspace(1, num_items, 400)).astype(np.int64)
        edges = np.unique(np.append(grid, min(self.top_k, num_items)))
        self._edges = torch.from_numpy(edges).to(table.device)
        self._counts = torch.zeros(2, len(edges), dtype=torch.int64, device=table.device)

    def _draw(self, trainer: Trainer, stage: str) -> None:
        if self._counts is None or self._edges is None:
            return
        counts = trainer.strategy.reduce(self._counts, reduce_op="sum")
        edges, self._counts = self._edges, None
        if not trainer.is_global_zero:
            return
        ranks = pl.Series("rank", edges.cpu().numpy())
        listened, skipped = (pl.Series(row.numpy()) for row in counts.cpu())
        frame = pl.DataFrame({"rank": ranks, "listened": listened, "skipped": skipped})
        self.frames[stage] = frame
        if trainer.loggers:
            self._publish(trainer, f"{stage}/ranks", frame)

    def _publish(self, trainer: Trainer, key: str, frame: pl.DataFrame) -> None:
        counts = frame.unpivot(index="rank", variable_name="kind", value_name="count")
        sessions = counts.select(
            pl.col("rank").repeat_by("count"), skipped=pl.col("kind") == "skipped"
        ).explode("rank", empty_as_null=False)
        num_items = int(frame["rank"][-1])
        with TemporaryDirectory(prefix="skipcl-") as folder:
            picture = Path(folder) / "ranks.png"
            title = f"{key.partition('/')[0]}, step {trainer.global_step}"
            save_rank_plot(picture, {title: sessions}, num_items=num_items, top_k=min(self.top_k, num_items))
            publish_picture(trainer, key, picture)


def _rank_targets(module: WatchedModule, batch: SessionBatch) -> Tensor:
    """[B] ranks in the whole catalogue, by the module's own rules if it has some."""
    return rank_batch(
        module.session_query(batch),
        module.item_table,
        batch,
        exclude_seen=getattr(module, "exclude_seen", False),
        ties=getattr(module, "ties", "pessimistic"),
        **changed_scores(module, batch),
    ).ranks
