"""Session-KNN, a nearest-neighbour baseline over sessions."""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from skipcl_lightning._checks import check_integer
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.evaluation.baselines.interactions import as_matrix, training_matrix

__all__ = ["SessionKNN"]


class SessionKNN:
    """Baseline that scores an item by the summed similarity of the neighbour sessions that contain it.

    Neighbours are the most similar training sessions, by cosine similarity of item sets. A session is not its
    own neighbour. Items that no neighbour contains come last, ordered by popularity.

    Args:
        data: The data module; the whole training set is read, not cut to `max_length`.
        num_neighbours: The number of most similar sessions to use.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Reference:
        Jannach and Ludewig: When Recurrent Neural Networks Meet the Neighborhood for Session-Based
        Recommendation, RecSys 2017, doi 10.1145/3109859.3109872.

    Examples:
        >>> from skipcl_lightning.data import simulate_sessions
        >>> data = SessionDataModule(simulate_sessions(20, num_items=40, num_moods=4))
        >>> scores = SessionKNN(data, num_neighbours=5).scores(next(iter(data.test_dataloader())))
        >>> scores.shape == (20, data.num_items + 1)
        True
    """

    def __init__(self, data: SessionDataModule, *, num_neighbours: int = 100) -> None:
        check_integer("num_neighbours", num_neighbours)
        self.num_items = data.num_items
        self.num_neighbours = num_neighbours
        counts = training_matrix(data)
        popularity = counts.sum(axis=0)
        self.members = _as_set(counts)
        lengths = np.sqrt(np.maximum(self.members.sum(axis=1), 1))
        self.normalised = sparse.diags_array(1 / lengths) @ self.members
        # Far below the smallest similarity of a neighbour, about 1 / (longest session).
        self.tie_break = 1e-6 * popularity / (popularity.max() + 1)

    def scores(self, batch: SessionBatch) -> Tensor:
        """Return, for each item, the summed similarity of the neighbours that contain it.

        Returns:
            [B, V + 1] float64, on the CPU.
        """
        query = _as_set(as_matrix(batch, self.num_items))
        lengths = np.sqrt(np.maximum(query.sum(axis=1), 1))
        similarities = (sparse.diags_array(1 / lengths) @ query @ self.normalised.T).tocsr()
        if batch.session_index is not None:
            similarities = _without(similarities, batch.session_index.cpu().numpy())
        neighbours = _largest(similarities, self.num_neighbours)
        scores = (neighbours @ self.members).toarray() + self.tie_break
        return torch.from_numpy(scores.astype(np.float64))


def _as_set(matrix: sparse.csr_array) -> sparse.csr_array:
    return (matrix > 0).astype(np.float64)


def _without(similarities: sparse.csr_array, own: np.ndarray) -> sparse.csr_array:
    """Remove the session itself from each row."""
    rows = similarities.tocoo()
    return _select(rows, rows.col != own[rows.row])


def _largest(similarities: sparse.csr_array, most: int) -> sparse.csr_array:
    """Keep the largest values of each row; later sessions win ties."""
    rows = similarities.tocoo()
    order = np.lexsort((-rows.col, -rows.data, rows.row))
    row = rows.row[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    return _select(rows, order[place < most])


def _select(entries: sparse.coo_array, chosen: np.ndarray) -> sparse.csr_array:
    places = (entries.row[chosen], entries.col[chosen])
    return sparse.coo_array((entries.data[chosen], places), shape=entries.shape).tocsr()
