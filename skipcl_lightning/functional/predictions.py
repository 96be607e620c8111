"""Skip predictions: accuracy, calibration, and the temperature that calibrates logits."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from skipcl_lightning._checks import check_integer, check_shape

__all__ = [
    "CalibrationBins",
    "SessionAccuracy",
    "brier_score",
    "calibration_bins",
    "calibration_error",
    "correct_predictions",
    "fit_temperature",
    "session_accuracy",
]


class SessionAccuracy(NamedTuple):
    """How well the skips of each session are predicted.

    Attributes:
        average_accuracy: [S] float64 in [0, 1], AA of each session, in the order of the session numbers.
        first_correct: [S] bool, whether the first prediction of each session is correct.
    """

    average_accuracy: Tensor
    first_correct: Tensor


def correct_predictions(probability: Tensor, skipped: Tensor) -> Tensor:
    """Return whether each target is predicted correctly.

    A probability above 0.5 predicts a skip, one below predicts listening. Exactly 0.5 or NaN predicts neither
    and is never correct.

    Args:
        probability: [N] floating point in [0, 1], the predicted probability of a skip.
        skipped: [N] bool, whether the target was skipped.

    Returns:
        [N] bool.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Examples:
        >>> correct_predictions(torch.tensor([0.9, 0.9, 0.5]), torch.tensor([True, False, True]))
        tensor([ True, False, False])
    """
    sizes = check_shape("probability", probability, "N", floating=True)
    check_shape("skipped", skipped, "N", sizes, dtype=torch.bool)
    return torch.where(skipped, probability > 0.5, probability < 0.5)


def session_accuracy(correct: Tensor, session_index: Tensor, place: Tensor) -> SessionAccuracy:
    r"""Return the average accuracy of each session, and whether its first prediction is correct.

    With the T predictions of a session in the order of their places, L(i) = 1 if prediction i is correct and
    A(i) the share of correct ones among the first i,

    $$
    AA = \frac{1}{T} \sum_{i=1}^{T} A(i) L(i)
    $$

    so an early mistake costs more than a late one.

    Args:
        correct: [N] bool, whether each prediction is correct.
        session_index: [N] int64, the session of each prediction; rows may have any order.
        place: [N] int64, the place of the target in its session; only its order matters.

    Returns:
        One entry for each session that has a prediction.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Reference:
        Brost, Mehrotra, Jehan: The Music Streaming Sessions Dataset, WWW 2019, arXiv 1901.09851; the
        evaluation of the WSDM Cup 2019, github.com/crowdAI/skip-prediction-challenge-starter-kit.

    Examples:
        >>> correct = torch.tensor([True, True, False, True])
        >>> places = torch.tensor([1, 2, 3, 4])
        >>> session_accuracy(correct, torch.zeros(4, dtype=torch.int64), places).average_accuracy
        tensor([0.6875], dtype=torch.float64)
    """
    sizes = check_shape("correct", correct, "N", dtype=torch.bool)
    check_shape("session_index", session_index, "N", sizes, dtype=torch.int64)
    check_shape("place", place, "N", sizes, dtype=torch.int64)
    order = place.argsort(stable=True)
    order = order[session_index[order].argsort(stable=True)]
    correct = correct[order].long()
    _, session, lengths = torch.unique_consecutive(
        session_index[order], return_inverse=True, return_counts=True
    )
    start = (lengths.cumsum(0) - lengths)[session]  # [N], where each row's session begins
    number = torch.arange(sizes["N"], device=correct.device) - start + 1  # i
    so_far = correct.cumsum(0)
    so_far = so_far - (so_far - correct)[start]  # correct ones among the first i
    terms = so_far.double() / number * correct  # A(i) L(i)
    sums = terms.new_zeros(len(lengths)).index_add_(0, session, terms)
    return SessionAccuracy(sums / lengths, correct[number == 1].bool())


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


_LOWEST, _HIGHEST = 0.01, 100.0
# Each halves the logarithm of the bracket, which ends at the precision of float64.
_STEPS = 50


@torch.no_grad()
def fit_temperature(logits: Tensor, outcome: Tensor) -> Tensor:
    r"""Return the temperature T at which probabilities fit the outcomes best.

    $$
    T = \arg\min_{T > 0} \; \text{mean} \; BCE(\sigma(a / T), y)
    $$

    The loss is convex in 1 / T. Bisection finds its minimum in float64 without randomness. Fit T on
    validation targets, and report calibration on test targets. T changes neither the order of the predictions
    nor which are above 0.5.

    Args:
        logits: [N] floating point, a; finite.
        outcome: [N] bool, or floating point in [0, 1] for graded outcomes.

    Returns:
        A scalar, float64, in [0.01, 100]. The upper end means that the logits say nothing about the outcome,
        or the opposite; the lower end, that they separate the outcomes without a mistake.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree, or there is no target.

    Reference:
        Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599,
        section 4.2.

    Examples:
        >>> logits = torch.tensor([2.0, 2.0, 2.0, 2.0])
        >>> fit_temperature(logits, torch.tensor([True, True, True, False]))  # 2 / log(3)
        tensor(1.8205, dtype=torch.float64)
    """
    sizes = check_shape("logits", logits, "N", floating=True)
    check_shape("outcome", outcome, "N", sizes)
    if outcome.dtype != torch.bool and not outcome.is_floating_point():
        raise TypeError(f"`outcome` must be of dtype torch.bool or floating point, got {outcome.dtype}.")
    if not sizes["N"]:
        raise ValueError("`logits` must hold at least one target, got none. Fit on more validation sessions.")
    logits, outcome = logits.double(), outcome.double()
    low, high = _LOWEST, _HIGHEST
    if _excess(logits / high, outcome) >= 0:
        return logits.new_tensor(high)
    if _excess(logits / low, outcome) <= 0:
        return logits.new_tensor(low)
    for _ in range(_STEPS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _excess(logits / middle, outcome) < 0 else (middle, high)
    return logits.new_tensor(math.sqrt(low * high))


def _excess(logits: Tensor, outcome: Tensor) -> float:
    """Return a number above 0 if the logits are too far from 0 for the outcomes, below 0 if too close."""
    return ((logits.sigmoid() - outcome) * logits).mean().item()
