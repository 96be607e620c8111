"""Popularity baselines, over all sessions and within each session."""

import torch
from torch import Tensor

from skipcl_lightning._checks import check_shape
from skipcl_lightning.batch import SessionBatch

__all__ = ["Popularity", "SessionPopularity"]


class Popularity:
    """Baseline that ranks items by how often they occur in the training set, equally for all sessions.

    Args:
        item_counts: [V + 1] int64 counts; `SessionDataModule.item_counts`.

    Raises:
        TypeError: The counts are not int64.
        ValueError: The counts are not one-dimensional.

    Examples:
        >>> batch = SessionBatch(torch.tensor([[2]]), torch.tensor([[1.0]]))
        >>> Popularity(torch.tensor([0, 5, 1])).scores(batch)
        tensor([[0., 5., 1.]], dtype=torch.float64)
    """

    def __init__(self, item_counts: Tensor) -> None:
        check_shape("item_counts", item_counts, "V+1", dtype=torch.int64)
        # Float32 cannot represent every integer above 2^24.
        self.item_counts = item_counts.double()

    def scores(self, batch: SessionBatch) -> Tensor:
        """Return how often each item occurs in the training set.

        Returns:
            [B, V + 1] float64.
        """
        return self.item_counts.to(batch.items.device).expand(len(batch), -1)


class SessionPopularity:
    """Baseline that ranks items by their count in the session so far, then by overall popularity.

    On music logs, where listeners repeat tracks, it beats many neural models (arXiv 2409.04329).

    Args:
        item_counts: [V + 1] int64 counts; `SessionDataModule.item_counts`.

    Raises:
        TypeError: The counts are not int64.
        ValueError: The counts are not one-dimensional.

    Reference:
        Tran et al.: Transformers Meet ACT-R: Repeat-Aware and Sequential Listening Session Recommendation,
        RecSys 2024, arXiv 2408.16578, on repeated listening; and arXiv 2409.04329.

    Examples:
        >>> batch = SessionBatch(torch.tensor([[2, 3, 2, 0]]), torch.ones(1, 4))
        >>> SessionPopularity(torch.tensor([0, 3, 0, 1])).scores(batch)
        tensor([[0.0000, 0.7500, 2.0000, 1.2500]], dtype=torch.float64)
    """

    def __init__(self, item_counts: Tensor) -> None:
        check_shape("item_counts", item_counts, "V+1", dtype=torch.int64)
        # Below 1, so it only breaks ties between items of equal count.
        self.tie_break = item_counts.double() / (item_counts.max() + 1)

    def scores(self, batch: SessionBatch) -> Tensor:
        """Return how often each item occurs in the session so far.

        Returns:
            [B, V + 1] float64: the count plus a fraction below 1 for popularity.
        """
        scores = self.tie_break.to(batch.items.device).repeat(len(batch), 1)
        seen = batch.seen_items
        return scores.scatter_add_(1, seen, (seen != 0).to(scores.dtype))
