"""Formulas on how often each item was recommended: coverage and novelty."""

import torch
from torch import Tensor

from skipcl_lightning._checks import check_integer, check_shape
from skipcl_lightning.batch import PADDING_INDEX

__all__ = ["catalogue_coverage", "count_recommendations", "mean_self_information", "self_information"]


def count_recommendations(recommended: Tensor, num_items: int) -> Tensor:
    """How often each item stands in lists of recommendations.

    Args:
        recommended: [N, K] int64 in 0..V; 0 where a list is shorter.
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
    # Not `bincount`: on a GPU it makes the host wait for its size.
    counts = torch.zeros(num_items + 1, dtype=torch.int64, device=flat.device)
    return counts.index_add_(0, flat, (flat != PADDING_INDEX).long())


def catalogue_coverage(counts: Tensor) -> Tensor:
    """The share of the catalogue that is recommended to anyone.

    coverage = #{i: c_i > 0} / V; NaN where nothing was recommended at all.

    Args:
        counts: [V + 1] int64, how often each item was recommended; index 0 is padding.

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
    """How surprising each item is, in bits: rare items say more.

    I(i) = -log2((n_i + 1) / (sum of n + V)): a count of one is added to each item, without which an item
    that never occurred would be infinitely novel.

    Args:
        item_counts: [V + 1] int64, how often each item occurs in the training part; index 0 is padding.

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
    """The mean self-information of what was recommended.

    novelty = sum of c_i · I(i) / sum of c_i; NaN where nothing was recommended.

    Args:
        counts: [V + 1] int64, how often each item was recommended; index 0 is padding.
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
