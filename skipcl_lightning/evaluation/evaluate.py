"""One evaluation for every model: a trained module, a baseline, or any object with the same methods."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer, check_number
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import SessionDataModule, SessionEncoder
from skipcl_lightning.evaluation.baselines import LastItemMarkov
from skipcl_lightning.evaluation.report import EvaluationReport
from skipcl_lightning.evaluation.segments import add_segments, popularity_deciles
from skipcl_lightning.evaluation.target_rows import (
    Baseline,
    QueryModel,
    RankingProtocol,
    evaluated,
    held_out_batches,
    is_query_model,
    measure_batch,
)
from skipcl_lightning.functional.ranking.diversity import (
    catalogue_coverage,
    count_recommendations,
    self_information,
)
from skipcl_lightning.functional.ranking.metrics import CandidateSampler, rank_scored_batch
from skipcl_lightning.functional.ranking.ranks import TieRule
from skipcl_lightning.metrics.session_metrics import check_cut_offs
from skipcl_lightning.module.checkpoint import match_context, refuse_other_items

__all__ = ["Split", "evaluate"]

Split = Literal["validation", "test"]
_FEWEST_TARGETS = 1000


def evaluate(
    model: QueryModel | Baseline,
    data: SessionDataModule,
    *,
    name: str | None = None,
    split: Split = "test",
    top_k: Sequence[int] = (1, 5, 10, 20),
    ties: TieRule | None = None,
    exclude_seen: bool | None = None,
    num_candidates: int | None = None,
    sampler: CandidateSampler = "uniform",
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
    compare_markov: bool = True,
    skip_penalty: float | None = None,
    list_recommendations: bool = True,
) -> EvaluationReport:
    """Rank every held-out target, and return a report with intervals and segments.

    It runs on the model's device, one batch at a time, in evaluation mode and without gradients. Intervals
    resample whole sessions, because the targets of one session depend on each other. In a run of several
    processes, each process ranks all targets.

    Args:
        model: A `SkipCLModule`, a baseline, or an object with `session_query(batch)` and `item_table`, or
            with `scores(batch)`.
        data: The sessions.
        name: The model's name in the report; None for its class's name.
        split: `validation` or `test`.
        top_k: The cut-offs of the metrics; recommendations are listed up to the largest.
        ties: The rule for equal scores; None for the model's own `ties`, or `pessimistic`.
        exclude_seen: Whether a session's items are left out of the candidates; None for the model's own
            `exclude_seen`, or False. A target that the session already held has the worst rank then, as in
            the lists that are recommended.
        num_candidates: Rank each target among this many sampled items instead of the whole catalogue, to
            compare with a paper that does so. The metrics' names then contain the number, and a warning says
            why not to.
        sampler: The distribution of the candidates: `uniform`, or by `popularity`.
        confidence: The coverage of the intervals, in (0, 1).
        num_resamples: Bootstrap resamples of the sessions; 0 for no intervals.
        seed: Seed of resamples and candidates.
        compare_markov: Whether the report of a model with queries also has one line on last-item Markov, the
            simplest model of sequences, on the same targets in the whole catalogue. It has none if the
            training set of `data` is empty; novelty is then undefined.
        skip_penalty: Evaluate a `SkipCLModule` with a `SkipPrediction` head at this penalty, at least 0; None
            for the model's own.
        list_recommendations: Whether each target's recommendations are listed too, for coverage, novelty and
            the share of lists that begin with the item that just played. Ranks alone take about 60 % of
            the time.

    Returns:
        The report. If most lists begin with the item that just played, its `caution` is also a warning,
        from 1,000 targets on.

    Raises:
        TypeError: `model` has none of the methods, or a setting has the wrong type.
        ValueError: A setting is unknown or out of range.

    Examples:
        >>> from skipcl_lightning.data import simulate_sessions
        >>> from skipcl_lightning.evaluation import Popularity
        >>> data = SessionDataModule(simulate_sessions(50, num_items=40, num_moods=4))
        >>> report = evaluate(Popularity(data.item_counts), data, num_resamples=100)
        >>> 0 <= report["hit_rate@10"] <= report["hit_rate@20"] <= 1
        True
    """
    if not (is_query_model(model) or isinstance(model, Baseline)):
        raise TypeError(
            f"`model` must have `session_query(batch)` and `item_table`, or `scores(batch)`, got "
            f"{type(model).__name__} without. Wrap it in an object that has."
        )
    if exclude_seen is not None and not isinstance(exclude_seen, bool):
        raise TypeError(
            f"`exclude_seen` must be True, False or None, got {exclude_seen!r}. None takes the model's own."
        )
    encoder = getattr(model, "encoder", None)
    if isinstance(encoder, SessionEncoder):
        _check_trained_on(encoder, data)
    check_choice("split", split, get_args(Split))
    check_choice("sampler", sampler, get_args(CandidateSampler))
    if num_candidates is None and sampler != "uniform":
        raise ValueError(
            f"`sampler` must be left alone without `num_candidates`, got {sampler!r}. The whole catalogue is "
            "ranked then."
        )
    check_number("confidence", confidence, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    check_integer("num_resamples", num_resamples, minimum=0)
    check_integer("seed", seed, minimum=0)
    check_cut_offs(top_k)
    protocol = RankingProtocol(
        num_items=data.num_items,
        list_length=min(max(top_k), data.num_items) if list_recommendations else 0,
        ties=getattr(model, "ties", "pessimistic") if ties is None else ties,
        exclude_seen=bool(getattr(model, "exclude_seen", False)) if exclude_seen is None else exclude_seen,
        num_candidates=num_candidates,
        sampler=sampler,
        item_counts=data.item_counts if sampler == "popularity" else None,
    )
    beside = compare_markov and num_candidates is None and is_query_model(model)
    beside = beside and data.num_sessions["train"] > 0
    markov = LastItemMarkov(data) if beside else None
    with _at_penalty(model, skip_penalty):
        measured = _measure(model, data, split, protocol, seed, markov)
    report = EvaluationReport(
        name=name or type(model).__name__,
        sessions=_describe_sessions(measured, data),
        settings={
            "split": split,
            "top_k": tuple(top_k),
            "ties": protocol.ties,
            "exclude_seen": protocol.exclude_seen,
            "num_candidates": num_candidates,
            "sampler": None if num_candidates is None else sampler,
            "confidence": confidence,
            "num_resamples": num_resamples,
            "seed": seed,
            "num_items": data.num_items,
            "training_sessions": data.num_sessions["train"],
            "unknown_rows": data.drop_report.rows_of_unknown_items,
            "unknown_items": data.drop_report.unknown_items,
            "skip_penalty": getattr(model, "skip_penalty", 0.0) if skip_penalty is None else skip_penalty,
        },
        coverage=_coverage(measured["recommended"], data.num_items),
    )
    # The share of few targets says little.
    if report.caution and report.sessions.height >= _FEWEST_TARGETS:
        warnings.warn(report.caution, stacklevel=2)
    return report


def _check_trained_on(encoder: SessionEncoder, data: SessionDataModule) -> None:
    """Raise unless data has the items and the context of a model's training."""
    if encoder.vocabulary != data.vocabulary:
        refuse_other_items(trained_on=encoder, data=data.encoder)
    match_context(encoder, data.encoder)


def _at_penalty(model: QueryModel | Baseline, skip_penalty: float | None) -> AbstractContextManager[None]:
    """Return a context in which the model ranks at a penalty."""
    if skip_penalty is None:
        return nullcontext()
    if not hasattr(model, "at_skip_penalty"):
        raise ValueError(
            f"`skip_penalty` must be None for a model that does not predict skips, got {skip_penalty!r} for "
            f"{type(model).__name__}. Train a `SkipCLModule` with a `SkipPrediction` head."
        )
    context: AbstractContextManager[None] = model.at_skip_penalty(skip_penalty)
    return context


@torch.no_grad()
def _measure(
    model: QueryModel | Baseline,
    data: SessionDataModule,
    split: Split,
    protocol: RankingProtocol,
    seed: int,
    markov: LastItemMarkov | None,
) -> dict[str, Tensor]:
    """Return the rows of all targets, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    loader = held_out_batches(data, split, model)
    parts = []
    with evaluated(model) as device:
        table = model.item_table if is_query_model(model) else None
        for batch in loader:
            part = measure_batch(model, batch.to(device), protocol, generator, table)
            if markov is not None:
                part["markov_rank"] = _rank_by_markov(markov, batch, protocol)
            parts.append(part)
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def _rank_by_markov(markov: LastItemMarkov, batch: SessionBatch, protocol: RankingProtocol) -> Tensor:
    """[B] the ranks of the targets by the protocol."""
    if protocol.ties == "pessimistic":  # without the scores of the whole catalogue
        return markov.target_ranks(batch, exclude_seen=protocol.exclude_seen)
    scores = markov.scores(batch)
    return rank_scored_batch(scores, batch, exclude_seen=protocol.exclude_seen, ties=protocol.ties).ranks


def _describe_sessions(measured: dict[str, Tensor], data: SessionDataModule) -> pl.DataFrame:
    """Return one row for each target, with external ids."""
    values: dict[str, Any] = {name: tensor.numpy() for name, tensor in measured.items()}
    item_counts = data.item_counts
    deciles = popularity_deciles(item_counts.numpy())
    ids = data.vocabulary.decode(values["target"])
    frame = pl.DataFrame(
        {
            "session_id": data.session_ids.gather(values["session_index"]),
            "target": pl.Series(ids, dtype=data.vocabulary.dtype),
            "rank": values["rank"].astype(np.float64),
            "skipped": values["feedback"] < 0,
            "repeat": values["seen"],
            "unscored": values["unscored"],
            **(_describe_lists(measured, item_counts) if measured["recommended"].shape[1] else {}),
            "length": values["length"],
            "skip_rate": values["skips"] / np.maximum(values["tracks"], 1),
            "target_count": item_counts.numpy()[values["target"]],
            "popularity_decile": deciles[values["target"]],
            "half_points": values["half_points"],
            "pairs": values["pairs"],
            **({"markov_rank": values["markov_rank"].astype(np.float64)} if "markov_rank" in values else {}),
        }
    )
    return add_segments(frame)


def _coverage(recommended: Tensor, num_items: int) -> float | None:
    """Return the share of the catalogue in lists [N, K]; None if they are empty."""
    if not recommended.shape[1]:
        return None
    return float(catalogue_coverage(count_recommendations(recommended, num_items)))


def _describe_lists(measured: dict[str, Tensor], item_counts: Tensor) -> dict[str, Any]:
    """Return the columns that come from the recommendations."""
    recommended, last = measured["recommended"], measured["last"]
    listed = recommended > 0
    information = self_information(item_counts) if item_counts.any() else torch.full((), torch.nan)
    bits = (information.expand(len(item_counts))[recommended] * listed).sum(dim=1) / listed.sum(dim=1)
    return {
        "last_first": ((recommended[:, 0] == last) & (last > 0)).numpy(),
        "last_next": (measured["target"] == last).numpy(),
        "novelty": bits.double().numpy(),
    }
