"""The weight of the training set's transitions, chosen on the validation set."""

from collections.abc import Sequence
from typing import Literal, get_args

import polars as pl
import torch

from skipcl_lightning._checks import check_choice, check_integer
from skipcl_lightning.backbones.contract import evaluation_mode
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.evaluation.skip_trade_off import check_penalties
from skipcl_lightning.evaluation.target_rows import check_scoring, held_out_batches
from skipcl_lightning.functional import rank_batch
from skipcl_lightning.metrics import session_metrics
from skipcl_lightning.module import SkipCLModule

__all__ = ["ChoosingMetric", "check_choosing", "choose_transition_weight"]

ChoosingMetric = Literal["hit_rate@1", "hit_rate@10", "ndcg@10", "delta_hit_rate@10"]


@torch.no_grad()
def choose_transition_weight(
    module: SkipCLModule,
    data: SessionDataModule,
    *,
    weights: Sequence[float] = (0.0, 1.0, 2.0, 4.0, 8.0),
    metric: ChoosingMetric = "ndcg@10",
    max_targets: int | None = None,
) -> pl.DataFrame:
    """Set a trained module's `transition_weight` to the best one on the validation set.

    The best weight depends on the scale of the model's inner products and on the log: it is 0 if the order of
    the log's items says nothing. A transition says what was listened to next, but not who would skip it, so a
    larger weight can raise the skip hit rate; `delta_hit_rate@10` weighs both.

    Args:
        module: A module that was trained with a `transition_weight` above 0.
        data: Its data.
        weights: The weights to choose from, each at least 0; the first of equally good ones is chosen.
        metric: The metric whose largest value decides; `delta_hit_rate@10` is the hit rate minus the skip hit
            rate.
        max_targets: Rank about this many targets, from batches at equal distances; None for all.

    Returns:
        One row for each weight, in the order given: `transition_weight`, `hit_rate@1`, `hit_rate@10`,
        `ndcg@10`, `skip_hit_rate@10` and `delta_hit_rate@10`. Values of an empty population are NaN.

    Raises:
        TypeError: `module` is another object, `weights` is no sequence, or a weight is no number.
        ValueError: No weight is given, a weight is out of range, the module has no counted transitions, or
            the validation set has no target for the metric.

    Examples:
        >>> import logging, warnings
        >>> warnings.simplefilter("ignore")
        >>> logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        >>> from lightning.pytorch import Trainer
        >>> from skipcl_lightning.backbones import GRU4Rec
        >>> from skipcl_lightning.data import simulate_sessions
        >>> data = SessionDataModule(simulate_sessions(50, num_items=40, num_moods=4))
        >>> module = SkipCLModule(GRU4Rec(8), num_items=data.num_items, transition_weight=1.0)
        >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> Trainer(max_epochs=1, enable_model_summary=False, **quiet).fit(module, data)
        >>> table = choose_transition_weight(module, data, weights=(0.0, 1.0))
        >>> module.transition_weight in table["transition_weight"]
        True
    """
    check_scoring(module)
    check_choosing(weights, metric, max_targets)
    if module.model.transitions is None:
        raise ValueError(
            "`module` must be trained with a `transition_weight` above 0, got one without counted "
            "transitions. Pass `SkipCLModule(..., transition_weight=1.0)` and fit it."
        )
    metrics = [
        session_metrics(data.num_items, top_k=(1, 10), ties=module.ties).to(module.device) for _ in weights
    ]
    loader = held_out_batches(data, "validation", module)
    stride = 1 if max_targets is None else max(1, len(loader) * data.batch_size // max_targets)
    with evaluation_mode(module):
        for number, batch in enumerate(loader):
            if number % stride:
                continue
            batch = batch.to(module.device)
            query = module.session_query(batch)
            for weight, collection in zip(weights, metrics, strict=True):
                ranked = rank_batch(
                    query,
                    module.item_table,
                    batch,
                    exclude_seen=module.exclude_seen,
                    ties=module.ties,
                    added=module.model.added_scores(batch, weight),
                    retired=module.retired,
                )
                collection.update(**ranked._asdict())
    names = ("hit_rate@1", "hit_rate@10", "ndcg@10", "skip_hit_rate@10", "delta_hit_rate@10")
    values = [collection.compute() for collection in metrics]
    table = pl.DataFrame(
        {"transition_weight": [float(weight) for weight in weights]}
        | {name: [float(found[name]) for found in values] for name in names}
    )
    module.transition_weight = _best(table, metric)
    return table


def check_choosing(weights: Sequence[float], metric: str, max_targets: int | None) -> None:
    """Raise a `TypeError` or `ValueError` unless `choose_transition_weight` takes these settings."""
    check_penalties(weights, "weights")
    if not len(weights):
        raise ValueError("`weights` must hold at least one weight, got none. The defaults suit most logs.")
    check_choice("metric", metric, get_args(ChoosingMetric))
    if max_targets is not None:
        check_integer("max_targets", max_targets)


def _best(table: pl.DataFrame, metric: str) -> float:
    """Return the first weight with the largest value."""
    # All values have the same population.
    if table[metric].is_nan().any():
        raise ValueError(
            f"`metric` must have targets in the validation set, got {metric!r} without. Choose another, or "
            "hold out every track of a session with `targets='every'`."
        )
    best: float = max(table.iter_rows(named=True), key=lambda row: row[metric])["transition_weight"]
    return best
