"""Callbacks that log what validation sessions show about a model: its embeddings and its lists."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from skipcl_lightning._checks import check_integer, check_number
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.callbacks.protocol import WatchedModule, plain_scores, watched_module
from skipcl_lightning.evaluation.report import describe_last_first
from skipcl_lightning.evaluation.target_rows import changed_scores
from skipcl_lightning.functional import alignment, effective_rank, last_position, top_k_items, uniformity

__all__ = ["EmbeddingDiagnostics", "ListDiagnostics"]

# The share of fewer sessions says little.
_FEWEST_SESSIONS = 500


class _FirstSessions(Callback):
    """Callback that adds up `measure` over the first sessions of each process, for `report`.

    Args:
        num_sessions: Approximate number of sessions per process and validation; whole batches are used.
        num_sums: The number of values that `measure` returns.
    """

    def __init__(self, num_sessions: int, num_sums: int) -> None:
        self.num_sessions = num_sessions
        self._num_sums = num_sums
        self._seen_sessions = 0
        # Not torchmetrics 1.9's MeanMetric: it makes the host check batches for NaN, or it forgets weights.
        self._sums = torch.zeros(num_sums)

    def measure(
        self, pl_module: LightningModule, batch: SessionBatch, target: Tensor, target_feedback: Tensor
    ) -> list[Tensor]:
        """Return the scalars that a batch of B sessions with targets adds to the sums."""
        raise NotImplementedError

    def report(self, pl_module: LightningModule, sums: Tensor) -> None:
        """Log what follows from the sums over all processes."""
        raise NotImplementedError

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Reset the sums."""
        self._seen_sessions = 0
        self._sums = torch.zeros(self._num_sums, device=pl_module.device)

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002 - Lightning's signature
        batch: Any,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Measure a batch, until `num_sessions` are reached."""
        if trainer.sanity_checking or self._seen_sessions >= self.num_sessions:
            return
        target, target_feedback = batch.target, batch.target_feedback
        if target is None or target_feedback is None:
            raise ValueError("`batch` must have targets, got none. Use a validation loader.")
        self._seen_sessions += len(batch)
        values = self.measure(pl_module, batch, target, target_feedback)
        self._sums += torch.stack([value.to(self._sums.dtype) for value in values])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the sums over all processes."""
        if not trainer.sanity_checking:
            sums: Tensor = trainer.strategy.reduce(self._sums, reduce_op="sum")
            self.report(pl_module, sums)


class EmbeddingDiagnostics(_FirstSessions):
    """Callback that logs norms, spread and drift of item embeddings, and their alignment with sessions.

    After each training epoch:

    - `embeddings/norm_mean`, `norm_std` and `norm_max`, over all items;
    - `embeddings/uniformity` and `embeddings/effective_rank`, over a sample of items;
    - `embeddings/drift`, the mean cosine distance of these items from their initial embeddings, in [0, 2].

    After each validation, over the first sessions of each process:

    - `embeddings/alignment`, the mean squared distance on the unit sphere from a session's query to its
      listened target;
    - `embeddings/query_uniformity`, the spread of the queries.

    All are without the columns that a `skip_penalty` adds to queries and items.

    The callback warns once if all items point in nearly one direction, fill nearly one dimension, or have
    non-finite values. The sample is drawn once, with a random generator of its own, so training is
    unaffected. Lightning's checkpoints contain the sample, so a resumed run still measures drift from the
    first start.

    Args:
        num_items: Maximum number of items in the sample.
        num_sessions: Approximate number of sessions per process and validation; whole batches are used.
        collapse_uniformity: Items count as collapsed above this uniformity, in [-8, 0]. At -0.2, the typical
            cosine between two items is 0.95.
        collapse_rank: c in [0, 1]. Items count as collapsed if the effective rank is below 1 + c (d - 1),
            where d is the smaller of D and the sample size.
        seed: Seed of the sample.

    Raises:
        TypeError: A setting has the wrong type, or, when a run starts, the module is not a `WatchedModule`.
        ValueError: A setting is out of range.

    Reference:
        Alignment and uniformity: Wang and Isola, ICML 2020, arXiv 2005.10242. Collapse to few dimensions:
        Jing, Vincent, LeCun, Tian: Understanding Dimensional Collapse in Contrastive Self-supervised
        Learning, ICLR 2022, arXiv 2110.09348.

    Examples:
        >>> callbacks = [EmbeddingDiagnostics(num_items=1000)]
    """

    def __init__(
        self,
        *,
        num_items: int = 2048,
        num_sessions: int = 1024,
        collapse_uniformity: float = -0.2,
        collapse_rank: float = 0.05,
        seed: int = 0,
    ) -> None:
        check_integer("num_items", num_items, minimum=2)
        check_integer("num_sessions", num_sessions, minimum=2)
        check_number("collapse_uniformity", collapse_uniformity, minimum=-8, maximum=0)
        check_number("collapse_rank", collapse_rank, minimum=0, maximum=1)
        check_integer("seed", seed, minimum=0)
        # Sum and count of squared distances, then of Gaussian potentials.
        super().__init__(num_sessions, num_sums=4)
        self.num_items = num_items
        self.collapse_uniformity = collapse_uniformity
        self.collapse_rank = collapse_rank
        self.seed = seed
        self._rows: Tensor | None = None
        self._start: Tensor | None = None
        self._warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Raise `TypeError` unless the module is a `WatchedModule`; before a fit, reset the state."""
        watched_module(pl_module, self)
        if stage == "fit":
            self._rows = self._start = None
            self._warned = False

    def state_dict(self) -> dict[str, Any]:
        """Return the sample, its initial embeddings and whether the warning was given."""
        return {"rows": self._rows, "start": self._start, "warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._rows, self._start = state_dict["rows"], state_dict["start"]
        self._warned = state_dict["warned"]

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Draw the sample, unless a checkpoint contained it."""
        table = _item_table(watched_module(pl_module, self))
        if self._rows is None or self._start is None:
            generator = torch.Generator().manual_seed(self.seed)
            rows = torch.randperm(len(table) - 1, generator=generator)[: self.num_items] + PADDING_INDEX + 1
            self._rows = rows.to(table.device)
            self._start = table[self._rows].float()
        self._rows, self._start = self._rows.to(table.device), self._start.to(table.device)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Log the values of the item table."""
        if self._rows is None or self._start is None:
            return
        table = _item_table(watched_module(pl_module, self))
        wide = torch.promote_types(table.dtype, torch.float32)
        norms = torch.linalg.vector_norm(table[PADDING_INDEX + 1 :], dim=1, dtype=wide)
        sample = table[self._rows].float()
        values = {
            "norm_mean": norms.mean(),
            "norm_std": norms.std(),
            "norm_max": norms.max(),
            "uniformity": uniformity(sample),
            "effective_rank": _effective_rank(sample),
            "drift": (1 - F.cosine_similarity(sample, self._start, dim=1)).mean(),
        }
        for name, value in values.items():
            # All processes hold the same table, but Lightning warns without `sync_dist`.
            pl_module.log(f"embeddings/{name}", value, sync_dist=True)
        if not self._warned:
            self._warn_of_collapse(values, sample)

    def report(self, pl_module: LightningModule, sums: Tensor) -> None:
        """Log alignment and query uniformity."""
        distance, listened, potential, pairs = sums
        pl_module.log("embeddings/alignment", distance / listened, sync_dist=True)
        pl_module.log("embeddings/query_uniformity", (potential / pairs).log(), sync_dist=True)

    def measure(
        self, pl_module: LightningModule, batch: SessionBatch, target: Tensor, target_feedback: Tensor
    ) -> list[Tensor]:
        """Return the sums and counts of a batch's distances and potentials."""
        module = watched_module(pl_module, self)
        with plain_scores(module):
            query = module.session_query(batch).float()
        listened = target_feedback >= batch.skip_threshold
        distance = alignment(query, _item_table(module)[target].float())
        pairs = len(batch) * (len(batch) - 1)
        # One session has no pair, and an undefined uniformity.
        potential = uniformity(query).exp() * pairs if pairs else query.new_zeros(())
        return [distance.where(listened, 0.0).sum(), listened.sum(), potential, query.new_tensor(pairs)]

    def _warn_of_collapse(self, values: dict[str, Tensor], sample: Tensor) -> None:
        told = {name: float(values[name]) for name in ("uniformity", "effective_rank")}
        dimensions = min(sample.shape)
        least_rank = 1 + self.collapse_rank * (dimensions - 1)
        # NaN fails both comparisons, so it causes the warning too.
        if told["uniformity"] <= self.collapse_uniformity and told["effective_rank"] >= least_rank:
            return
        self._warned = True
        rank_zero_warn(
            f"The item embeddings have collapsed: uniformity {told['uniformity']:.2f} (0 is one point), "
            f"effective rank {told['effective_rank']:.1f} of {dimensions}. Items can hardly be told apart by "
            "direction any more: lower the learning rate or the skip loss's weight, raise its temperature, "
            "or train the next-item loss on more negatives."
        )


def _item_table(module: WatchedModule) -> Tensor:
    with plain_scores(module):
        return module.item_table.detach()


def _effective_rank(sample: Tensor) -> Tensor:
    """Return NaN if a value is not finite: the decomposition would raise and end the training."""
    return torch.where(sample.isfinite().all(), effective_rank(sample.nan_to_num(0, 0, 0)), torch.nan)


class ListDiagnostics(_FirstSessions):
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
        query, table = module.session_query(batch), module.item_table
        exclude = batch.seen_items if getattr(module, "exclude_seen", False) else None
        top_k = min(self.top_k, len(table) - 1)
        items, _ = top_k_items(query, table, top_k, exclude=exclude, **changed_scores(module, batch))
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
