"""What all metrics share: integer sums over the targets that were listened to, or over the skipped ones."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from skipcl_lightning._checks import check_choice, check_number, check_shape
from skipcl_lightning.functional.ranks import TieRule

__all__ = ["FeedbackMetric", "Population"]

Population = Literal["listened", "skipped"]


class FeedbackMetric(Metric):
    """Sums of integers over the targets of a population.

    Integers, so that a result is the same to the last bit for any split into batches, any order and any
    number of processes, and so that no state grows with the number of targets. Undefined results (a
    population without members) are NaN, never 0.

    Args:
        ties: How a tie counts, where this metric compares scores.
        skip_threshold: The feedback under which a target counts as skipped, in (-1, 1].
        kwargs: Settings of ``torchmetrics.Metric``.

    Raises:
        ValueError: A setting is unknown or out of range.
    """

    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound: float | None = 1.0

    def __init__(self, *, ties: TieRule = "pessimistic", skip_threshold: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_choice("ties", ties, get_args(TieRule))
        check_number("skip_threshold", skip_threshold, minimum=-1, maximum=1, open_minimum=True)
        self.ties: TieRule = ties
        self.skip_threshold = float(skip_threshold)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot one value, or one after another.

        Args:
            val: What ``compute`` or ``forward`` returned, or several of them; by default ``compute()``.
            ax: The matplotlib axes to draw on; by default new ones.

        Returns:
            The matplotlib figure and axes.
        """
        return self._plot(val, ax)

    def _add_sum(self, name: str, population: Population, *size: int) -> str:
        """Register an int64 state and return its full name.

        ``MetricCollection`` lets metrics share one update for good once their states agree in name and
        value after the first batch, and values can agree by chance. So a name carries all that the update
        depends on, save for what shows in the state's size.
        """
        full_name = f"{name}_{population}_{self.ties}_{self.skip_threshold}"
        self.add_state(full_name, torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")
        return full_name

    def _sum(self, name: str) -> Tensor:
        total: Tensor = getattr(self, name)
        return total

    def _increase(self, name: str, by: Tensor) -> None:
        setattr(self, name, self._sum(name) + by)

    def _members(self, population: Population, like: Tensor, target_feedback: Tensor | None) -> Tensor:
        """Which of the N rows of ``like`` count: [N] bool."""
        if target_feedback is None:
            return torch.ones(len(like), dtype=torch.bool, device=like.device)
        check_shape("target_feedback", target_feedback, "N", {"N": len(like)}, floating=True)
        if population == "listened":
            return target_feedback >= self.skip_threshold
        return target_feedback < self.skip_threshold
