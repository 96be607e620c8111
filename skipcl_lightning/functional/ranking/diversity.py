"""How embeddings and recommended lists spread: alignment, uniformity, rank, coverage and novelty."""

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_integer, check_shape
from skipcl_lightning.batch import PADDING_INDEX

__all__ = [
    "alignment",
    "catalogue_coverage",
    "count_recommendations",
    "effective_rank",
    "mean_self_information",
    "self_information",
    "uniformity",
]

_MOST_PAIRS = 2**22


def alignment(left: Tensor, right: Tensor) -> Tensor:
    r"""Return the squared distance of each positive pair on the unit sphere.

    $$
    \ell_n = \lVert x_n / \lVert x_n \rVert - y_n / \lVert y_n \rVert \rVert^2
    $$

    It is 0 for equal directions, 2 for orthogonal and 4 for opposite ones. Its mean over the pairs is the
    paper's alignment loss with exponent 2; lower is better.

    Args:
        left: [N, D] floating point; a zero vector has the distance 1 to any other.
        right: [N, D] floating point, the partner of each.

    Returns:
        [N] float32 in [0, 4].

    Raises:
        TypeError: A tensor is not floating point.
        ValueError: Shapes disagree.

    Reference:
        Wang and Isola: Understanding Contrastive Representation Learning through Alignment and Uniformity on
        the Hypersphere, ICML 2020, arXiv 2005.10242, section 4.1.

    Examples:
        >>> alignment(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        tensor([0., 2.])
    """
    sizes = check_shape("left", left, "N D", floating=True)
    check_shape("right", right, "N D", sizes, floating=True)
    return (F.normalize(left.float(), dim=1) - F.normalize(right.float(), dim=1)).square().sum(dim=1)


def uniformity(points: Tensor) -> Tensor:
    r"""Return the logarithm of the mean Gaussian potential of points on the unit sphere.

    $$
    \log \frac{2}{N (N - 1)} \sum_{n < m} \exp(-2 \lVert x_n - x_m \rVert^2)
    $$

    for normalised points. It is 0 if all points are equal, and near -4 for random directions and large D;
    lower is better. NaN for fewer than two points.

    Args:
        points: [N, D] floating point.

    Returns:
        A float32 scalar in [-8, 0].

    Raises:
        TypeError: The tensor is not floating point.
        ValueError: It is no matrix.

    Reference:
        Wang and Isola, ICML 2020, arXiv 2005.10242, section 4.1, with t = 2.

    Examples:
        >>> uniformity(torch.tensor([[1.0, 0.0], [3.0, 0.0]])), uniformity(torch.eye(2))
        (tensor(0.), tensor(-4.))
    """
    num_points = check_shape("points", points, "N D", floating=True)["N"]
    directions = F.normalize(points.float(), dim=1)
    rows = max(1, _MOST_PAIRS // max(1, num_points))
    total = directions.new_zeros(())
    for start in range(0, num_points, rows):
        cosine = directions[start : start + rows] @ directions.T  # [rows, N]
        # Between unit vectors, the squared distance is 2 - 2 cos.
        potential = (4 * (cosine.clamp(-1, 1) - 1)).exp()
        potential.diagonal(offset=start).zero_()  # no point is a pair with itself
        total += potential.sum()
    return (total / (num_points * (num_points - 1)) if num_points > 1 else total * torch.nan).log()


def effective_rank(points: Tensor) -> Tensor:
    r"""Return the effective number of dimensions: the exponential entropy of the singular values.

    $$
    \exp \left( -\sum_k p_k \log p_k \right), \quad p_k = \sigma_k / \sum_j \sigma_j
    $$

    It is 1 if all points lie on a line through the origin, and min(N, D) if they fill all dimensions equally;
    NaN if all are zero.

    Args:
        points: [N, D] floating point and finite.

    Returns:
        A float32 scalar in [1, min(N, D)].

    Raises:
        TypeError: The tensor is not floating point.
        ValueError: It is no matrix.

    Reference:
        Roy and Vetterli: The effective rank: A measure of effective dimensionality, EUSIPCO 2007, section 2.

    Examples:
        >>> round(float(effective_rank(torch.eye(3))), 2), round(float(effective_rank(torch.ones(3, 2))), 2)
        (3.0, 1.0)
    """
    check_shape("points", points, "N D", floating=True)
    values = torch.linalg.svdvals(points.float())
    share = values / values.sum()
    entropy: Tensor = torch.special.entr(share).sum()
    return entropy.exp()


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
