"""One row for each held-out target of a batch, computed on the model's device."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from skipcl_lightning._checks import check_shape
from skipcl_lightning.backbones.contract import evaluation_mode
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch, is_among
from skipcl_lightning.data import SessionDataModule, SessionEncoder
from skipcl_lightning.functional import (
    RankedBatch,
    last_position,
    pairwise_wins,
    rank_batch,
    rank_scored_batch,
    sample_candidates,
    top_k_items,
)
from skipcl_lightning.functional.ranking.metrics import CandidateSampler
from skipcl_lightning.functional.ranking.ranks import TieRule
from skipcl_lightning.model import Scoring

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from typing_extensions import TypeIs

__all__ = [
    "Baseline",
    "QueryModel",
    "RankingProtocol",
    "changed_scores",
    "check_scoring",
    "checked_target",
    "evaluated",
    "held_out_batches",
    "is_query_model",
    "measure_batch",
]


@runtime_checkable
class Baseline(Protocol):
    """Protocol of a model that scores the catalogue after each session."""

    def scores(self, batch: SessionBatch) -> Tensor:
        """[B, V + 1] floating point, the score of each item; column 0, padding, is ignored."""
        ...


class QueryModel(Protocol):
    """Protocol of a model whose scores are inner products of a query and a table."""

    @property
    def item_table(self) -> Tensor:
        """[V + 1, D]; row 0 is padding."""
        ...

    def session_query(self, batch: SessionBatch) -> Tensor:
        """[B, D], the query of each session after all of its items."""
        ...


def is_query_model(model: object) -> "TypeIs[QueryModel]":
    """Return whether a model has the attributes of a `QueryModel`.

    `isinstance` is not used, because from Python 3.12 on it does not find parameters of an `nn.Module`.

    Examples:
        >>> is_query_model(torch.nn.Linear(2, 2))
        False
    """
    return hasattr(model, "item_table") and hasattr(model, "session_query")


def check_scoring(module: object) -> None:
    """Raise `TypeError` unless this is a `SkipCLModule`, or the `Scorer` of one."""
    if not isinstance(module, Scoring):
        raise TypeError(
            f"`module` must be a trained SkipCLModule, got {type(module).__name__}. Load a checkpoint with "
            "`SkipCLModule.load_from_checkpoint`."
        )


def changed_scores(model: QueryModel, batch: SessionBatch) -> dict[str, Any]:
    """Return the scores that a model adds and the items that it retired, as arguments of `rank_batch`."""
    added = model.added_scores(batch) if hasattr(model, "added_scores") else None
    return {"added": added, "retired": getattr(model, "retired", None)}


def held_out_batches(data: SessionDataModule, split: str, *models: object) -> "DataLoader[SessionBatch]":
    """Return all batches of a held-out set, with all that the models were trained to see of a session.

    Data without a `max_length` of its own may have been fitted with another model since, of a shorter one. A
    model without an encoder sees what the data has.
    """
    encoders = [getattr(model, "encoder", None) for model in models]
    lengths = [encoder.max_length for encoder in encoders if isinstance(encoder, SessionEncoder)]
    return data.whole_set(split, for_length=max(lengths, default=1))


@contextmanager
def evaluated(model: object) -> Iterator[torch.device]:
    """Put a model into evaluation mode if it is a module, and yield the device of its batches."""
    device = torch.device("cpu")
    if is_query_model(model):
        device = model.item_table.device
    elif isinstance(model, nn.Module):
        device = next((parameter.device for parameter in model.parameters()), device)
    with evaluation_mode(model) if isinstance(model, nn.Module) else nullcontext():
        yield device


def checked_target(batch: SessionBatch) -> Tensor:
    """[B] the targets of a batch; a `ValueError` if it has none."""
    if batch.target is None:
        raise ValueError("`batch` must have targets, got none. Use a validation or test loader.")
    return batch.target


@dataclass(frozen=True)
class RankingProtocol:
    """The rules of the ranking.

    Args:
        num_items: V.
        list_length: The number of recommendations; 0 for none.
        ties: The rule for equal scores.
        exclude_seen: Whether a session's items are no candidates.
        num_candidates: The number of sampled candidates; None for the whole catalogue.
        sampler: The distribution of the candidates.
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
    model: Baseline | QueryModel,
    batch: SessionBatch,
    protocol: RankingProtocol,
    generator: torch.Generator,
    table: Tensor | None,
) -> dict[str, Tensor]:
    """Rank the targets of a batch, compare them with the session's skips, and list recommendations.

    Args:
        model: The evaluated model.
        batch: B sessions with targets, on the model's device.
        protocol: The rules of the ranking.
        generator: Source of sampled candidates, on the CPU.
        table: The `item_table` of a model with queries, read once for all batches; None for a baseline.

    Returns:
        By name, tensors of B rows: `rank`, `target`, `feedback` (minus the threshold), `seen` (the session
        already held the target), `last` (the session's last item), `length`, `tracks`, `skips`,
        `half_points` and `pairs` (of `pairwise_wins`), `unscored` (the target's score is NaN),
        `session_index`, and `recommended` [B, list_length].

    Raises:
        ValueError: The batch has no targets or no `session_index`.
    """
    target = checked_target(batch)
    if batch.session_index is None:
        raise ValueError(
            "`batch` must have `session_index`, got None. Intervals resample whole sessions, so each row "
            "must say which session it is of."
        )
    candidates = _draw_candidates(batch, target, protocol, generator)
    if is_query_model(model) and table is not None:
        ranked, recommended = _rank_queries(model, table, batch, protocol, candidates)
    else:
        assert isinstance(model, Baseline)  # noqa: S101 - `evaluate` checked it
        ranked, recommended = _rank_scores(model, batch, protocol, candidates)
    half_points, pairs = pairwise_wins(
        ranked.target_scores, ranked.skip_scores, ranked.skip_mask, ties=protocol.ties
    )
    return {
        "rank": ranked.ranks,
        "recommended": recommended,
        "unscored": ranked.target_scores.isnan(),
        "target": target,
        "feedback": ranked.target_feedback,
        "seen": ranked.target_seen,
        "last": last_position(batch.items[..., None], batch.valid_mask).squeeze(1),
        "length": (batch.seen_items != PADDING_INDEX).sum(dim=1),
        "tracks": batch.lengths,
        "skips": batch.rejected_mask.sum(dim=1),
        "half_points": half_points,
        "pairs": pairs,
        "session_index": batch.session_index,
    }


def _rank_queries(
    model: QueryModel,
    table: Tensor,
    batch: SessionBatch,
    protocol: RankingProtocol,
    candidates: Tensor | None,
) -> tuple[RankedBatch, Tensor]:
    query = model.session_query(batch)
    sizes = check_shape("session_query", query, "B D", {"B": len(batch)}, floating=True)
    check_shape("item_table", table, "V+1 D", sizes | {"V+1": protocol.num_items + 1}, floating=True)
    exclude_seen, ties = protocol.exclude_seen, protocol.ties
    more = changed_scores(model, batch)
    ranked = rank_batch(
        query, table, batch, exclude_seen=exclude_seen, ties=ties, candidates=candidates, **more
    )
    if not protocol.list_length:
        return ranked, batch.items[:, :0]
    exclude = batch.seen_items if exclude_seen else None
    return ranked, top_k_items(query, table, protocol.list_length, exclude=exclude, **more)[0]


def _rank_scores(
    model: Baseline, batch: SessionBatch, protocol: RankingProtocol, candidates: Tensor | None
) -> tuple[RankedBatch, Tensor]:
    scores = model.scores(batch)
    check_shape("scores", scores, "B V+1", {"B": len(batch), "V+1": protocol.num_items + 1}, floating=True)
    exclude_seen, ties = protocol.exclude_seen, protocol.ties
    ranked = rank_scored_batch(scores, batch, exclude_seen=exclude_seen, ties=ties, candidates=candidates)
    if not protocol.list_length:
        return ranked, batch.items[:, :0]
    listed = scores.scatter(1, batch.seen_items, -torch.inf) if exclude_seen else scores
    best = (
        listed[:, 1:]
        .nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        .topk(protocol.list_length, dim=1)
    )
    return ranked, torch.where(best.values == -torch.inf, PADDING_INDEX, best.indices + 1)


def _draw_candidates(
    batch: SessionBatch, target: Tensor, protocol: RankingProtocol, generator: torch.Generator
) -> Tensor | None:
    """[B, n] candidates, 0 for an excluded item; None if the whole catalogue is ranked."""
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
    if not protocol.exclude_seen:
        return drawn
    return drawn.masked_fill(is_among(drawn, batch.seen_items), PADDING_INDEX)
