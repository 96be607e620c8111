"""Callback that shows recommendations before and after a skip."""

from typing import Any

import polars as pl
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from skipcl_lightning._checks import check_integer
from skipcl_lightning.backbones.contract import evaluation_mode
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.callbacks.loggers import publish_table
from skipcl_lightning.callbacks.protocol import WatchedModule, watched_data, watched_module
from skipcl_lightning.evaluation.target_rows import changed_scores
from skipcl_lightning.functional import target_ranks, top_k_items

__all__ = ["RecommendationTable"]

_MOST_SEARCHED = 4096


class RecommendationTable(Callback):
    """Callback that shows, after each validation, recommendations just before and just after a skip.

    It uses the first validation sessions with a skip, on rank 0, and cuts each at its last skip. The table's
    key is `val/recommendations`: a table in W&B, text in TensorBoard, `val_recommendations.csv` in the folder
    of a `CSVLogger`. All ids are external. Columns:

    - `epoch`, `step` and `session_id`;
    - `heard`, the last items before the skip;
    - `skipped`, the skipped item, and its rank in the catalogue, `rank_before` and `rank_after`;
    - `before` and `after`, the recommendations.

    Args:
        num_sessions: Maximum number of sessions.
        top_k: Recommendations per list, at most the catalogue size.
        num_heard: Maximum number of items in `heard`.
        every_n_epochs: Update the table in every n-th epoch.

    Raises:
        TypeError: A setting has the wrong type. When a run starts: the module is not a `WatchedModule`, or
            the data module is not a `SessionData`.
        ValueError: A setting is out of range.

    Examples:
        >>> RecommendationTable(num_sessions=4).frame.columns[:4]
        ['epoch', 'step', 'session_id', 'heard']
    """

    def __init__(
        self, *, num_sessions: int = 8, top_k: int = 10, num_heard: int = 5, every_n_epochs: int = 1
    ) -> None:
        check_integer("num_sessions", num_sessions)
        check_integer("top_k", top_k)
        check_integer("num_heard", num_heard)
        check_integer("every_n_epochs", every_n_epochs)
        self.num_sessions = num_sessions
        self.top_k = top_k
        self.num_heard = num_heard
        self.every_n_epochs = every_n_epochs
        #: All rows so far, on rank 0. `heard`, `before` and `after` are lists of ids.
        self.frame = pl.DataFrame(schema=dict.fromkeys(_COLUMNS, pl.Null))
        self._searched: list[SessionBatch] = []
        self._chosen: list[SessionBatch] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise `TypeError` if the module or the data lacks attributes; before a fit, reset the state."""
        watched_module(pl_module, self)
        watched_data(trainer, self)
        if stage == "fit":
            self.frame = self.frame.clear()
            self._searched, self._chosen = [], None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002 - Lightning's signature
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Keep a batch of B sessions until the sessions are chosen."""
        # The search for skips makes the host wait, so it runs at the end of the epoch.
        searched = sum(len(kept) for kept in self._searched)
        if trainer.is_global_zero and self._chosen is None and searched < _MOST_SEARCHED:
            self._searched.append(batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the recommendations and publish the table."""
        if trainer.sanity_checking:
            self._searched = []
            return
        if not trainer.is_global_zero or trainer.current_epoch % self.every_n_epochs:
            return
        if self._chosen is None:
            self._chosen = self._choose()
        rows = [self._recommend(trainer, pl_module, batch) for batch in self._chosen]
        if not rows:
            return
        latest = pl.concat(rows)
        self.frame = latest if self.frame.is_empty() else pl.concat([self.frame, latest])
        publish_table(trainer, "val/recommendations", self.frame)

    def _choose(self) -> list[SessionBatch]:
        """Return the first sessions that have a skip after another item, in their original batches."""
        chosen: list[SessionBatch] = []
        missing = self.num_sessions
        for batch in self._searched:
            rows = batch.rejected_mask[:, 1:].any(dim=1).nonzero().squeeze(1)[:missing]
            if len(rows) and batch.session_index is not None:
                chosen.append(batch[rows])
                missing -= len(rows)
        searched, self._searched = sum(len(batch) for batch in self._searched), []
        if not chosen:
            rank_zero_warn(
                f"RecommendationTable stays empty: none of the first {searched} validation sessions has a "
                "skip after another track, or they have no `session_index`. Check `skip_threshold` and the "
                "reader's rule of what counts as skipped."
            )
        return chosen

    @torch.no_grad()
    def _recommend(self, trainer: Trainer, pl_module: LightningModule, batch: SessionBatch) -> pl.DataFrame:
        module, data = watched_module(pl_module, self), watched_data(trainer, self)
        positions = torch.arange(batch.items.shape[1], device=batch.items.device)
        skip = (batch.rejected_mask * positions).amax(dim=1, keepdim=True)  # [B, 1], the last one
        skipped = batch.items.gather(1, skip).squeeze(1)
        before, after = _cut(batch, positions < skip), _cut(batch, positions <= skip)
        top_k = min(self.top_k, len(module.item_table) - 1)
        with evaluation_mode(pl_module):
            columns = [_ask(module, part, skipped, top_k) for part in (before, after)]
        heard = [
            items[mask][-self.num_heard :]
            for items, mask in zip(before.items, before.valid_mask, strict=True)
        ]
        ids = pl.List(data.vocabulary.dtype)

        def decode(lists: Any) -> pl.Series:
            return pl.Series(
                [data.vocabulary.decode(row[row != PADDING_INDEX].cpu()) for row in lists], dtype=ids
            )

        index = batch.session_index
        assert index is not None  # noqa: S101 - `_choose` took care of it
        return pl.DataFrame(
            {
                "session_id": data.session_ids.gather(index.cpu().numpy()),
                "heard": decode(heard),
                "skipped": pl.Series(data.vocabulary.decode(skipped.cpu()), dtype=data.vocabulary.dtype),
                "rank_before": columns[0][1].cpu().numpy(),
                "rank_after": columns[1][1].cpu().numpy(),
                "before": decode(columns[0][0]),
                "after": decode(columns[1][0]),
            }
        ).select(
            pl.lit(trainer.current_epoch).alias("epoch"), pl.lit(trainer.global_step).alias("step"), pl.all()
        )


_COLUMNS = ("epoch", "step", "session_id", "heard", "skipped", "rank_before", "rank_after", "before", "after")


def _cut(batch: SessionBatch, kept_mask: Tensor) -> SessionBatch:
    """Return the sessions with only the kept positions, and without what comes after them."""
    # The history comes before the session, so it stays whole.
    changes: dict[str, Any] = dict.fromkeys(("target", "target_feedback", "cold_target", "seen"))
    for name in ("items", "feedback", "explicit_feedback", "context"):
        tensor: Tensor | None = getattr(batch, name)
        if tensor is not None:
            mask = kept_mask if tensor.ndim == kept_mask.ndim else kept_mask[..., None]
            changes[name] = tensor.where(mask, PADDING_INDEX)
    return batch.replace(**changes)


def _ask(module: WatchedModule, batch: SessionBatch, skipped: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return [B, top_k] recommendations, and [B] ranks of the skipped items."""
    query = module.session_query(batch)
    seen = batch.items if getattr(module, "exclude_seen", False) else None
    more = changed_scores(module, batch)
    items, _ = top_k_items(query, module.item_table, top_k, exclude=seen, **more)
    return items, target_ranks(query, module.item_table, skipped, **more)
