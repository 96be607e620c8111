"""Integer sums over a population of targets: listened or skipped, repeats or new items."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_number, check_shape
from skipcl_lightning.functional.ranking.ranks import TieRule
from skipcl_lightning.metrics.count_metric import CountMetric

__all__ = ["Among", "FeedbackMetric", "Population"]

Population = Literal["listened", "skipped"]
Among = Literal["all", "repeat", "explore"]


class FeedbackMetric(CountMetric):
    """Metric with sums of integers over a population of targets.

    Args:
        ties: The rule for equal scores, if this metric compares scores.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        among: Which targets count: `all`, those that the session already held (`repeat`), or those that it
            did not (`explore`).
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        ValueError: A setting is unknown or out of range.
    """

    def __init__(
        self,
        *,
        ties: TieRule = "pessimistic",
        skip_threshold: float = 0.0,
        among: Among = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("ties", ties, get_args(TieRule))
        check_number("skip_threshold", skip_threshold, minimum=-1, maximum=1, open_minimum=True)
        check_choice("among", among, get_args(Among))
        self.ties: TieRule = ties
        self.skip_threshold = float(skip_threshold)
        self.among: Among = among

    def _add_sum(self, name: str, population: Population, *size: int) -> str:
        """Register a state whose name contains everything on which the update depends."""
        return self._add_count(f"{name}_{population}_{self.among}_{self.ties}_{self.skip_threshold}", *size)

    def _members(
        self,
        population: Population,
        like: Tensor,
        target_feedback: Tensor | None,
        target_seen: Tensor | None = None,
    ) -> Tensor:
        """[N] bool: the rows of `like` that count."""
        sizes = {"N": len(like)}
        if target_feedback is None:
            members = torch.ones(len(like), dtype=torch.bool, device=like.device)
        else:
            check_shape("target_feedback", target_feedback, "N", sizes, floating=True)
            if population == "listened":
                members = target_feedback >= self.skip_threshold
            else:
                members = target_feedback < self.skip_threshold
        if self.among == "all":
            return members
        if target_seen is None:
            raise ValueError(
                f"`target_seen` must be given to a metric among {self.among!r} targets, got None. Say which "
                "targets the session already held."
            )
        check_shape("target_seen", target_seen, "N", sizes, dtype=torch.bool)
        return members & (target_seen if self.among == "repeat" else ~target_seen)
