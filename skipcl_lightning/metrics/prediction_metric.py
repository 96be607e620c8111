"""The base of all metrics of skip predictions: one row for each target."""

from typing import Any

import torch
from torch import Tensor

from skipcl_lightning._checks import check_number, check_shape
from skipcl_lightning.metrics.count_metric import CountMetric

__all__ = ["SkipPredictionMetric", "predicted_skips"]


class SkipPredictionMetric(CountMetric):
    """Metric of predicted skips against the feedback on each target.

    Args:
        from_logits: Whether predictions are logits, whose sigmoid is the probability.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.
    """

    def __init__(self, *, from_logits: bool = False, skip_threshold: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number("skip_threshold", skip_threshold, minimum=-1, maximum=1, open_minimum=True)
        self.from_logits = from_logits
        self.skip_threshold = float(skip_threshold)

    def _named(self, name: str) -> str:
        """Return a state's name, which contains everything on which the update depends."""
        return f"{name}_{self.from_logits}_{self.skip_threshold}"

    def _predicted(self, skip_predictions: Tensor, target_feedback: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return predicted_skips(
            skip_predictions,
            target_feedback,
            from_logits=self.from_logits,
            skip_threshold=self.skip_threshold,
        )


def predicted_skips(
    skip_predictions: Tensor, target_feedback: Tensor, *, from_logits: bool, skip_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the probability of a skip, the outcome, and which targets count.

    Args:
        skip_predictions: [N] floating point, probabilities in [0, 1] or logits; NaN stands for the certain
            opposite of the outcome.
        target_feedback: [N] floating point; NaN does not count.
        from_logits: Whether predictions are logits.
        skip_threshold: Feedback below it is a skip.

    Returns:
        [N] float64 probabilities, [N] bool outcomes (True: skipped), and [N] bool, the targets that count.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Examples:
        >>> feedback = torch.tensor([1.0, float("nan")])
        >>> predicted_skips(torch.tensor([0.25, 0.5]), feedback, from_logits=False, skip_threshold=0.0)[2]
        tensor([ True, False])
    """
    sizes = check_shape("skip_predictions", skip_predictions, "N", floating=True)
    check_shape("target_feedback", target_feedback, "N", sizes, floating=True)
    skipped = target_feedback < skip_threshold
    predictions = skip_predictions.detach().double()
    probability = predictions.sigmoid() if from_logits else predictions
    probability = torch.where(probability.isnan(), (~skipped).double(), probability)
    return probability, skipped, ~target_feedback.isnan()
