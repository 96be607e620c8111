"""Area under the ROC curve of skip predictions, and all their metrics as a collection."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAUROC
from torchmetrics.utilities import dim_zero_cat

from skipcl_lightning._checks import check_number
from skipcl_lightning.metrics.prediction_accuracy import FirstPredictionAccuracy, MeanAverageAccuracy
from skipcl_lightning.metrics.prediction_calibration import SkipBrierScore, SkipCalibrationError
from skipcl_lightning.metrics.prediction_metric import predicted_skips

__all__ = ["SkipAUC", "skip_prediction_metrics"]


class SkipAUC(BinaryAUROC):
    """Area under the ROC curve of predicted skips, exact with ties. Higher is better; 0.5 is chance.

    It is the probability that a skipped target is predicted to be skipped with a higher probability than a
    listened one, where a tie counts half. Like any exact AUC, it keeps all predictions.

    Args:
        from_logits: Whether predictions are logits.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Examples:
        >>> SkipAUC()(torch.tensor([0.9, 0.2, 0.5, 0.2]), torch.tensor([-1.0, -0.5, 1.0, 0.0]))
        tensor(0.6250)
    """

    def __init__(self, *, from_logits: bool = False, skip_threshold: float = 0.0, **kwargs: Any) -> None:
        super().__init__(thresholds=None, **kwargs)
        check_number("skip_threshold", skip_threshold, minimum=-1, maximum=1, open_minimum=True)
        self.from_logits = from_logits
        self.skip_threshold = float(skip_threshold)
        # Its name keeps a `MetricCollection` from merging metrics with other settings (`CountMetric`).
        self.add_state(f"settings_{from_logits}_{self.skip_threshold}", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, skip_predictions: Tensor, target_feedback: Tensor) -> None:
        """Keep the targets of a batch.

        Args:
            skip_predictions: [N] floating point, probabilities or logits of a skip.
            target_feedback: [N] floating point, the feedback on each target; NaN does not count.

        Raises:
            TypeError: A tensor has the wrong dtype.
            ValueError: Shapes disagree.
        """
        probability, skipped, known = predicted_skips(
            skip_predictions,
            target_feedback,
            from_logits=self.from_logits,
            skip_threshold=self.skip_threshold,
        )
        # Never logits: torchmetrics takes a batch for logits only if a value is outside [0, 1].
        super().update(probability[known].clamp(0, 1), skipped[known].long())

    def compute(self) -> Tensor:  # type: ignore[override]  # as torchmetrics overrides its own base
        """Return the area over all targets so far; NaN unless some were skipped and some were not."""
        if len(self.target) == 0 or len(torch.unique(dim_zero_cat(self.target))) < 2:
            return torch.tensor(torch.nan, device=self.device)
        return super().compute().float()


def skip_prediction_metrics(
    *, from_logits: bool = False, skip_threshold: float = 0.0, num_bins: int = 15, prefix: str = ""
) -> MetricCollection:
    """Return all scalar metrics of skip predictions as a collection, to update with keywords.

    Keys are `skip_auc`, `skip_brier_score`, `skip_calibration_error`, `mean_average_accuracy` and
    `first_prediction_accuracy`. A metric whose population is empty is NaN.

    Args:
        from_logits: Whether predictions are logits.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        num_bins: The number of bins of the calibration error.
        prefix: The start of every key, such as `"val/"`.

    Returns:
        A `torchmetrics.MetricCollection`. Its `update` takes `skip_predictions`, `target_feedback`, `place`
        and `session_index`, by keywords.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Examples:
        >>> metrics = skip_prediction_metrics()
        >>> metrics.update(
        ...     skip_predictions=torch.tensor([0.9, 0.2, 0.8]),
        ...     target_feedback=torch.tensor([-1.0, 1.0, 1.0]),
        ...     place=torch.tensor([1, 2, 1]),
        ...     session_index=torch.tensor([0, 0, 1]),
        ... )
        >>> metrics.compute()["skip_auc"], metrics.compute()["mean_average_accuracy"]
        (tensor(1.), tensor(0.5000))
    """
    settings: dict[str, Any] = {"from_logits": from_logits, "skip_threshold": skip_threshold}
    return MetricCollection(
        {
            "skip_auc": SkipAUC(**settings),
            "skip_brier_score": SkipBrierScore(**settings),
            "skip_calibration_error": SkipCalibrationError(num_bins, **settings),
            "mean_average_accuracy": MeanAverageAccuracy(**settings),
            "first_prediction_accuracy": FirstPredictionAccuracy(**settings),
        },
        prefix=prefix or None,
    )
