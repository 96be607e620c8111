"""The base of all metrics: integer states, and a plot."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["CountMetric"]


class CountMetric(Metric):
    """Metric whose states are sums of integers.

    With integers, a result is equal to the last bit for any split into batches, any order and any number of
    processes, and no state grows with the number of samples. An undefined result is NaN, not 0.

    Args:
        kwargs: Settings of `torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound: float | None = 1.0

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot one value or several.

        Args:
            val: The result of `compute` or `forward`, or several of them; None for `compute()`.
            ax: The matplotlib axes; None for new ones.

        Returns:
            The matplotlib figure and axes.
        """
        return self._plot(val, ax)

    def _add_count(self, name: str, *size: int) -> str:
        """Register an int64 state and return its name.

        `MetricCollection` lets metrics share one update if their states agree in name and value after the
        first batch, and values can agree by chance. So the name must contain everything on which the update
        depends, except what the state's size shows.
        """
        self.add_state(name, torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")
        return name

    def _sum(self, name: str) -> Tensor:
        total: Tensor = getattr(self, name)
        return total

    def _increase(self, name: str, by: Tensor) -> None:
        setattr(self, name, self._sum(name) + by)
