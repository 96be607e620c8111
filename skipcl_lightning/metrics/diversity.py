"""Coverage and novelty of recommended lists."""

from typing import Any

import torch
from torch import Tensor

from skipcl_lightning._checks import check_integer, check_shape
from skipcl_lightning.functional.ranking.diversity import (
    catalogue_coverage,
    count_recommendations,
    mean_self_information,
    self_information,
)
from skipcl_lightning.metrics.rank_metrics import CountMetric

__all__ = ["CatalogueCoverage", "Novelty", "RecommendationMetric"]


class RecommendationMetric(CountMetric):
    """Metric of how often each item is among the first k recommendations.

    Its state has the size of the catalogue, and is shared in a `MetricCollection`.

    Args:
        num_items: V, the catalogue's size.
        top_k: k, at least 1.
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.
    """

    def __init__(self, num_items: int, top_k: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_integer("num_items", num_items)
        check_integer("top_k", top_k)
        self.num_items = num_items
        self.top_k = top_k
        self._counts = self._add_count(f"recommended_{top_k}", num_items + 1)

    def update(self, recommended: Tensor) -> None:
        """Count the first k items of each list.

        Args:
            recommended: [N, K] int64 in 0..V, the best first, K at least k; 0 fills shorter lists, as
                `top_k_items` does.

        Raises:
            TypeError: The tensor has the wrong dtype.
            ValueError: It has the wrong shape, or fewer than k columns.
        """
        columns = check_shape("recommended", recommended, "N K", dtype=torch.int64)["K"]
        if columns < self.top_k:
            raise ValueError(
                f"`recommended` must have at least `top_k` = {self.top_k} columns, got {columns}. "
                "Recommend more, or build the metric with a smaller `top_k`."
            )
        self._increase(self._counts, count_recommendations(recommended[:, : self.top_k], self.num_items))


class CatalogueCoverage(RecommendationMetric):
    """The share of the catalogue that is recommended at all. Higher is better.

    Arguments as in `RecommendationMetric`; formula: `functional.catalogue_coverage`. It depends on the number
    of lists, so compare models on the same sessions.

    Examples:
        >>> import torch
        >>> metric = CatalogueCoverage(num_items=4, top_k=2)
        >>> metric(torch.tensor([[1, 2, 4], [1, 3, 4]]))
        tensor(0.7500)
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """Return the share over all lists so far; NaN without any."""
        return catalogue_coverage(self._sum(self._counts))


class Novelty(RecommendationMetric):
    """The mean self-information of the recommended items, in bits. Higher is more novel.

    Formulas: `functional.self_information` and `functional.mean_self_information`.

    Args:
        item_counts: [V + 1] int64, the count of each item in the training set;
            `SessionDataModule.item_counts`.
        top_k: k, at least 1.
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Examples:
        >>> import torch
        >>> metric = Novelty(torch.tensor([0, 1, 0, 1, 3]), top_k=2)
        >>> metric(torch.tensor([[4, 1], [4, 2]]))
        tensor(1.9199)
    """

    higher_is_better = True
    plot_upper_bound = None
    item_counts: Tensor

    def __init__(self, item_counts: Tensor, top_k: int = 10, **kwargs: Any) -> None:
        _ = self_information(item_counts)  # checks them
        super().__init__(len(item_counts) - 1, top_k, **kwargs)
        # The integers, because a module in half precision would round the information.
        self.register_buffer("item_counts", item_counts, persistent=False)

    def compute(self) -> Tensor:
        """Return the mean over all recommended items so far; NaN without any."""
        return mean_self_information(self._sum(self._counts), self_information(self.item_counts))
