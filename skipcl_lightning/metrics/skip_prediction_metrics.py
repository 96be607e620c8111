"""Metrics of skip predictions: accuracy by place and session, Brier score, calibration, ROC curve."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat

from skipcl_lightning._checks import check_indices, check_integer, check_number, check_shape
from skipcl_lightning.functional.predictions import (
    CalibrationBins,
    SessionAccuracy,
    brier_score,
    calibration_bins,
    calibration_error,
    correct_predictions,
    session_accuracy,
)
from skipcl_lightning.metrics.rank_metrics import CountMetric, join_name

__all__ = [
    "FirstPredictionAccuracy",
    "MeanAverageAccuracy",
    "SkipAUC",
    "SkipAccuracyByPlace",
    "SkipBrierScore",
    "SkipCalibrationError",
    "SkipPredictionMetric",
    "skip_prediction_metrics",
]


# How far rounding, also in bfloat16, may move a probability out of [0, 1].
_ROUNDING = 0.01


class SkipPredictionMetric(CountMetric):
    """Metric of predicted skips against the feedback on each target.

    Beside its sums it keeps the extremes of the predictions, so that only `compute` waits for a GPU to check
    them.

    Args:
        from_logits: Whether predictions are logits, whose sigmoid is the probability. Without it, `compute`
            raises a `ValueError` if a prediction is outside [0, 1].
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
        self._lists: dict[str, torch.dtype] = {}
        self._extremes = self._named("extremes")
        self.add_state(self._extremes, torch.zeros(2, dtype=torch.float64), dist_reduce_fx="max")

    def _named(self, name: str) -> str:
        """Return a state's name, which contains everything on which the update depends."""
        return join_name(name, self.from_logits, self.skip_threshold)

    def _add_list(self, name: str, dtype: torch.dtype) -> str:
        """Register a state of [N] values of each batch, and return its name."""
        name = self._named(name)
        self.add_state(name, [], dist_reduce_fx="cat")
        self._lists[name] = dtype
        return name

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes, arguments as for `torchmetrics.Metric.sync`."""
        for name, dtype in self._lists.items():
            if len(getattr(self, name)) == 0:
                # Without a batch, torchmetrics would send float32, which the others do not expect.
                getattr(self, name).append(torch.empty(0, dtype=dtype, device=self.device))
        super().sync(*args, **kwargs)

    def _predicted(self, skip_predictions: Tensor, target_feedback: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities in [0, 1], float64, which targets were skipped, and which count, [N] each.

        A NaN prediction stands for the certain opposite of the outcome. The extremes are updated.
        """
        sizes = check_shape("skip_predictions", skip_predictions, "N", floating=True)
        check_shape("target_feedback", target_feedback, "N", sizes, floating=True)
        skipped, known = target_feedback < self.skip_threshold, ~target_feedback.isnan()
        predictions = skip_predictions.detach().double()
        probability = predictions.sigmoid() if self.from_logits else predictions
        probability = torch.where(probability.isnan(), (~skipped).double(), probability)
        counted = torch.where(known, probability, 0.5)
        # [-lowest, highest], so that processes may take the largest of both.
        both = torch.cat([self._sum(self._extremes)[:, None], torch.stack([-counted, counted])], dim=1)
        setattr(self, self._extremes, both.amax(dim=1))
        return probability.clamp(0, 1), skipped, known

    def _check_predictions(self) -> None:
        below, highest = self._sum(self._extremes).tolist()
        wrong = -below if below > _ROUNDING else highest
        if not -_ROUNDING <= wrong <= 1 + _ROUNDING:
            raise ValueError(
                f"`skip_predictions` must be probabilities in [0, 1], got {wrong:.6g}. For logits, make the "
                "metric with `from_logits=True`."
            )


_PLACE_BITS = 20
_MOST_PLACES = 2**_PLACE_BITS - 1


class SkipAccuracyByPlace(SkipPredictionMetric):
    """The share of correctly predicted targets at each place in the session. Higher is better.

    A probability of exactly 0.5 is never correct (`functional.correct_predictions`).

    Args:
        num_places: The number of places; later places count in the last one. 1 gives the accuracy of all
            targets.
        from_logits: Whether predictions are logits. Without it, `compute` refuses values outside [0, 1].
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
        self._check_predictions()
        return self._sum(self._correct) / self._sum(self._targets)


class _SessionMetric(SkipPredictionMetric):
    """Metric of whole sessions, whose targets may come in any order, batch and process.

    Its state has one int64 for each target, because the rows of a session may be spread over processes.
    """

    higher_is_better = True

    def __init__(self, *, from_logits: bool = False, skip_threshold: float = 0.0, **kwargs: Any) -> None:
        super().__init__(from_logits=from_logits, skip_threshold=skip_threshold, **kwargs)
        self._codes = self._add_list("codes", torch.int64)

    def update(
        self, skip_predictions: Tensor, target_feedback: Tensor, place: Tensor, session_index: Tensor
    ) -> None:
        """Keep the targets of a batch.

        Args:
            skip_predictions: [N] floating point, probabilities or logits of a skip.
            target_feedback: [N] floating point, the feedback on each target; NaN does not count.
            place: [N] int64 in 1..2^20 - 1, the target's place in its session. A target that comes twice
                counts once; if its predictions differ, the wrong one does.
            session_index: [N] int64, the number of its session.

        Raises:
            TypeError: A tensor has the wrong dtype.
            ValueError: Shapes disagree, or a place is out of its range.
        """
        probability, skipped, known = self._predicted(skip_predictions, target_feedback)
        sizes = {"N": len(probability)}
        check_shape("place", place, "N", sizes, dtype=torch.int64)
        check_indices("place", place, _MOST_PLACES, cure="The first target of a session has place 1.")
        check_shape("session_index", session_index, "N", sizes, dtype=torch.int64)
        correct = correct_predictions(probability, skipped)
        # In the order of sessions, and of places within a session.
        codes = (((session_index << _PLACE_BITS) + place) << 1) + correct
        getattr(self, self._codes).append(codes[known])

    def _session_accuracy(self) -> SessionAccuracy:
        parts = getattr(self, self._codes)
        # Before the first batch there is no part.
        codes = torch.unique(dim_zero_cat(parts) if len(parts) else torch.arange(0, device=self.device))
        # Of a target that came twice, the first code, which is the wrong prediction if there is one.
        codes = codes[codes >> 1 != F.pad(codes >> 1, (1, 0), value=-1)[:-1]]
        place = (codes >> 1) & _MOST_PLACES
        return session_accuracy((codes & 1).bool(), codes >> (_PLACE_BITS + 1), place)


class MeanAverageAccuracy(_SessionMetric):
    """The mean over sessions of the average accuracy, the WSDM Cup 2019's measure. Higher is better.

    Formula: `functional.session_accuracy`. In the cup, the feedback of a session's whole second half was
    withheld. Predictions that know the feedback of all earlier tracks solve an easier task, so their values
    cannot be compared with the cup's.

    Args:
        from_logits: Whether predictions are logits. Without it, `compute` refuses values outside [0, 1].
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
        self._check_predictions()
        return self._session_accuracy().average_accuracy.mean().float()


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
        self._check_predictions()
        return self._session_accuracy().first_correct.double().mean().float()


# Probabilities are added up as integers in this unit, so that no order of the targets changes a bit. An int64
# holds the sum of 2^33 of them.
_UNIT = 2.0**-30


class SkipBrierScore(SkipPredictionMetric):
    """The mean squared difference of the predicted probability of a skip and the outcome. Lower is better.

    Formula: `functional.brier_score`, here rounded to 2^-30.

    Args:
        from_logits: Whether predictions are logits. Without it, `compute` refuses values outside [0, 1].
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
        self._check_predictions()
        return (self._sum(self._scores).double() * _UNIT / self._sum(self._targets)).float()


class SkipCalibrationError(SkipPredictionMetric):
    """The expected calibration error of the predicted probability of a skip. Lower is better.

    Formula: `functional.calibration_error`. `torchmetrics.classification.BinaryCalibrationError` keeps all
    predictions; this metric keeps sums of `num_bins` bins.

    Args:
        num_bins: K bins of equal width, at least 1.
        from_logits: Whether predictions are logits. Without it, `compute` refuses values outside [0, 1].
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
        self._check_predictions()
        return calibration_error(self.bins).float()


def _in_units(values: Tensor) -> Tensor:
    return (values / _UNIT).round().long()


class SkipAUC(SkipPredictionMetric):
    """Area under the ROC curve of predicted skips, exact with ties. Higher is better; 0.5 is chance.

    It is the probability that a skipped target is predicted to be skipped with a higher probability than a
    listened one, where a tie counts half. Like any exact AUC, it keeps all predictions.

    Args:
        from_logits: Whether predictions are logits. Without it, `compute` refuses values outside [0, 1].
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.

    Examples:
        >>> SkipAUC()(torch.tensor([0.9, 0.2, 0.5, 0.2]), torch.tensor([-1.0, -0.5, 1.0, 0.0]))
        tensor(0.6250)
    """

    higher_is_better = True

    def __init__(self, *, from_logits: bool = False, skip_threshold: float = 0.0, **kwargs: Any) -> None:
        super().__init__(from_logits=from_logits, skip_threshold=skip_threshold, **kwargs)
        self._probabilities = self._add_list("probabilities", torch.float64)
        self._outcomes = self._add_list("outcomes", torch.int64)

    def update(self, skip_predictions: Tensor, target_feedback: Tensor) -> None:
        """Keep the targets of a batch.

        Args:
            skip_predictions: [N] floating point, probabilities or logits of a skip.
            target_feedback: [N] floating point, the feedback on each target; NaN does not count.

        Raises:
            TypeError: A tensor has the wrong dtype.
            ValueError: Shapes disagree.
        """
        probability, skipped, known = self._predicted(skip_predictions, target_feedback)
        getattr(self, self._probabilities).append(probability[known])
        getattr(self, self._outcomes).append(skipped[known].long())

    def compute(self) -> Tensor:
        """Return the area over all targets so far; NaN unless some were skipped and some were not."""
        self._check_predictions()
        outcomes = getattr(self, self._outcomes)
        if len(outcomes) == 0 or len(torch.unique(dim_zero_cat(outcomes))) < 2:
            return torch.tensor(torch.nan, device=self.device)
        probabilities = dim_zero_cat(getattr(self, self._probabilities))
        return binary_auroc(probabilities, dim_zero_cat(outcomes)).float()


def skip_prediction_metrics(
    *, from_logits: bool = False, skip_threshold: float = 0.0, num_bins: int = 15, prefix: str = ""
) -> MetricCollection:
    """Return all scalar metrics of skip predictions as a collection, to update with keywords.

    Keys are `skip_auc`, `skip_brier_score`, `skip_calibration_error`, `mean_average_accuracy` and
    `first_prediction_accuracy`. A metric whose population is empty is NaN.

    Args:
        from_logits: Whether predictions are logits. Without it, `compute` refuses values outside [0, 1].
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
