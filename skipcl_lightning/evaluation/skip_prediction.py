"""Skip predictions of several models, measured on the same held-out targets."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, get_args

import polars as pl
import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice
from skipcl_lightning.backbones.contract import evaluation_mode
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.evaluation.evaluate import Split
from skipcl_lightning.evaluation.target_rows import check_scoring, evaluated, held_out_batches
from skipcl_lightning.functional import fit_temperature
from skipcl_lightning.metrics import skip_prediction_metrics
from skipcl_lightning.module import SkipCLModule

__all__ = ["SkipPredictor", "calibrate_skip_prediction", "compare_skip_predictions"]


class SkipPredictor(Protocol):
    """Protocol of a model that predicts whether a session's target will be skipped."""

    def skip_probability(self, batch: SessionBatch) -> Tensor:
        """[B] floating point in [0, 1], the probability that each target is skipped."""
        ...


@torch.no_grad()
def compare_skip_predictions(
    predictors: Mapping[str, SkipPredictor], data: SessionDataModule, *, split: Split = "test"
) -> pl.DataFrame:
    """Return the metrics of skip predictions of several models, one row each.

    A model that does not beat `ItemAndLastSkipRate` has learned nothing of the session beyond its last track.
    Targets that training never saw are left out.

    Args:
        predictors: The models by name.
        data: The sessions; with a split of `targets="every"`, each later track of a session is a target.
        split: `validation` or `test`.

    Returns:
        `name`, `targets` (their number), `skipped` (their share of skips), and the metrics of
        `skip_prediction_metrics`; null where a metric is undefined.

    Raises:
        TypeError: `predictors` is no mapping, or one of them has no `skip_probability`.
        ValueError: The split is unknown.

    Examples:
        >>> from skipcl_lightning.data import simulate_sessions
        >>> from skipcl_lightning.evaluation import ItemSkipRate, LastSkipRate
        >>> data = SessionDataModule(simulate_sessions(50, num_items=40, num_moods=4))
        >>> predictors = {"item": ItemSkipRate(data), "last": LastSkipRate(data)}
        >>> compare_skip_predictions(predictors, data)["name"].to_list()
        ['item', 'last']
    """
    _check_predictors(predictors)
    check_choice("split", split, get_args(Split))
    loader = held_out_batches(data, split, *predictors.values())
    return pl.DataFrame([_measure(name, one, loader) for name, one in predictors.items()]).fill_nan(None)


@torch.no_grad()
def calibrate_skip_prediction(module: SkipCLModule, data: SessionDataModule) -> float:
    """Set the temperature of a trained `SkipPrediction` head by the validation set.

    It changes `skip_probability`, in recommendations too, but neither the scores nor the ranking. Checkpoints
    that are saved afterwards hold it. `compare_skip_predictions` measures the calibration on the test set.

    Args:
        module: A trained module with a `SkipPrediction` head.
        data: Its data, with validation targets that were listened to and others that were skipped.

    Returns:
        The temperature, in [0.01, 100].

    Raises:
        TypeError: `module` is another object.
        ValueError: The module has no such head, or the validation targets are all of one kind.

    Reference:
        Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599.

    Examples:
        >>> from skipcl_lightning.backbones import GRU4Rec
        >>> from skipcl_lightning.data import simulate_sessions
        >>> from skipcl_lightning.heads import SkipPrediction
        >>> data = SessionDataModule(simulate_sessions(50, num_items=40, num_moods=4))
        >>> module = SkipCLModule(GRU4Rec(8), SkipPrediction(), num_items=data.num_items)
        >>> calibrate_skip_prediction(module, data) > 0
        True
    """
    check_scoring(module)
    head = module.skip_prediction
    logits, listened = [], []
    with evaluation_mode(module):
        for batch in _of_known_targets(held_out_batches(data, "validation", module)):
            batch = batch.to(module.device)
            assert batch.target is not None  # noqa: S101 - loaders for evaluation have targets
            assert batch.target_feedback is not None  # noqa: S101
            query, target = module.model.session_query(batch), batch.target[:, None]
            logits.append(head.listen_logits(query, target, module.model.item_table).squeeze(1))
            listened.append(batch.target_feedback >= batch.skip_threshold)
    outcome = torch.cat(listened) if listened else torch.ones(0, dtype=torch.bool)
    if outcome.all() or not outcome.any():
        kind = "listened to" if outcome.all() else "skipped"
        found = f"{len(outcome):,} that were all {kind}" if listened else "none that the training set has"
        raise ValueError(
            f"`data` must have skipped and listened validation targets, got {found}. Hold out more "
            "sessions, or every track of a session with `targets='every'`."
        )
    temperature = fit_temperature(torch.cat(logits), outcome)
    head.temperature.copy_(temperature)
    return float(temperature)


def _check_predictors(predictors: object) -> None:
    if not isinstance(predictors, Mapping):
        raise TypeError(
            f"`predictors` must be models by name, got {type(predictors).__name__}. Write one as "
            '`{"model": module}`.'
        )
    for name, one in predictors.items():
        if not hasattr(one, "skip_probability"):
            raise TypeError(
                f"`predictors` must have `skip_probability(batch)`, got {type(one).__name__} without as "
                f"{name!r}. Load a checkpoint with `SkipCLModule.load_from_checkpoint`, or wrap your model."
            )


def _of_known_targets(loader: Iterable[SessionBatch]) -> Iterator[SessionBatch]:
    """Yield the sessions whose target training saw.

    With `cold_targets="miss"`, loaders leave out the other skipped targets, but not the other listened ones.
    """
    for batch in loader:
        known = batch if batch.cold_target is None else batch[~batch.cold_target]
        if len(known):
            yield known


def _measure(name: str, predictor: SkipPredictor, loader: Iterable[SessionBatch]) -> dict[str, str | float]:
    metrics = skip_prediction_metrics()
    targets, skips = 0, 0
    with evaluated(predictor) as device:
        for batch in _of_known_targets(loader):
            assert batch.target_feedback is not None  # noqa: S101 - loaders for evaluation have targets
            skipped = batch.target_feedback < batch.skip_threshold
            metrics.update(
                skip_predictions=predictor.skip_probability(batch.to(device)).cpu(),
                target_feedback=torch.where(skipped, -1.0, 1.0),
                place=(batch.seen_items != PADDING_INDEX).sum(dim=1) + 1,
                session_index=batch.session_index,
            )
            targets, skips = targets + len(skipped), skips + int(skipped.sum())
    values = {metric: value.item() for metric, value in metrics.compute().items()}
    return {"name": name, "targets": targets, "skipped": skips / targets if targets else math.nan, **values}
