"""What all metrics share: states of integers, and a plot."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["CountMetric"]


class CountMetric(Metric):
    """A metric whose states are sums of integers.

    Integers, so that a result is the same to the last bit for any split into batches, any order and any
    number of processes, and so that no state grows with the number of samples. Undefined results (of
    nothing) are NaN, never 0.

    Args:
        kwargs: Settings of `torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound: float | None = 1.0

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot one value, or one after another.

        Args:
            val: What `compute` or `forward` returned, or several of them; by default `compute()`.
            ax: The matplotlib axes to draw on; by default new ones.

        Returns:
            The matplotlib figure and axes.
        """
        return self._plot(val, ax)

    def _add_count(self, name: str, *size: int) -> str:
        """Register an int64 state and return its name.

        `MetricCollection` lets metrics share one update for good once their states agree in name and
        value after the first batch, and values can agree by chance. So a name must carry all that the
        update depends on, save for what shows in the state's size.
        """
        self.add_state(name, torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")
        return name

    def _sum(self, name: str) -> Tensor:
        total: Tensor = getattr(self, name)
        return total

    def _increase(self, name: str, by: Tensor) -> None:
        setattr(self, name, self._sum(name) + by)
