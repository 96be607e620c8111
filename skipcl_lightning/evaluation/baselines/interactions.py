"""The training part as a sparse matrix of sessions and items."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import sparse

from skipcl_lightning.batch import SessionBatch

__all__ = ["as_matrix", "training_matrix"]


def as_matrix(batch: SessionBatch, num_items: int) -> Any:
    """How often each session of a batch holds each item.

    Args:
        batch: B sessions.
        num_items: V.

    Returns:
        A [B, V + 1] ``scipy.sparse.csr_array`` of float32 counts.

    Example:
        >>> import torch
        >>> as_matrix(SessionBatch(torch.tensor([[2, 2, 0]]), torch.zeros(1, 3)), 2).toarray()
        array([[0., 0., 2.]], dtype=float32)
    """
    mask = batch.valid_mask
    rows = mask.nonzero()[:, 0].cpu().numpy()
    columns = batch.items[mask].cpu().numpy()
    ones = np.ones(len(rows), dtype=np.float32)
    return sparse.coo_array((ones, (rows, columns)), shape=(len(batch), num_items + 1)).tocsr()


def training_matrix(batches: Iterable[SessionBatch], num_items: int) -> Any:
    """How often each session of the training part holds each item, sessions by their index.

    Args:
        batches: The training batches, with their ``session_index``; read once.
        num_items: V.

    Returns:
        A [sessions, V + 1] ``scipy.sparse.csr_array`` of float32 counts.

    Raises:
        ValueError: A batch does not say which sessions it holds.

    Example:
        >>> import torch
        >>> row = torch.tensor([1])
        >>> batch = SessionBatch(torch.tensor([[2]]), torch.zeros(1, 1), session_index=row)
        >>> training_matrix([batch], 2).toarray()
        array([[0., 0., 0.],
               [0., 0., 1.]], dtype=float32)
    """
    parts, indices = [], []
    for batch in batches:
        if batch.session_index is None:
            raise ValueError(
                "`batches` must have a `session_index`, got some without. `SessionDataModule` gives it."
            )
        parts.append(as_matrix(batch, num_items))
        indices.append(batch.session_index.cpu().numpy())
    order = np.concatenate(indices)
    stacked = sparse.vstack(parts, format="coo")
    shape = (int(order.max()) + 1, num_items + 1)
    return sparse.coo_array((stacked.data, (order[stacked.row], stacked.col)), shape=shape).tocsr()
