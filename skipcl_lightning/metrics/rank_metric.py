"""Metrics that depend on a target only through its rank."""

from abc import abstractmethod

import torch
from torch import Tensor

from skipcl_lightning._checks import check_shape
from skipcl_lightning.functional.ranking.ranks import score_ranks
from skipcl_lightning.metrics.feedback_metric import FeedbackMetric

__all__ = ["RankMetric"]

RANK_DTYPES = (torch.int64, torch.float32, torch.float64)


class RankMetric(FeedbackMetric):
    """Metric of ranks, which are given or computed from scores."""

    def update(
        self,
        preds: Tensor | None = None,
        target: Tensor | None = None,
        *,
        ranks: Tensor | None = None,
        target_feedback: Tensor | None = None,
        target_seen: Tensor | None = None,
    ) -> None:
        """Count the targets of a batch, given by scores or by ranks.

        Each metric ranks `preds` again; ranks that are computed once can feed any number of metrics.

        Args:
            preds: [N, C] floating-point scores of C candidates.
            target: [N] int64, the target's column in 0..C-1.
            ranks: [N] int64 or float32, in 1..V and in whole or half steps, as `target_ranks` returns them.
                The metric's tie rule then has no effect.
            target_feedback: [N] floating point, the feedback on the target; NaN counts in neither population.
                None counts every row.
            target_seen: [N] bool, whether the session already held the target; needed with `among` other than
                `all`.

        Raises:
            TypeError: A tensor has the wrong dtype.
            ValueError: Shapes disagree, not exactly one of `preds` and `ranks` is given, or `target_seen` is
                needed and missing.
        """
        if ranks is None:
            ranks = self._rank(preds, target)
        elif preds is not None or target is not None:
            raise ValueError(
                "`ranks` must be given without `preds` and `target`, got both. "
                "Give ranks, or the scores to make them from."
            )
        check_shape("ranks", ranks, "N")
        if ranks.dtype not in RANK_DTYPES:
            raise TypeError(
                f"`ranks` must be of dtype torch.int64 or torch.float32, got {ranks.dtype}. "
                "`target_ranks` returns either."
            )
        self._count(ranks, target_feedback, target_seen)

    def _rank(self, preds: Tensor | None, target: Tensor | None) -> Tensor:
        if preds is None or target is None:
            missing = "`preds`" if preds is None else "`target`"
            raise ValueError(
                f"{missing} must be given unless `ranks` are, got None. "
                "Give `preds` and `target`, or `ranks` alone."
            )
        sizes = check_shape("preds", preds, "N C", floating=True)
        check_shape("target", target, "N", sizes, dtype=torch.int64)
        return score_ranks(preds, target, ties=self.ties)

    @abstractmethod
    def _count(self, ranks: Tensor, target_feedback: Tensor | None, target_seen: Tensor | None) -> None:
        """Add the rows of this metric's population to its states."""
