"""What one batch of held-out targets yields: a row a session, on the device until the end."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from skipcl_lightning._checks import check_shape
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.functional import (
    candidate_ranks,
    pairwise_wins,
    sample_candidates,
    score_ranks,
    skip_pair_mask,
    skip_pair_scores,
    target_ranks,
    top_k_items,
)
from skipcl_lightning.functional.ranking.candidates import CandidateSampler
from skipcl_lightning.functional.ranking.ranks import TieRule, exclude_items, multiply_pairs

if TYPE_CHECKING:
    from typing_extensions import TypeIs

__all__ = ["Baseline", "QueryModel", "RankingProtocol", "is_query_model", "measure_batch"]


@runtime_checkable
class Baseline(Protocol):
    """Anything that scores the catalogue after each session."""

    def scores(self, batch: SessionBatch) -> Tensor:
        """[B, V + 1] floating point, a score an item; column 0, padding, is ignored."""
        ...


class QueryModel(Protocol):
    """Anything that turns sessions into queries, whose inner products with a table are the scores."""

    @property
    def item_table(self) -> Tensor:
        """[V + 1, D]; row 0 is padding."""
        ...

    def session_query(self, batch: SessionBatch) -> Tensor:
        """[B, D], the sessions as known after all their tracks."""
        ...


def is_query_model(model: object) -> "TypeIs[QueryModel]":
    """Whether a model has what a `QueryModel` has.

    Not by `isinstance`, which from Python 3.12 on overlooks what `nn.Module` finds by `__getattr__`: a
    table that is a parameter.

    Args:
        model: Anything.

    Returns:
        Whether it has.

    Examples:
        >>> is_query_model(torch.nn.Linear(2, 2))
        False
    """
    return hasattr(model, "item_table") and hasattr(model, "session_query")


@dataclass(frozen=True)
class RankingProtocol:
    """How targets are ranked.

    Args:
        num_items: V.
        list_length: How many recommendations are looked at.
        ties: How a tie counts.
        exclude_seen: Whether a session's tracks, but for the target, are no candidates.
        num_candidates: How many sampled candidates a target is ranked among; None for the whole catalogue.
        sampler: How they are drawn.
        item_counts: [V + 1] int64, for the sampler `popularity`.
    """

    num_items: int
    list_length: int
    ties: TieRule
    exclude_seen: bool
    num_candidates: int | None
    sampler: CandidateSampler
    item_counts: Tensor | None


def measure_batch(
    model: Baseline | QueryModel, batch: SessionBatch, protocol: RankingProtocol, generator: torch.Generator
) -> dict[str, Tensor]:
    """Rank the targets of a batch, compare them with the session's skips, and list recommendations.

    Args:
        model: What is evaluated.
        batch: B sessions with targets, on the model's device.
        protocol: How targets are ranked.
        generator: Of sampled candidates, on the CPU.

    Returns:
        By name, tensors of B rows: `rank`, `target`, `feedback`, `seen` (the session already held
        the target), `length`, `skips`, `half_points` and `pairs` (of `pairwise_wins`),
        `unscored` (the target's score is NaN), `session_index`, and `recommended` [B, list_length].

    Raises:
        ValueError: The batch has no targets or no `session_index`.
    """
    if batch.target is None or batch.target_feedback is None:
        raise ValueError("`batch` must have targets, got none. Use a validation or test loader.")
    if batch.session_index is None:
        raise ValueError(
            "`batch` must have `session_index`, got None. Intervals resample whole sessions, so each row "
            "must say which session it is of."
        )
    measured: dict[str, Tensor]
    if is_query_model(model):
        measured = _measure_query(model, batch, batch.target, protocol, generator)
    else:
        measured = _measure_scores(model, batch, batch.target, protocol, generator)
    target_scores = measured.pop("target_scores")
    # A cold target ranks last, so that every skipped track outranks it.
    half_points, pairs = pairwise_wins(
        batch.worst_if_cold(target_scores, -torch.inf),
        measured.pop("skip_scores"),
        measured.pop("skip_mask"),
        ties=protocol.ties,
    )
    most = protocol.num_items if protocol.num_candidates is None else protocol.num_candidates + 1
    return measured | {
        "rank": batch.worst_if_cold(measured["rank"], most),
        "unscored": target_scores.isnan(),
        "target": batch.target,
        # The threshold that skips are told by is the batch's own.
        "feedback": batch.target_feedback - batch.skip_threshold,
        "seen": (batch.seen_items == batch.target[:, None]).any(dim=1),
        "length": (batch.seen_items != PADDING_INDEX).sum(dim=1),
        "tracks": batch.lengths,
        "skips": batch.rejected_mask.sum(dim=1),
        "half_points": half_points,
        "pairs": pairs,
        "session_index": batch.session_index,
    }


def _measure_query(
    model: QueryModel,
    batch: SessionBatch,
    target: Tensor,
    protocol: RankingProtocol,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    query, table = model.session_query(batch), model.item_table
    sizes = check_shape("session_query", query, "B D", {"B": len(batch)}, floating=True)
    check_shape("item_table", table, "V+1 D", sizes | {"V+1": protocol.num_items + 1}, floating=True)
    exclude = batch.seen_items if protocol.exclude_seen else None
    target_scores, skip_scores, skip_mask = skip_pair_scores(
        query, table, target, batch.items, batch.rejected_mask
    )
    candidates = _draw_candidates(target, exclude, protocol, generator)
    if candidates is None:
        ranks = target_ranks(query, table, target, exclude=exclude, ties=protocol.ties)
    else:
        # Equal rows of the table give equal scores, so that a collapsed one ranks last.
        products, _ = multiply_pairs(query, table, torch.cat([target[:, None], candidates], dim=1))
        scores = products.float()
        ranks = candidate_ranks(scores[:, 0], scores[:, 1:], candidates, ties=protocol.ties)
    return {
        "rank": ranks,
        "target_scores": target_scores,
        "skip_scores": skip_scores,
        "skip_mask": skip_mask,
        "recommended": top_k_items(query, table, protocol.list_length, exclude=exclude)[0],
    }


def _measure_scores(
    model: Baseline,
    batch: SessionBatch,
    target: Tensor,
    protocol: RankingProtocol,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    scores = model.scores(batch)
    check_shape("scores", scores, "B V+1", {"B": len(batch), "V+1": protocol.num_items + 1}, floating=True)
    own = scores.gather(1, target[:, None]).squeeze(1)
    exclude = batch.seen_items if protocol.exclude_seen else None
    candidates = scores if exclude is None else exclude_items(scores, exclude, keep=target)
    drawn = _draw_candidates(target, exclude, protocol, generator)
    if drawn is None:
        ranks = score_ranks(candidates[:, 1:], target - 1, ties=protocol.ties)
    else:
        ranks = candidate_ranks(own, scores.gather(1, drawn), drawn, ties=protocol.ties)
    open_to_all = scores if exclude is None else exclude_items(scores, exclude)
    best = (
        open_to_all[:, 1:]
        .nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        .topk(protocol.list_length, dim=1)
    )
    return {
        "rank": ranks,
        "target_scores": own,
        "skip_scores": scores.gather(1, batch.items),
        "skip_mask": skip_pair_mask(target, batch.items, batch.rejected_mask),
        "recommended": torch.where(best.values == -torch.inf, PADDING_INDEX, best.indices + 1),
    }


def _draw_candidates(
    target: Tensor, exclude: Tensor | None, protocol: RankingProtocol, generator: torch.Generator
) -> Tensor | None:
    """[B, n] candidates, 0 for what is excluded; None where the whole catalogue is ranked."""
    if protocol.num_candidates is None:
        return None
    drawn = sample_candidates(
        target.cpu(),
        protocol.num_candidates,
        protocol.num_items,
        sampler=protocol.sampler,
        item_counts=protocol.item_counts,
        generator=generator,
    ).to(target.device)
    if exclude is None:
        return drawn
    seen, _ = exclude.sort(dim=1)
    place = torch.searchsorted(seen, drawn).clamp(max=seen.shape[1] - 1)
    return torch.where(seen.gather(1, place) == drawn, PADDING_INDEX, drawn)
