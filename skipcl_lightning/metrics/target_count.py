"""Number of targets in a population."""

from typing import Any, get_args

from torch import Tensor

from skipcl_lightning._checks import check_choice
from skipcl_lightning.metrics.feedback_metric import Among, Population
from skipcl_lightning.metrics.rank_metric import RankMetric

__all__ = ["TargetCount"]


class TargetCount(RankMetric):
    """The number of targets in a population; report it beside every mean over that population.

    Args:
        population: `listened` or `skipped`.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        among: `all` targets, only those that the session already held (`repeat`), or only new ones
            (`explore`).
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is unknown or out of range.

    Examples:
        >>> import torch
        >>> metric = TargetCount("skipped")
        >>> metric(ranks=torch.tensor([5, 1, 2]), target_feedback=torch.tensor([-1.0, 1.0, -0.5]))
        tensor(2.)
    """

    plot_upper_bound = None

    def __init__(
        self,
        population: Population = "listened",
        *,
        skip_threshold: float = 0.0,
        among: Among = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(skip_threshold=skip_threshold, among=among, **kwargs)
        check_choice("population", population, get_args(Population))
        self.population: Population = population
        self._targets = self._add_sum("targets", population)

    def _count(self, ranks: Tensor, target_feedback: Tensor | None, target_seen: Tensor | None) -> None:
        self._increase(
            self._targets, self._members(self.population, ranks, target_feedback, target_seen).sum()
        )

    def compute(self) -> Tensor:
        """Return the number of targets so far, as float32, because Lightning warns about logged integers."""
        return self._sum(self._targets).float()
