"""How far predicted probabilities are from what happened: Brier score and calibration error."""

from typing import NamedTuple

import torch
from torch import Tensor

from skipcl_lightning._checks import check_integer, check_shape

__all__ = ["CalibrationBins", "brier_score", "calibration_bins", "calibration_error"]


class CalibrationBins(NamedTuple):
    """Sums over targets in bins of equal width by predicted probability.

    Attributes:
        num_targets: [K] the number of targets.
        probability: [K] float64, the sum of the predicted probabilities.
        outcome: [K] the number of targets that had the predicted outcome.
    """

    num_targets: Tensor
    probability: Tensor
    outcome: Tensor


def brier_score(probability: Tensor, outcome: Tensor) -> Tensor:
    """Return the squared difference of each probability and its outcome; lower is better.

    Args:
        probability: [N] floating point in [0, 1].
        outcome: [N] bool.

    Returns:
        [N] float64 in [0, 1]; a NaN probability yields the worst value, 1.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Reference:
        Brier: Verification of Forecasts Expressed in Terms of Probability, Monthly Weather Review 78, 1950.

    Examples:
        >>> brier_score(torch.tensor([0.75, 0.5]), torch.tensor([True, False]))
        tensor([0.0625, 0.2500], dtype=torch.float64)
    """
    sizes = check_shape("probability", probability, "N", floating=True)
    check_shape("outcome", outcome, "N", sizes, dtype=torch.bool)
    return (probability.double() - outcome.double()).square().nan_to_num(1.0)


def calibration_bins(probability: Tensor, outcome: Tensor, *, num_bins: int = 15) -> CalibrationBins:
    """Sum targets in bins by probability: bin k holds [k / K, (k + 1) / K), and the last one 1 too.

    Args:
        probability: [N] floating point in [0, 1]; NaN is left out.
        outcome: [N] bool.
        num_bins: K, at least 1.

    Returns:
        The sums; those of several batches may be added.

    Raises:
        TypeError: A tensor has the wrong dtype, or `num_bins` is no integer.
        ValueError: Shapes disagree, or `num_bins` is below 1.

    Examples:
        >>> outcome = torch.tensor([True, False, True])
        >>> bins = calibration_bins(torch.tensor([0.25, 0.75, 1.0]), outcome, num_bins=2)
        >>> bins.num_targets, bins.outcome
        (tensor([1, 2]), tensor([1, 1]))
    """
    sizes = check_shape("probability", probability, "N", floating=True)
    check_shape("outcome", outcome, "N", sizes, dtype=torch.bool)
    check_integer("num_bins", num_bins)
    probability = probability.double()
    known = ~probability.isnan()
    probability = torch.where(known, probability, 0)
    bins = (probability * num_bins).long().clamp(0, num_bins - 1)

    def add_up(values: Tensor) -> Tensor:
        return values.new_zeros(num_bins).index_add_(0, bins, values)

    return CalibrationBins(add_up(known.long()), add_up(probability), add_up((outcome & known).long()))


def calibration_error(bins: CalibrationBins) -> Tensor:
    r"""Return the expected calibration error.

    $$
    ECE = \sum_k \frac{n_k}{N} \left| \bar{p}_k - \bar{y}_k \right|
    $$

    with the mean probability and the share of the outcome in each bin. Lower is better.

    Args:
        bins: The sums of all targets.

    Returns:
        A scalar, float64 in [0, 1]; NaN without targets.

    Reference:
        Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599,
        equation 3.

    Examples:
        >>> calibration_error(calibration_bins(torch.tensor([0.75, 0.75]), torch.tensor([True, False])))
        tensor(0.2500, dtype=torch.float64)
    """
    return (bins.probability - bins.outcome).abs().sum() / bins.num_targets.sum()
