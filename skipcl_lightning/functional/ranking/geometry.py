"""Geometry of embeddings: alignment, uniformity and effective rank."""

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_shape

__all__ = ["alignment", "effective_rank", "uniformity"]

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
