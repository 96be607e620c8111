"""The temperature that calibrates predicted probabilities."""

import torch
from torch import Tensor

from skipcl_lightning._checks import check_shape

__all__ = ["fit_temperature"]

LOWEST, HIGHEST = 0.01, 100.0
_STEPS = 100
_TOLERANCE = 1e-12


@torch.no_grad()
def fit_temperature(logits: Tensor, outcome: Tensor) -> Tensor:
    r"""Return the temperature T at which probabilities fit the outcomes best.

    $$
    T = \arg\min_{T > 0} \; \text{mean} \; BCE(\sigma(a / T), y)
    $$

    The loss is convex in 1 / T. Newton's method, with bisection where a step would leave the bracket, finds
    its minimum in float64 without randomness. Fit T on validation targets, and report calibration on test
    targets. T changes neither the order of the predictions nor which are above 0.5.

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
    if _slope(logits, outcome, 1 / HIGHEST)[0] >= 0:
        return logits.new_tensor(HIGHEST)
    if _slope(logits, outcome, 1 / LOWEST)[0] <= 0:
        return logits.new_tensor(LOWEST)
    return logits.new_tensor(1 / _best_inverse(logits, outcome, 1 / HIGHEST, 1 / LOWEST))


def _best_inverse(logits: Tensor, outcome: Tensor, low: float, high: float) -> float:
    """Return the 1 / T between two ends at which the slope is 0."""
    inverse = 1.0
    for _ in range(_STEPS):
        first, second = _slope(logits, outcome, inverse)
        low, high = (inverse, high) if first < 0 else (low, inverse)
        following = inverse - first / second if second > 0 else high
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - inverse) <= _TOLERANCE * inverse:
            break
        inverse = following
    return inverse


def _slope(logits: Tensor, outcome: Tensor, inverse: float) -> tuple[float, float]:
    """Return the first and second derivative of the loss by 1 / T."""
    probability = (logits * inverse).sigmoid()
    curvature = (probability * (1 - probability) * logits.square()).mean()
    return ((probability - outcome) * logits).mean().item(), curvature.item()
