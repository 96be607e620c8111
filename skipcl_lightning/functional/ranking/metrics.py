"""The evaluation of one batch: formulas on ranks, pairs with skipped items, and ranks of the targets."""

import warnings
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer, check_shape
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.functional.ranking.ranks import (
    TieRule,
    multiply_pairs,
    score_ranks,
    target_ranks,
)
from skipcl_lightning.functional.ranking.sparse_scores import SparseScores, look_up_scores

__all__ = [
    "CandidateSampler",
    "RankedBatch",
    "average_precision",
    "candidate_ranks",
    "hit_rate",
    "mrr",
    "ndcg",
    "pairwise_wins",
    "rank_batch",
    "rank_percentile",
    "rank_scored_batch",
    "sample_candidates",
    "skip_pair_mask",
    "skip_pair_scores",
]


def hit_rate(ranks: Tensor, *, top_k: int) -> Tensor:
    """Return 1 for each target among the first `top_k`, else 0.

    HR@k = 1 if rank <= k, else 0. A mean-tie rank of k + 1/2 is no hit.

    Args:
        ranks: Ranks from 1, of any shape, int64 or floating point.
        top_k: k, at least 1.

    Returns:
        Values in {0, 1}, shaped as `ranks`; float32, or the dtype of floating-point ranks.

    Raises:
        TypeError: `top_k` is no integer.
        ValueError: `top_k` is below 1.

    Reference:
        Cremonesi, Koren, Turrin: Performance of Recommender Algorithms on Top-N Recommendation Tasks, RecSys
        2010, doi 10.1145/1864708.1864721 (recall with one relevant item).

    Examples:
        >>> hit_rate(torch.tensor([1, 2, 3]), top_k=2)
        tensor([1., 1., 0.])
    """
    return _within(ranks, top_k, torch.ones_like(_floating(ranks)))


def ndcg(ranks: Tensor, *, top_k: int) -> Tensor:
    """Return the normalised discounted gain of each target.

    NDCG@k = 1 / log2(rank + 1) if rank <= k, else 0. With one target, the ideal gain is 1 for every k.

    Args:
        ranks: Ranks from 1, of any shape, int64 or floating point.
        top_k: k, at least 1.

    Returns:
        Values in [0, 1], shaped as `ranks`; float32, or the dtype of floating-point ranks.

    Raises:
        TypeError: `top_k` is no integer.
        ValueError: `top_k` is below 1.

    Reference:
        Järvelin, Kekäläinen: Cumulated Gain-based Evaluation of IR Techniques, ACM TOIS 20(4), 2002, doi
        10.1145/582415.582418.

    Examples:
        >>> ndcg(torch.tensor([1, 3, 4]), top_k=3)
        tensor([1.0000, 0.5000, 0.0000])
    """
    return _within(ranks, top_k, 1 / torch.log2(_floating(ranks) + 1))


def mrr(ranks: Tensor, *, top_k: int) -> Tensor:
    """Return the reciprocal rank of each target.

    RR@k = 1 / rank if rank <= k, else 0. Its mean over targets is MRR@k.

    Args:
        ranks: Ranks from 1, of any shape, int64 or floating point.
        top_k: k, at least 1.

    Returns:
        Values in [0, 1], shaped as `ranks`; float32, or the dtype of floating-point ranks.

    Raises:
        TypeError: `top_k` is no integer.
        ValueError: `top_k` is below 1.

    Reference:
        Voorhees: The TREC-8 Question Answering Track Report, TREC 1999.

    Examples:
        >>> mrr(torch.tensor([1, 2, 3]), top_k=2)
        tensor([1.0000, 0.5000, 0.0000])
    """
    return _within(ranks, top_k, 1 / _floating(ranks))


def average_precision(ranks: Tensor, *, top_k: int) -> Tensor:
    """Return the average precision of each target, which equals its reciprocal rank.

    AP@k = sum over i <= k of precision(i) * relevant(i) / min(k, #relevant). With one target this is
    precision(rank) = 1 / rank, so MAP@k equals MRR@k.

    Args:
        ranks: Ranks from 1, of any shape, int64 or floating point.
        top_k: k, at least 1.

    Returns:
        Values in [0, 1], shaped as `ranks`; float32, or the dtype of floating-point ranks.

    Raises:
        TypeError: `top_k` is no integer.
        ValueError: `top_k` is below 1.

    Reference:
        Buckley, Voorhees: Evaluating Evaluation Measure Stability, SIGIR 2000, doi 10.1145/345508.345543.

    Examples:
        >>> average_precision(torch.tensor([1, 2, 3]), top_k=2)
        tensor([1.0000, 0.5000, 0.0000])
    """
    return mrr(ranks, top_k=top_k)


def rank_percentile(ranks: Tensor, *, num_items: int) -> Tensor:
    """Return the place of each target in the catalogue: 0 is the first, 1 the last.

    percentile = (rank - 1) / (V - 1). It is linear, so the percentile of a mean rank is the mean percentile.

    Args:
        ranks: Ranks in 1..V, of any shape, int64 or floating point.
        num_items: V, the catalogue's size, at least 2.

    Returns:
        Values in [0, 1], shaped as `ranks`; float32, or the dtype of floating-point ranks.

    Raises:
        TypeError: `num_items` is no integer.
        ValueError: `num_items` is below 2, where first and last are one place.

    Examples:
        >>> rank_percentile(torch.tensor([1, 2, 5]), num_items=5)
        tensor([0.0000, 0.2500, 1.0000])
    """
    check_integer("num_items", num_items, minimum=2, cure="One item's percentile is undefined.")
    return (_floating(ranks) - 1) / (num_items - 1)


def pairwise_wins(
    target_scores: Tensor, skip_scores: Tensor, skip_mask: Tensor, *, ties: TieRule = "pessimistic"
) -> tuple[Tensor, Tensor]:
    """Return how often each target outranks the session's skipped items, in half points.

    half points = 2 * #{skipped below} + #{tied} * (0 `pessimistic`, 1 `mean`, 2 `optimistic`). They are
    integers, so sums over sessions are exact in any order. Accuracy = half points / (2 * pairs), an AUC. NaN
    on either side counts as a loss under every rule.

    Args:
        target_scores: [N] floating point.
        skip_scores: [N, L] floating point; unused where the mask is False.
        skip_mask: [N, L] bool, True at skipped items.
        ties: The rule for equal scores.

    Returns:
        Half points [N] and pairs [N], both int64; 0 and 0 for a session without skips.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree or the rule is unknown.

    Reference:
        Hanley, McNeil: The Meaning and Use of the Area under a Receiver Operating Characteristic (ROC) Curve,
        Radiology 143(1), 1982, doi 10.1148/radiology.143.1.7063747 (the AUC as a share of pairs).

    Examples:
        >>> skips, skip_mask = torch.tensor([[0.1, 0.5, 0.9]]), torch.tensor([[True, True, False]])
        >>> pairwise_wins(torch.tensor([0.5]), skips, skip_mask, ties="mean")
        (tensor([3]), tensor([2]))
    """
    check_choice("ties", ties, get_args(TieRule))
    sizes = check_shape("target_scores", target_scores, "N", floating=True)
    sizes = check_shape("skip_scores", skip_scores, "N L", sizes, floating=True)
    check_shape("skip_mask", skip_mask, "N L", sizes, dtype=torch.bool)
    wins = (skip_mask & (skip_scores < target_scores[:, None])).sum(dim=1)
    tied = (skip_mask & (skip_scores == target_scores[:, None])).sum(dim=1)
    points_of_a_tie = {"pessimistic": 0, "mean": 1, "optimistic": 2}[ties]
    return 2 * wins + points_of_a_tie * tied, skip_mask.sum(dim=1)


def _floating(ranks: Tensor) -> Tensor:
    return ranks if ranks.is_floating_point() else ranks.float()


def _within(ranks: Tensor, top_k: int, gain: Tensor) -> Tensor:
    """Return the gain of ranks up to `top_k`, and 0 for later ranks."""
    check_integer("top_k", top_k)
    return torch.where(ranks <= top_k, gain, 0)


CandidateSampler = Literal["uniform", "popularity"]

_WARNING = (
    "Ranks among sampled candidates order models differently from ranks among the whole catalogue, even in "
    "expectation (Krichene and Rendle: On Sampled Metrics for Item Recommendation, KDD 2020, "
    "doi 10.1145/3394486.3403226). Use them only to compare with a paper that reports them."
)


def sample_candidates(
    target: Tensor,
    num_candidates: int,
    num_items: int,
    *,
    sampler: CandidateSampler = "uniform",
    item_counts: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the items among which each target is ranked, and warn that such ranks mislead.

    Args:
        target: [N] int64 in 1..V.
        num_candidates: n, items drawn for each target, with replacement.
        num_items: V, at least 2.
        sampler: `uniform`, or in proportion to `popularity`.
        item_counts: [V + 1] int64, the count of each item in the training set; for `popularity` only.
        generator: The source of randomness; None for torch's global generator.

    Returns:
        [N, n] int64 in 0..V, never a row's target; by popularity, 0 where the target was drawn.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: A setting is out of range, or `item_counts` is given or missing against the sampler.

    Reference:
        Krichene and Rendle: On Sampled Metrics for Item Recommendation, KDD 2020, doi
        10.1145/3394486.3403226.

    Examples:
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     sample_candidates(torch.tensor([2, 1]), 3, num_items=2)
        tensor([[1, 1, 1],
                [2, 2, 2]])
    """
    sizes = check_shape("target", target, "N", dtype=torch.int64)
    check_integer("num_candidates", num_candidates)
    check_integer("num_items", num_items, minimum=2)
    check_choice("sampler", sampler, get_args(CandidateSampler))
    if (item_counts is None) == (sampler == "popularity"):
        raise ValueError(
            f"`item_counts` must be given for the sampler 'popularity' and no other, got {sampler!r} "
            f"{'without' if item_counts is None else 'with'} them. `datamodule.item_counts` are such counts."
        )
    warnings.warn(_WARNING, stacklevel=2)
    shape = (sizes["N"], num_candidates)
    if item_counts is None:
        drawn = torch.randint(1, num_items, shape, device=target.device, generator=generator)
        # Drawn from V - 1 numbers; those from the target on move up by one.
        return drawn + (drawn >= target[:, None])
    check_shape("item_counts", item_counts, "V+1", {"V+1": num_items + 1}, dtype=torch.int64)
    weights = item_counts.to(target.device, torch.float64)
    weights[PADDING_INDEX] = 0
    # Not `multinomial`, which is limited to 2^24 categories.
    ends = weights.cumsum(0)
    if item_counts.device.type == "cpu" and not ends[-1] > 0:
        raise ValueError(
            "`item_counts` must have a count above 0, got none. Count the plays of the training set."
        )
    places = torch.rand(shape, device=target.device, generator=generator, dtype=torch.float64) * ends[-1]
    drawn = torch.searchsorted(ends, places, right=True).clamp(max=num_items)
    return torch.where(drawn == target[:, None], PADDING_INDEX, drawn)


def candidate_ranks(
    target_scores: Tensor, scores: Tensor, candidates: Tensor, *, ties: TieRule = "pessimistic"
) -> Tensor:
    """Return the rank of each target among its own candidates.

    Args:
        target_scores: [N] floating point.
        scores: [N, n] floating point, of the candidates.
        candidates: [N, n] int64; 0 is no candidate.
        ties: The rule for equal scores; see `score_ranks`.

    Returns:
        [N] ranks in 1..n + 1: int64, or float32 for `mean`. A target whose score is NaN ranks n + 1.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree or the rule is unknown.

    Examples:
        >>> scores, candidates = torch.tensor([[0.9, 0.1, 0.7]]), torch.tensor([[4, 7, 0]])
        >>> candidate_ranks(torch.tensor([0.5]), scores, candidates)
        tensor([2])
    """
    sizes = check_shape("target_scores", target_scores, "N", floating=True)
    sizes = check_shape("scores", scores, "N n", sizes, floating=True)
    check_shape("candidates", candidates, "N n", sizes, dtype=torch.int64)
    scores = torch.where(candidates == PADDING_INDEX, -torch.inf, scores)
    together = torch.cat([target_scores[:, None], scores], dim=1)  # [N, 1 + n]
    return score_ranks(together, torch.zeros_like(candidates[:, 0]), ties=ties)


def skip_pair_mask(target: Tensor, items: Tensor, skip_mask: Tensor) -> Tensor:
    """Return which skipped items are paired with the target after them.

    A skipped item that is the target, or that the session also listens to, has no pair.

    Args:
        target: [N] int64 in 1..V.
        items: [N, L] int64, the items before the target; 0 is padding.
        skip_mask: [N, L] bool, True at skipped items.

    Returns:
        [N, L] bool.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Examples:
        >>> items, skipped = torch.tensor([[1, 3, 3]]), torch.tensor([[True, True, False]])
        >>> skip_pair_mask(torch.tensor([2]), items, skipped)
        tensor([[ True, False, False]])
    """
    sizes = check_shape("target", target, "N", dtype=torch.int64)
    sizes = check_shape("items", items, "N L", sizes, dtype=torch.int64)
    check_shape("skip_mask", skip_mask, "N L", sizes, dtype=torch.bool)
    listened = torch.where(skip_mask, PADDING_INDEX, items)
    also_listened = (items[:, :, None] == listened[:, None, :]).any(dim=2)
    return skip_mask & ~also_listened & (items != target[:, None])


@torch.no_grad()
def skip_pair_scores(
    query: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    items: Tensor,
    skip_mask: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scores of each target and of its session's items, for `PairwiseSkipAccuracy`.

    Scores are float32, also under autocast.

    Args:
        query: [N, D] floating point, the sessions before the target.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        target: [N] int64 in 1..V.
        items: [N, L] int64, the items before the target; 0 is padding.
        skip_mask: [N, L] bool, True at skipped items.

    Returns:
        The scores of the targets [N] and of the items [N, L], and [N, L] bool: the pairs.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Examples:
        >>> table = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> items, skipped = torch.tensor([[1, 3, 3]]), torch.tensor([[True, True, False]])
        >>> scores = skip_pair_scores(torch.ones(1, 1), table, torch.tensor([2]), items, skipped)
        >>> scores[0], scores[1], scores[2]
        (tensor([2.]), tensor([[1., 3., 3.]]), tensor([[ True, False, False]]))
    """
    sizes = check_shape("query", query, "N D", floating=True)
    check_shape("item_embeddings", item_embeddings, "V+1 D", sizes, floating=True)
    check_shape("target", target, "N", sizes, dtype=torch.int64)
    pairs = skip_pair_mask(target, items, skip_mask)
    candidates = item_embeddings[torch.cat([target[:, None], items], dim=1)]  # [N, 1 + L, D]
    # Not a matrix product, which may round equal rows differently and so change ties.
    scores = (candidates.float() * query[:, None].float()).sum(dim=2)
    return scores[:, 0], scores[:, 1:], pairs


class RankedBatch(NamedTuple):
    """The arguments of the metrics' `update` for a batch of B sessions.

    A cold target, which training never saw, and a retired one have the worst rank and the score -inf. If the
    session's items are excluded, a target that it already held has the worst rank too.

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
        exclude_seen: Whether the items of a session are left out of the candidates. A target that the session
            already held can't be recommended then: it has the worst rank.
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
    target = _target(batch)
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
    return _assemble(batch, ranks, worst, (own, others, pairs), exclude_seen=exclude_seen)


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
    target = _target(batch)
    own = scores.gather(1, target[:, None]).squeeze(1)
    if candidates is None:
        ranked = scores.scatter(1, batch.seen_items, -torch.inf) if exclude_seen else scores
        ranks, worst = score_ranks(ranked[:, 1:], target - 1, ties=ties), scores.shape[1] - 1
    else:
        ranks = candidate_ranks(own, scores.gather(1, candidates), candidates, ties=ties)
        worst = candidates.shape[1] + 1
    pairs = skip_pair_mask(target, batch.items, batch.rejected_mask)
    others = scores.gather(1, batch.items)
    return _assemble(batch, ranks, worst, (own, others, pairs), exclude_seen=exclude_seen)


def _target(batch: SessionBatch) -> Tensor:
    if batch.target is None:
        raise ValueError("`batch` must have targets, got none. Use a validation or test loader.")
    return batch.target


def _assemble(
    batch: SessionBatch,
    ranks: Tensor,
    worst: int,
    scores: tuple[Tensor, Tensor, Tensor],
    *,
    exclude_seen: bool,
) -> RankedBatch:
    """Return ranks and the result of `skip_pair_scores`, with `worst` for what cannot be recommended."""
    seen = (batch.seen_items == _target(batch)[:, None]).any(dim=1)
    ranks = ranks.masked_fill(seen, worst) if exclude_seen else ranks
    own, others, pairs = scores
    assert batch.target_feedback is not None  # noqa: S101 - given with the targets
    return RankedBatch(
        ranks=batch.worst_if_cold(ranks, worst),
        # The threshold of the metrics is 0.
        target_feedback=batch.target_feedback - batch.skip_threshold,
        target_seen=seen,
        target_scores=batch.worst_if_cold(own, -torch.inf),
        skip_scores=others,
        skip_mask=pairs,
    )
