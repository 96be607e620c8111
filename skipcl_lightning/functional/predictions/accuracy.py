"""Accuracy of skip predictions, and the average accuracy of sessions from the WSDM Cup 2019."""

from typing import NamedTuple

import torch
from torch import Tensor

from skipcl_lightning._checks import check_shape

__all__ = ["SessionAccuracy", "correct_predictions", "session_accuracy"]


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
