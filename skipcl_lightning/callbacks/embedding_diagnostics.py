"""Callback that logs the geometry of embeddings and warns when they collapse."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from skipcl_lightning._checks import check_integer, check_number
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.callbacks.first_sessions import FirstSessions
from skipcl_lightning.callbacks.protocol import WatchedModule, plain_scores, watched_module
from skipcl_lightning.functional import alignment, effective_rank, uniformity

__all__ = ["EmbeddingDiagnostics"]


class EmbeddingDiagnostics(FirstSessions):
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
        norms = torch.linalg.vector_norm(table[PADDING_INDEX + 1 :], dim=1, dtype=torch.float32)
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
        values = {
            "alignment": distance / listened,
            "query_uniformity": (potential / pairs).log(),
        }
        for name, value in values.items():
            pl_module.log(f"embeddings/{name}", value, sync_dist=True)

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
