"""Coverage and novelty of recommendations."""

import torch
from torch import Tensor

from skipcl_lightning._checks import check_integer, check_shape
from skipcl_lightning.batch import PADDING_INDEX

__all__ = ["catalogue_coverage", "count_recommendations", "mean_self_information", "self_information"]


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
