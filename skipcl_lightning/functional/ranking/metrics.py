"""Formulas on ranks, and of how often items are recommended."""

from typing import get_args

import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer, check_shape
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.ranking.ranks import TieRule

__all__ = [
    "average_precision",
    "catalogue_coverage",
    "count_recommendations",
    "hit_rate",
    "mean_self_information",
    "mrr",
    "ndcg",
    "pairwise_wins",
    "rank_percentile",
    "self_information",
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


def count_recommendations(recommended: Tensor, num_items: int) -> Tensor:
    """Return how often each item is recommended.

    Args:
        recommended: [N, K] int64 in 0..V; 0 fills shorter lists.
        num_items: V.

    Returns:
        [V + 1] int64; index 0, padding, has none.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: A shape or a setting is wrong.

    Examples:
        >>> count_recommendations(torch.tensor([[2, 3], [2, 0]]), num_items=3)
        tensor([0, 0, 2, 1])
    """
    check_shape("recommended", recommended, "N K", dtype=torch.int64)
    check_integer("num_items", num_items)
    flat = recommended.flatten()
    # Not `bincount`, for whose size the host would wait on a GPU.
    counts = torch.zeros(num_items + 1, dtype=torch.int64, device=flat.device)
    return counts.index_add_(0, flat, (flat != PADDING_INDEX).long())


def catalogue_coverage(counts: Tensor) -> Tensor:
    """Return the share of the catalogue that is recommended at all.

    coverage = #{i: c_i > 0} / V; NaN without recommendations.

    Args:
        counts: [V + 1] int64, the number of recommendations of each item; index 0 is padding.

    Returns:
        A float32 scalar in (0, 1].

    Reference:
        Herlocker, Konstan, Terveen, Riedl: Evaluating Collaborative Filtering Recommender Systems, ACM TOIS
        22(1), 2004, doi 10.1145/963770.963772, section 4.2.2.

    Examples:
        >>> catalogue_coverage(torch.tensor([0, 0, 2, 1]))
        tensor(0.6667)
    """
    items = counts[PADDING_INDEX + 1 :]
    covered = (items > 0).sum()
    return torch.where(covered > 0, covered / len(items), torch.nan)


def self_information(item_counts: Tensor) -> Tensor:
    """Return the self-information of each item in bits; rare items have more.

    I(i) = -log2((n_i + 1) / (sum of n + V)). One is added to each count, so an item without a count has a
    finite value.

    Args:
        item_counts: [V + 1] int64, the count of each item in the training set; index 0 is padding.

    Returns:
        [V + 1] float32, above 0; 0 at padding.

    Raises:
        TypeError: The counts are no integers.
        ValueError: They are not one-dimensional.

    Reference:
        Zhou, Kuscsik, Liu, Medo, Wakeling, Zhang: Solving the Apparent Diversity-Accuracy Dilemma of
        Recommender Systems, PNAS 107(10), 2010, doi 10.1073/pnas.1000488107 (without the added one).

    Examples:
        >>> self_information(torch.tensor([0, 1, 0, 1, 3]))
        tensor([0.0000, 2.1699, 3.1699, 2.1699, 1.1699])
    """
    check_shape("item_counts", item_counts, "V+1", dtype=torch.int64)
    items = item_counts.double()
    information = (items[PADDING_INDEX + 1 :].sum() + len(items) - 1).log2() - (items + 1).log2()
    information[PADDING_INDEX] = 0
    return information.float()


def mean_self_information(counts: Tensor, information: Tensor) -> Tensor:
    """Return the mean self-information of the recommendations.

    novelty = sum of c_i · I(i) / sum of c_i; NaN without recommendations.

    Args:
        counts: [V + 1] int64, the number of recommendations of each item; index 0 is padding.
        information: [V + 1] floating point, of `self_information`.

    Returns:
        A scalar of `information`'s dtype, in bits.

    Examples:
        >>> mean_self_information(torch.tensor([0, 1, 3]), torch.tensor([0.0, 1.0, 2.0]))
        tensor(1.7500)
    """
    sizes = check_shape("counts", counts, "V+1", dtype=torch.int64)
    check_shape("information", information, "V+1", sizes, floating=True)
    return (counts * information).sum() / counts.sum()
