"""Callback that logs what recommendations begin with and how popular they are."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from skipcl_lightning._checks import check_integer
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.callbacks.first_sessions import FirstSessions
from skipcl_lightning.callbacks.protocol import watched_module
from skipcl_lightning.evaluation.report import describe_last_first
from skipcl_lightning.functional import last_position, top_k_items
from skipcl_lightning.module import SkipCLModule

__all__ = ["ListDiagnostics"]

# The share of fewer sessions says little.
_FEWEST_SESSIONS = 500


class ListDiagnostics(FirstSessions):
    """Callback that logs how often a list begins with the item that just played, and its popularity bias.

    After each validation, over the first sessions of each process:

    - `lists/last_item_first`, the share of sessions whose first recommendation is their own last item;
    - `lists/last_item_next`, the share of listened targets that are this item;
    - `lists/popularity` and `lists/target_popularity`, the mean popularity of the recommended items and of
      the listened targets. An item's popularity is the share of the catalogue that the training set has not
      more often, in (0, 1]. Only with a data module that has `item_counts`.

    The callback warns once if most lists begin with the last item, several times as often as it follows.

    Args:
        top_k: The length of the lists.
        num_sessions: Approximate number of sessions per process and validation; whole batches are used.

    Raises:
        TypeError: A setting has the wrong type, or, when a run starts, the module is not a `WatchedModule`.
        ValueError: A setting is out of range.

    Examples:
        >>> callbacks = [ListDiagnostics(top_k=10)]
    """

    def __init__(self, *, top_k: int = 10, num_sessions: int = 1024) -> None:
        check_integer("top_k", top_k)
        check_integer("num_sessions", num_sessions)
        # Lists, those that begin with the last item, listened targets, those that are the last item; sum and
        # number of recommendations' popularities; sum of the targets'.
        super().__init__(num_sessions, num_sums=7)
        self.top_k = top_k
        self._popularity: Tensor | None = None
        self._warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise `TypeError` unless the module is a `WatchedModule`; before a fit, count the popularity."""
        watched_module(pl_module, self)
        if stage == "fit":
            self._warned = False
            counts = getattr(getattr(trainer, "datamodule", None), "item_counts", None)
            self._popularity = None if counts is None else _popularity(counts)

    def report(self, pl_module: LightningModule, sums: Tensor) -> None:
        """Log the shares and means, and warn of a degenerate model."""
        lists, last_first, listened, last_next, popularity, recommended, of_targets = sums
        values = {"last_item_first": last_first / lists, "last_item_next": last_next / listened}
        if self._popularity is not None:
            values |= {"popularity": popularity / recommended, "target_popularity": of_targets / listened}
        for name, value in values.items():
            pl_module.log(f"lists/{name}", value, sync_dist=True)
        if not self._warned and float(lists) >= _FEWEST_SESSIONS:
            caution = describe_last_first(float(values["last_item_first"]), float(values["last_item_next"]))
            if caution:
                self._warned = True
                rank_zero_warn(caution)

    def measure(
        self, pl_module: LightningModule, batch: SessionBatch, target: Tensor, target_feedback: Tensor
    ) -> list[Tensor]:
        """Return the counts and sums of a batch's lists and targets."""
        module = watched_module(pl_module, self)
        added = pl_module.added_scores(batch) if isinstance(pl_module, SkipCLModule) else None
        query, table = module.session_query(batch), module.item_table
        exclude = batch.seen_items if getattr(module, "exclude_seen", False) else None
        top_k = min(self.top_k, len(table) - 1)
        retired = getattr(module, "retired", None)
        items, _ = top_k_items(query, table, top_k, exclude=exclude, added=added, retired=retired)
        last = last_position(batch.items[..., None], batch.valid_mask).squeeze(1)
        listened = target_feedback >= batch.skip_threshold
        counts = [
            listened.new_tensor(len(batch), dtype=torch.int64),
            (items[:, 0] == last).sum(),
            listened.sum(),
            (listened & (target == last)).sum(),
        ]
        if self._popularity is None:
            return counts + [listened.new_zeros(())] * 3
        popularity = self._popularity = self._popularity.to(items.device)
        of_targets = popularity[target].where(listened, 0)
        return [*counts, popularity[items].sum(), (items != PADDING_INDEX).sum(), of_targets.sum()]


def _popularity(counts: Tensor) -> Tensor:
    """[V + 1] float32: the share of the catalogue that is at most as frequent as an item; 0 for padding."""
    counts = counts[PADDING_INDEX + 1 :]
    at_most = torch.searchsorted(counts.sort().values, counts, right=True)
    return torch.cat([torch.zeros(1), at_most / len(counts)])
