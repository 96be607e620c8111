"""Matrix factorisation with the `implicit` package: WRMF and BPR, as in the paper."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from skipcl_lightning._checks import check_integer, check_number, import_extra
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.evaluation.baselines.interactions import as_matrix, training_matrix

__all__ = ["BPR", "WRMF"]


class WRMF:
    """Weighted regularised matrix factorisation of sessions and items, by alternating least squares.

    Each session's factors are recomputed from its items so far. Install the extra `baselines` to use it.

    Args:
        data: The data module; the whole training set is read, not cut to `max_length`.
        num_factors: The number of factors.
        regularisation: The weight of the squared factors, above 0.
        confidence: Alpha of the reference, above 0: `n` plays give a pair the weight 1 + alpha · n.
        num_iterations: Rounds over sessions and items.
        seed: Random seed of the initial factors.

    Raises:
        ImportError: `implicit` is not installed.
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Reference:
        Hu, Koren, Volinsky: Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008,
        doi 10.1109/ICDM.2008.22.

    Examples:
        >>> from skipcl_lightning.data import simulate_sessions
        >>> data = SessionDataModule(simulate_sessions(20, num_items=40, num_moods=4))
        >>> scores = WRMF(data, num_factors=2).scores(next(iter(data.test_dataloader())))
        >>> scores.shape == (20, data.num_items + 1)
        True
    """

    def __init__(
        self,
        data: SessionDataModule,
        *,
        num_factors: int = 64,
        regularisation: float = 0.01,
        confidence: float = 1.0,
        num_iterations: int = 15,
        seed: int = 0,
    ) -> None:
        check_integer("num_factors", num_factors)
        check_number("regularisation", regularisation, minimum=0, open_minimum=True)
        check_number("confidence", confidence, minimum=0, open_minimum=True)
        check_integer("num_iterations", num_iterations)
        self.num_items = data.num_items
        self.confidence = confidence
        library = _import_implicit()
        self.model = _fit(
            library.cpu.als.AlternatingLeastSquares,
            _weigh(training_matrix(data), confidence),
            factors=num_factors,
            regularization=regularisation,
            alpha=1.0,
            iterations=num_iterations,
            random_state=seed,
        )

    def scores(self, batch: SessionBatch) -> Tensor:
        """Return the inner products of session factors and item factors.

        Returns:
            [B, V + 1] float32, on the CPU.
        """
        known = _weigh(as_matrix(batch, self.num_items), self.confidence)
        factors = self.model.recalculate_user(np.arange(len(batch)), _as_old_matrix(known))
        return torch.from_numpy(factors @ self.model.item_factors.T)


class BPR:
    """Matrix factorisation of sessions and items by Bayesian personalised ranking.

    Only sessions of the training set have factors, so only these can be scored. Install the extra
    `baselines` to use it.

    Args:
        data: The data module; the whole training set is read, not cut to `max_length`.
        num_factors: The number of factors.
        learning_rate: The learning rate of stochastic gradient descent, above 0.
        regularisation: The weight of the squared factors, at least 0.
        num_iterations: Rounds over all plays.
        seed: Random seed of the initial factors and the sampling. With several threads, runs still differ.

    Raises:
        ImportError: `implicit` is not installed.
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Reference:
        Rendle, Freudenthaler, Gantner, Schmidt-Thieme: BPR: Bayesian Personalized Ranking from Implicit
        Feedback, UAI 2009, arXiv 1205.2618.

    Examples:
        >>> from skipcl_lightning.data import simulate_sessions
        >>> data = SessionDataModule(simulate_sessions(20, num_items=40, num_moods=4))
        >>> scores = BPR(data, num_factors=2).scores(next(iter(data.test_dataloader())))
        >>> scores.shape == (20, data.num_items + 1)
        True
    """

    def __init__(
        self,
        data: SessionDataModule,
        *,
        num_factors: int = 64,
        learning_rate: float = 0.01,
        regularisation: float = 0.01,
        num_iterations: int = 100,
        seed: int = 0,
    ) -> None:
        check_integer("num_factors", num_factors)
        check_number("learning_rate", learning_rate, minimum=0, open_minimum=True)
        check_number("regularisation", regularisation, minimum=0)
        check_integer("num_iterations", num_iterations)
        library = _import_implicit()
        matrix = training_matrix(data)
        self.trained = matrix.sum(axis=1) > 0
        self.model = _fit(
            library.cpu.bpr.BayesianPersonalizedRanking,
            matrix,
            factors=num_factors,
            learning_rate=learning_rate,
            regularization=regularisation,
            iterations=num_iterations,
            random_state=seed,
        )

    def scores(self, batch: SessionBatch) -> Tensor:
        """Return the inner products of session factors and item factors.

        Args:
            batch: B sessions of the training set, with their `session_index`.

        Returns:
            [B, V + 1] float32, on the CPU.

        Raises:
            ValueError: A session is not in the training set.
        """
        rows = np.array([-1]) if batch.session_index is None else batch.session_index.cpu().numpy()
        if not np.isin(rows, self.trained.nonzero()[0]).all():
            raise ValueError(
                f"`batch` must hold the {self.trained.sum()} sessions that were trained on, got others. BPR "
                "has no factors of new sessions; `WRMF` computes them."
            )
        return torch.from_numpy(self.model.user_factors[rows] @ self.model.item_factors.T)


def _import_implicit() -> Any:
    return import_extra(
        "implicit", "implicit.cpu.als", "implicit.cpu.bpr", extra="baselines", user="A `WRMF` or `BPR`"
    )


def _fit(kind: Callable[..., Any], matrix: Any, **settings: Any) -> Any:
    """Fit a model on one BLAS thread: more threads slow implicit down, and it warns about them."""
    import threadpoolctl

    with threadpoolctl.threadpool_limits(1, "blas"):
        model = kind(**settings)
        model.fit(_as_old_matrix(matrix), show_progress=False)
    return model


def _weigh(counts: Any, confidence: float) -> Any:
    """Return 1 + alpha · count for each stored count; implicit itself would omit the 1."""
    weights = counts.copy()
    weights.data = 1 + confidence * weights.data
    return weights


def _as_old_matrix(matrix: Any) -> Any:
    """Convert to `csr_matrix`, since implicit does not support sparse arrays."""
    return sparse.csr_matrix(matrix)
