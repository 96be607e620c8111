"""Brier score and calibration error of skip predictions."""

from typing import Any

import torch
from torch import Tensor

from skipcl_lightning._checks import check_integer
from skipcl_lightning.functional.predictions.calibration import (
    CalibrationBins,
    brier_score,
    calibration_bins,
    calibration_error,
)
from skipcl_lightning.metrics.prediction_metric import SkipPredictionMetric

__all__ = ["SkipBrierScore", "SkipCalibrationError"]

# Probabilities are added up as integers in this unit, so that no order of the targets changes a bit. An int64
# holds the sum of 2^33 of them.
_UNIT = 2.0**-30


class SkipBrierScore(SkipPredictionMetric):
    """The mean squared difference of the predicted probability of a skip and the outcome. Lower is better.

    Formula: `functional.brier_score`, here rounded to 2^-30.

    Args:
        from_logits: Whether predictions are logits.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Examples:
        >>> SkipBrierScore()(torch.tensor([0.75, 0.5]), torch.tensor([-1.0, 1.0]))
        tensor(0.1562)
    """

    higher_is_better = False

    def __init__(self, *, from_logits: bool = False, skip_threshold: float = 0.0, **kwargs: Any) -> None:
        super().__init__(from_logits=from_logits, skip_threshold=skip_threshold, **kwargs)
        self._scores = self._add_count(self._named("brier_scores"))
        self._targets = self._add_count(self._named("targets"))

    def update(self, skip_predictions: Tensor, target_feedback: Tensor) -> None:
        """Add the targets of a batch.

        Args:
            skip_predictions: [N] floating point, probabilities or logits of a skip.
            target_feedback: [N] floating point, the feedback on each target; NaN does not count.

        Raises:
            TypeError: A tensor has the wrong dtype.
            ValueError: Shapes disagree.
        """
        probability, skipped, known = self._predicted(skip_predictions, target_feedback)
        self._increase(self._scores, (_in_units(brier_score(probability, skipped)) * known).sum())
        self._increase(self._targets, known.sum())

    def compute(self) -> Tensor:
        """Return the mean over all targets so far; NaN without any."""
        return (self._sum(self._scores).double() * _UNIT / self._sum(self._targets)).float()


class SkipCalibrationError(SkipPredictionMetric):
    """The expected calibration error of the predicted probability of a skip. Lower is better.

    Formula: `functional.calibration_error`. `torchmetrics.classification.BinaryCalibrationError` keeps all
    predictions; this metric keeps sums of `num_bins` bins.

    Args:
        num_bins: K bins of equal width, at least 1.
        from_logits: Whether predictions are logits.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Examples:
        >>> SkipCalibrationError()(torch.tensor([0.75, 0.75]), torch.tensor([-1.0, 1.0]))
        tensor(0.2500)
    """

    higher_is_better = False

    def __init__(
        self,
        num_bins: int = 15,
        *,
        from_logits: bool = False,
        skip_threshold: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(from_logits=from_logits, skip_threshold=skip_threshold, **kwargs)
        check_integer("num_bins", num_bins)
        self.num_bins = num_bins
        # Rows of counts, probabilities in units, and skips.
        self._bins = self._add_count(self._named("bins"), 3, num_bins)

    def update(self, skip_predictions: Tensor, target_feedback: Tensor) -> None:
        """Add the targets of a batch.

        Args:
            skip_predictions: [N] floating point, probabilities or logits of a skip.
            target_feedback: [N] floating point, the feedback on each target; NaN does not count.

        Raises:
            TypeError: A tensor has the wrong dtype.
            ValueError: Shapes disagree.
        """
        probability, skipped, known = self._predicted(skip_predictions, target_feedback)
        # Sums of whole units are exact in float64.
        rounded = torch.where(known, _in_units(probability) * _UNIT, torch.nan)
        bins = calibration_bins(rounded, skipped, num_bins=self.num_bins)
        self._increase(self._bins, torch.stack([bins.num_targets, _in_units(bins.probability), bins.outcome]))

    @property
    def bins(self) -> CalibrationBins:
        """The sums of all targets so far, for a reliability diagram."""
        count, units, outcome = self._sum(self._bins).unbind()
        return CalibrationBins(count, units.double() * _UNIT, outcome)

    def compute(self) -> Tensor:
        """Return the error over all targets so far; NaN without any."""
        return calibration_error(self.bins).float()


def _in_units(values: Tensor) -> Tensor:
    return (values / _UNIT).round().long()
