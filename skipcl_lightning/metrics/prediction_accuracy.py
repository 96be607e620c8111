"""Accuracy of skip predictions: by place in the session, and averaged as in the WSDM Cup 2019."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from skipcl_lightning._checks import check_integer, check_shape
from skipcl_lightning.functional.predictions.accuracy import (
    SessionAccuracy,
    correct_predictions,
    session_accuracy,
)
from skipcl_lightning.metrics.prediction_metric import SkipPredictionMetric

__all__ = ["FirstPredictionAccuracy", "MeanAverageAccuracy", "SkipAccuracyByPlace"]

_PLACE_BITS = 20


class SkipAccuracyByPlace(SkipPredictionMetric):
    """The share of correctly predicted targets at each place in the session. Higher is better.

    A probability of exactly 0.5 is never correct (`functional.correct_predictions`).

    Args:
        num_places: The number of places; later places count in the last one. 1 gives the accuracy of all
            targets.
        from_logits: Whether predictions are logits.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Examples:
        >>> metric = SkipAccuracyByPlace(num_places=3)
        >>> predictions, feedback = torch.tensor([0.9, 0.2, 0.8]), torch.tensor([-1.0, 1.0, 1.0])
        >>> metric(predictions, feedback, torch.tensor([1, 2, 2]))
        tensor([1.0000, 0.5000,    nan])
    """

    higher_is_better = True

    def __init__(
        self,
        num_places: int = 20,
        *,
        from_logits: bool = False,
        skip_threshold: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(from_logits=from_logits, skip_threshold=skip_threshold, **kwargs)
        check_integer("num_places", num_places)
        self.num_places = num_places
        self._correct = self._add_count(self._named("correct"), num_places)
        self._targets = self._add_count(self._named("targets"), num_places)

    def update(self, skip_predictions: Tensor, target_feedback: Tensor, place: Tensor) -> None:
        """Count the targets of a batch.

        Args:
            skip_predictions: [N] floating point, probabilities or logits of a skip.
            target_feedback: [N] floating point, the feedback on each target; NaN does not count.
            place: [N] int64, the target's place in its session, from 1.

        Raises:
            TypeError: A tensor has the wrong dtype.
            ValueError: Shapes disagree.
        """
        probability, skipped, known = self._predicted(skip_predictions, target_feedback)
        check_shape("place", place, "N", {"N": len(probability)}, dtype=torch.int64)
        index = (place - 1).clamp(0, self.num_places - 1)
        for name, counted in (
            (self._correct, correct_predictions(probability, skipped) & known),
            (self._targets, known),
        ):
            empty = index.new_zeros(self.num_places)
            self._increase(name, empty.index_add_(0, index, counted.long()))

    def compute(self) -> Tensor:
        """Return [num_places] the share at each place; NaN at places without targets."""
        return self._sum(self._correct) / self._sum(self._targets)


class _SessionMetric(SkipPredictionMetric):
    """Metric of whole sessions, whose targets may come in any order, batch and process.

    Its state has one int64 for each target, because the rows of a session may be spread over processes.
    """

    higher_is_better = True

    def __init__(self, *, from_logits: bool = False, skip_threshold: float = 0.0, **kwargs: Any) -> None:
        super().__init__(from_logits=from_logits, skip_threshold=skip_threshold, **kwargs)
        self._codes = self._named("codes")
        self.add_state(self._codes, [], dist_reduce_fx="cat")

    def update(
        self, skip_predictions: Tensor, target_feedback: Tensor, place: Tensor, session_index: Tensor
    ) -> None:
        """Keep the targets of a batch.

        Args:
            skip_predictions: [N] floating point, probabilities or logits of a skip.
            target_feedback: [N] floating point, the feedback on each target; NaN does not count.
            place: [N] int64 in 1..2^20 - 1, the target's place in its session. A target that comes twice
                counts once.
            session_index: [N] int64, the number of its session.

        Raises:
            TypeError: A tensor has the wrong dtype.
            ValueError: Shapes disagree.
        """
        probability, skipped, known = self._predicted(skip_predictions, target_feedback)
        sizes = {"N": len(probability)}
        check_shape("place", place, "N", sizes, dtype=torch.int64)
        check_shape("session_index", session_index, "N", sizes, dtype=torch.int64)
        correct = correct_predictions(probability, skipped)
        # In the order of sessions, and of places within a session.
        codes = (((session_index << _PLACE_BITS) + place) << 1) + correct
        getattr(self, self._codes).append(codes[known])

    def _session_accuracy(self) -> SessionAccuracy | None:
        parts = getattr(self, self._codes)
        if len(parts) == 0:
            return None
        codes = torch.unique(dim_zero_cat(parts))
        place = (codes >> 1) & ((1 << _PLACE_BITS) - 1)
        return session_accuracy((codes & 1).bool(), codes >> (_PLACE_BITS + 1), place)

    def _mean(self, values: Tensor | None) -> Tensor:
        return (
            torch.tensor(torch.nan, device=self.device) if values is None else values.double().mean().float()
        )


class MeanAverageAccuracy(_SessionMetric):
    """The mean over sessions of the average accuracy, the WSDM Cup 2019's measure. Higher is better.

    Formula: `functional.session_accuracy`. In the cup, the feedback of a session's whole second half was
    withheld. Predictions that know the feedback of all earlier tracks solve an easier task, so their values
    cannot be compared with the cup's.

    Args:
        from_logits: Whether predictions are logits.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Reference:
        See `functional.session_accuracy`.

    Examples:
        >>> metric = MeanAverageAccuracy()
        >>> predictions, feedback = torch.tensor([0.9, 0.2, 0.8]), torch.tensor([-1.0, 1.0, 1.0])
        >>> metric(predictions, feedback, torch.tensor([1, 2, 1]), torch.tensor([0, 0, 1]))
        tensor(0.5000)
    """

    def compute(self) -> Tensor:
        """Return the mean over all sessions with a target so far; NaN without any."""
        sessions = self._session_accuracy()
        return self._mean(None if sessions is None else sessions.average_accuracy)


class FirstPredictionAccuracy(_SessionMetric):
    """The share of sessions whose first target is predicted correctly. Higher is better.

    The second measure of the WSDM Cup 2019. Arguments as in `MeanAverageAccuracy`.

    Examples:
        >>> metric = FirstPredictionAccuracy()
        >>> predictions, feedback = torch.tensor([0.9, 0.2, 0.8]), torch.tensor([-1.0, 1.0, 1.0])
        >>> metric(predictions, feedback, torch.tensor([1, 2, 1]), torch.tensor([0, 0, 1]))
        tensor(0.5000)
    """

    def compute(self) -> Tensor:
        """Return the share of all sessions with a target so far; NaN without any."""
        sessions = self._session_accuracy()
        return self._mean(None if sessions is None else sessions.first_correct)
