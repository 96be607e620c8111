"""The evaluation of one batch: ranks of the held-out targets, and scores of targets and skipped items."""

from typing import NamedTuple

import torch
from torch import Tensor

from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.functional.ranking.candidates import candidate_ranks
from skipcl_lightning.functional.ranking.ranks import (
    TieRule,
    exclude_items,
    multiply_pairs,
    score_ranks,
    target_ranks,
)
from skipcl_lightning.functional.ranking.skip_pairs import skip_pair_mask, skip_pair_scores
from skipcl_lightning.functional.ranking.sparse_scores import SparseScores, look_up_scores

__all__ = ["RankedBatch", "rank_batch", "rank_scored_batch"]


class RankedBatch(NamedTuple):
    """The arguments of the metrics' `update` for a batch of B sessions.

    A cold target, which training never saw, and a retired one have the worst rank and the score -inf.

    Attributes:
        ranks: [B] int64, or float32 for the tie rule `mean`; 1 is the best.
        target_feedback: [B] float32, feedback minus the threshold: below 0 the target was rejected.
        target_seen: [B] bool, the session already held the target.
        target_scores: [B] floating point.
        skip_scores: [B, L] floating point, the scores of the sessions' items.
        skip_mask: [B, L] bool, which of them are compared with the target (`skip_pair_mask`).
    """

    ranks: Tensor
    target_feedback: Tensor
    target_seen: Tensor
    target_scores: Tensor
    skip_scores: Tensor
    skip_mask: Tensor


@torch.no_grad()
def rank_batch(
    query: Tensor,
    item_embeddings: Tensor,
    batch: SessionBatch,
    *,
    exclude_seen: bool = False,
    ties: TieRule = "pessimistic",
    candidates: Tensor | None = None,
    added: SparseScores | None = None,
    retired: Tensor | None = None,
) -> RankedBatch:
    """Rank the targets of a batch by inner products.

    Args:
        query: [B, D] floating point, the sessions before their targets.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        batch: B sessions with targets.
        exclude_seen: Whether the items of a session, except the target, are left out of the candidates.
        ties: The tie rule of `target_ranks`.
        candidates: [B, n] int64, rank each target among these items (0 is none) instead of the catalogue.
        added: Scores of some items, added to their inner products.
        retired: [V + 1] bool, items that are no candidates of any query; None for none.

    Returns:
        The ranks and scores.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: The batch has no targets, or shapes disagree.

    Examples:
        >>> items, feedback = torch.tensor([[1, 3]]), torch.tensor([[1.0, -1.0]])
        >>> batch = SessionBatch(items, feedback, target=torch.tensor([2]), target_feedback=torch.ones(1))
        >>> found = rank_batch(torch.ones(1, 1), torch.tensor([[0.0], [1.0], [2.0], [3.0]]), batch)
        >>> found.ranks, found.skip_mask
        (tensor([2]), tensor([[False,  True]]))
    """
    target, feedback = _targets(batch)
    if retired is not None:
        cold = retired[target] if batch.cold_target is None else retired[target] | batch.cold_target
        batch = batch.replace(cold_target=cold)
    own, others, pairs = skip_pair_scores(query, item_embeddings, target, batch.items, batch.rejected_mask)
    if added is not None:
        own = own + look_up_scores(added, target[:, None]).squeeze(1)
        others = others + look_up_scores(added, batch.items)
    if candidates is None:
        exclude = batch.seen_items if exclude_seen else None
        ranks = target_ranks(
            query, item_embeddings, target, exclude=exclude, added=added, retired=retired, ties=ties
        )
        worst = len(item_embeddings) - 1
    else:
        if retired is not None:
            candidates = candidates.masked_fill(retired[candidates], PADDING_INDEX)
        # Products pair by pair: equal rows of the table give equal scores, so a collapsed table ranks last.
        ranked = torch.cat([target[:, None], candidates], dim=1)
        products, _ = multiply_pairs(query, item_embeddings, ranked)
        values = (products if added is None else products + look_up_scores(added, ranked)).float()
        ranks = candidate_ranks(values[:, 0], values[:, 1:], candidates, ties=ties)
        worst = candidates.shape[1] + 1
    return _assemble(batch, target, feedback, ranks, worst, (own, others, pairs))


@torch.no_grad()
def rank_scored_batch(
    scores: Tensor,
    batch: SessionBatch,
    *,
    exclude_seen: bool = False,
    ties: TieRule = "pessimistic",
    candidates: Tensor | None = None,
) -> RankedBatch:
    """Rank the targets of a batch by given scores.

    Args:
        scores: [B, V + 1] floating point; column 0, padding, is ignored.
        batch: B sessions with targets.
        exclude_seen: As in `rank_batch`.
        ties: As in `rank_batch`.
        candidates: As in `rank_batch`.

    Returns:
        The ranks and scores.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: The batch has no targets, or shapes disagree.

    Examples:
        >>> items, feedback = torch.tensor([[1, 3]]), torch.tensor([[1.0, -1.0]])
        >>> batch = SessionBatch(items, feedback, target=torch.tensor([2]), target_feedback=torch.ones(1))
        >>> rank_scored_batch(torch.tensor([[9.0, 1.0, 2.0, 3.0]]), batch).ranks
        tensor([2])
    """
    target, feedback = _targets(batch)
    own = scores.gather(1, target[:, None]).squeeze(1)
    if candidates is None:
        ranked = exclude_items(scores, batch.seen_items, keep=target) if exclude_seen else scores
        ranks, worst = score_ranks(ranked[:, 1:], target - 1, ties=ties), scores.shape[1] - 1
    else:
        ranks = candidate_ranks(own, scores.gather(1, candidates), candidates, ties=ties)
        worst = candidates.shape[1] + 1
    pairs = skip_pair_mask(target, batch.items, batch.rejected_mask)
    return _assemble(batch, target, feedback, ranks, worst, (own, scores.gather(1, batch.items), pairs))


def _targets(batch: SessionBatch) -> tuple[Tensor, Tensor]:
    if batch.target is None or batch.target_feedback is None:
        raise ValueError("`batch` must have targets, got none. Use a validation or test loader.")
    return batch.target, batch.target_feedback


def _assemble(
    batch: SessionBatch,
    target: Tensor,
    feedback: Tensor,
    ranks: Tensor,
    worst: int,
    scores: tuple[Tensor, Tensor, Tensor],
) -> RankedBatch:
    return RankedBatch(
        ranks=batch.worst_if_cold(ranks, worst),
        # The threshold of the metrics is 0.
        target_feedback=feedback - batch.skip_threshold,
        target_seen=(batch.seen_items == target[:, None]).any(dim=1),
        target_scores=batch.worst_if_cold(scores[0], -torch.inf),
        skip_scores=scores[1],
        skip_mask=scores[2],
    )
