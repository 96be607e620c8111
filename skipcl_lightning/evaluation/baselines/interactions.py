"""Sparse matrices of item counts for each session."""

from typing import Any, cast

import numpy as np
from scipy import sparse

from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.data import SessionDataModule

__all__ = ["as_matrix", "training_matrix"]


def as_matrix(batch: SessionBatch, num_items: int) -> Any:
    """Count how often each session of a batch contains each item.

    Args:
        batch: B sessions. For a session longer than `max_length`, `seen` holds all its items, and all count.
        num_items: V.

    Returns:
        A [B, V + 1] `scipy.sparse.csr_array` of float32 counts.

    Examples:
        >>> import torch
        >>> as_matrix(SessionBatch(torch.tensor([[2, 2, 0]]), torch.zeros(1, 3)), 2).toarray()
        array([[0., 0., 2.]], dtype=float32)
    """
    items = batch.seen_items
    mask = items != PADDING_INDEX
    rows = mask.nonzero()[:, 0].cpu().numpy()
    columns = items[mask].cpu().numpy()
    ones = np.ones(len(rows), dtype=np.float32)
    return sparse.coo_array((ones, (rows, columns)), shape=(len(batch), num_items + 1)).tocsr()


def training_matrix(data: SessionDataModule) -> Any:
    """Count how often each training session contains each item; rows are indexed by `session_index`.

    Args:
        data: The data module; the whole training set is read.

    Returns:
        A [sessions, V + 1] `scipy.sparse.csr_array` of float32 counts. Sessions outside the training set
        have empty rows.

    Examples:
        >>> from skipcl_lightning.data import simulate_sessions
        >>> data = SessionDataModule(simulate_sessions(20, num_items=40, num_moods=4), max_length=2)
        >>> matrix = training_matrix(data)
        >>> matrix.shape == (20, data.num_items + 1), int(matrix.sum()) == int(data.item_counts.sum())
        (True, True)
    """
    parts, indices = [], []
    for batch in data.training_sessions():
        parts.append(as_matrix(batch, data.num_items))
        indices.append(cast("Any", batch.session_index).numpy())
    order = np.concatenate(indices)
    stacked = sparse.vstack(parts, format="coo")
    shape = (len(data.session_ids), data.num_items + 1)
    return sparse.coo_array((stacked.data, (order[stacked.row], stacked.col)), shape=shape).tocsr()
