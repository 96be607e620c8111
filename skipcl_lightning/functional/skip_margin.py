"""Pairs of the next listened track and the skipped ones: the one should score above the others."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_number, check_shape
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.contrast import Contrast
from skipcl_lightning.functional.precision import at_least_float32, without_autocast

__all__ = ["MarginLoss", "mean_over_negatives", "session_scores", "skip_margin"]

MarginLoss = Literal["bpr", "hinge"]


def skip_margin(
    query: Tensor,
    keys: Tensor,
    items: Tensor,
    contrast: Contrast,
    *,
    loss: MarginLoss = "bpr",
    margin: float = 1.0,
) -> tuple[Tensor, Tensor]:
    r"""How far the next listened track scores above each skipped one, pair by pair.

    With the score r(t, i) = q_t · e_i, the weighted mean over an anchor's negatives S of

    $$
    \ell_{t,s} = -\log \sigma(r(t, p(t)) - r(t, s)) \quad \text{(bpr)}, \qquad
    \ell_{t,s} = \max(0, m - r(t, p(t)) + r(t, s)) \quad \text{(hinge)}
    $$

    Args:
        query: [B, L, D] floating point, q_t.
        keys: [B, L, D] floating point, e_t.
        items: [B, L] int64; 0 is padding.
        contrast: What is compared: `session_contrast`.
        loss: `bpr` or `hinge`.
        margin: m > 0, in units of the score; `bpr` has no use for it.

    Returns:
        [B, L] losses and [B, L] weights of the anchors, both 0 where there is none.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree or a setting is out of range.

    Reference:
        Rendle et al.: BPR: Bayesian Personalized Ranking from Implicit Feedback, UAI 2009, arXiv 1205.2618;
        for the hinge, Weston, Bengio, Usunier: WSABIE, IJCAI 2011.

    Examples:
        >>> from skipcl_lightning.functional import session_contrast
        >>> items, feedback = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
        >>> keys = torch.tensor([[[0.0], [1.0], [3.0]]])
        >>> losses, weights = skip_margin(
        ...     torch.ones(1, 3, 1), keys, items, session_contrast(items, feedback), loss="hinge", margin=3.0
        ... )
        >>> losses, weights  # 3 - 3 + 1 at the one anchor
        (tensor([[1., 0., 0.]]), tensor([[1., 0., 0.]]))
    """
    check_choice("loss", loss, get_args(MarginLoss))
    check_number("margin", margin, minimum=0, open_minimum=True)
    scores, own = session_scores(query, keys, items, contrast)
    difference = own[..., None] - scores  # [B, L, L]
    pairs = -F.logsigmoid(difference) if loss == "bpr" else (margin - difference).clamp(min=0)
    return mean_over_negatives(pairs, contrast)


def mean_over_negatives(pairs: Tensor, contrast: Contrast) -> tuple[Tensor, Tensor]:
    """The weighted mean of what each anchor has with its negatives.

    Args:
        pairs: [B, L, L] finite floating point, a loss for each position and each track of its session.
        contrast: Which of these are anchors and negatives, and what each negative weighs.

    Returns:
        [B, L] losses and [B, L] weights of the anchors, both 0 where there is none.

    Examples:
        >>> from skipcl_lightning.functional import session_contrast
        >>> contrast = session_contrast(torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]]))
        >>> mean_over_negatives(torch.full((1, 3, 3), 5.0), contrast)
        (tensor([[5., 0., 0.]]), tensor([[1., 0., 0.]]))
    """
    weights = contrast.log_weight.exp()[:, None, :] * contrast.negative_mask  # [B, L, L]
    total = weights.sum(dim=2)
    losses = (pairs * weights).sum(dim=2) / torch.where(total > 0, total, 1)
    anchor_mask = contrast.anchor_mask & contrast.negative_mask.any(dim=2)
    return torch.where(anchor_mask, losses, 0), contrast.anchor_weight * anchor_mask


def session_scores(query: Tensor, keys: Tensor, items: Tensor, contrast: Contrast) -> tuple[Tensor, Tensor]:
    """Inner products of each position with the tracks of its session, and with its positive.

    Args:
        query: [B, L, D] floating point; half precision is multiplied in float32.
        keys: [B, L, D] floating point.
        items: [B, L] int64; what stands at padding, NaN included, is not looked at.
        contrast: Where the positives stand.

    Returns:
        [B, L, L] and [B, L].

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Examples:
        >>> from skipcl_lightning.functional import session_contrast
        >>> items = torch.tensor([[1, 2]])
        >>> keys = torch.tensor([[[1.0], [2.0]]])
        >>> session_scores(keys, keys, items, session_contrast(items, torch.ones(1, 2)))
        (tensor([[[1., 2.],
                 [2., 4.]]]), tensor([[2., 2.]]))
    """
    sizes = check_shape("query", query, "B L D", floating=True)
    check_shape("keys", keys, "B L D", sizes, floating=True)
    check_shape("items", items, "B L", sizes, dtype=torch.int64)
    valid_mask = (items != PADDING_INDEX)[..., None]
    with without_autocast(query.device):
        query, keys = (at_least_float32(torch.where(valid_mask, tensor, 0)) for tensor in (query, keys))
        scores = query @ keys.transpose(1, 2)
    return scores, scores.gather(2, contrast.positive_position[..., None]).squeeze(2)
