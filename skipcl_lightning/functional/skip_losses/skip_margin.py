"""Pairs of the next listened item and the skipped items: the first should score above the others."""

from typing import Literal, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_number, check_shape
from skipcl_lightning.batch import PADDING_INDEX, Sessions, as_batch
from skipcl_lightning.functional.precision import at_least_float32, without_autocast
from skipcl_lightning.functional.skip_losses.contrast import (
    Contrast,
    ContrastOptions,
    Reduction,
    reduce_anchors,
    session_contrast,
    settings_within_session,
)

__all__ = ["MarginLoss", "check_margin", "mean_over_negatives", "session_scores", "skip_margin"]

MarginLoss = Literal["bpr", "hinge"]


def skip_margin(
    query: Tensor,
    keys: Tensor,
    sessions: Sessions,
    *,
    loss: MarginLoss = "bpr",
    margin: float | None = None,
    reduction: Reduction = "mean",
    **contrast: Unpack[ContrastOptions],
) -> Tensor:
    r"""Return a pairwise loss of the next listened item's score against those of the skipped items.

    With the score r(t, i) = q_t · e_i, the loss of an anchor is the weighted mean over its negatives S of

    $$
    \ell_{t,s} = -\log \sigma(r(t, p(t)) - r(t, s)) \quad \text{(bpr)}, \qquad
    \ell_{t,s} = \max(0, m - r(t, p(t)) + r(t, s)) \quad \text{(hinge)}
    $$

    Args:
        query: [B, L, D] floating point, q_t: the backbone's output.
        keys: [B, L, D] floating point, e_t: the embedding of the item at t.
        sessions: A `SessionBatch`, or the pair `(items, feedback)` of [B, L] int64 and [B, L] floating point
            in [-1, 1]; padding on the right.
        loss: `bpr` or `hinge`.
        margin: m > 0 of the hinge, in units of the score; None for 1. `bpr` has none.
        reduction: `none` returns one value for each position, `mean` averages over the anchors.
        contrast: Keyword arguments of `ContrastSettings`, but `negatives` is `passed` by default and not
            `batch`.

    Returns:
        A scalar, or [B, L] with 0 at positions that are no anchors (`none`).

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree, or a setting is out of range or has no effect.

    Reference:
        Rendle et al.: BPR: Bayesian Personalized Ranking from Implicit Feedback, UAI 2009, arXiv 1205.2618;
        for the hinge, Weston, Bengio, Usunier: WSABIE, IJCAI 2011.

    Examples:
        >>> sessions = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
        >>> keys = torch.tensor([[[0.0], [1.0], [3.0]]])
        >>> skip_margin(torch.ones(1, 3, 1), keys, sessions, loss="hinge", margin=3.0)  # 3 - 3 + 1
        tensor(1.)
    """
    check_margin(loss, margin)
    batch, settings = as_batch(sessions), settings_within_session(contrast)
    found = session_contrast(batch, **settings.options)
    scores, own = session_scores(query, keys, batch.items, found)
    difference = own[..., None] - scores  # [B, L, L]
    distance = 1.0 if margin is None else margin
    pairs = -F.logsigmoid(difference) if loss == "bpr" else (distance - difference).clamp(min=0)
    return reduce_anchors(*mean_over_negatives(pairs, found), reduction)


def check_margin(loss: MarginLoss, margin: float | None) -> None:
    """Check the settings of `skip_margin`."""
    check_choice("loss", loss, get_args(MarginLoss))
    if margin is not None:
        check_number("margin", margin, minimum=0, open_minimum=True)
        if loss == "bpr":
            raise ValueError(
                f"`margin` must be None for 'bpr', got {margin!r}. Only the hinge keeps a distance."
            )


def mean_over_negatives(pairs: Tensor, contrast: Contrast) -> tuple[Tensor, Tensor]:
    """Return the [B, L] weighted means over the negatives of each anchor, and the [B, L] anchors' weights.

    `pairs` [B, L, L] is a finite loss for each position and each item of its session. Both results are 0
    where there is no anchor.
    """
    weights = contrast.log_weight.exp()[:, None, :] * contrast.negative_mask  # [B, L, L]
    total = weights.sum(dim=2)
    losses = (pairs * weights).sum(dim=2) / torch.where(total > 0, total, 1)
    anchor_mask = contrast.anchor_mask & contrast.negative_mask.any(dim=2)
    return torch.where(anchor_mask, losses, 0), contrast.anchor_weight * anchor_mask


def session_scores(query: Tensor, keys: Tensor, items: Tensor, contrast: Contrast) -> tuple[Tensor, Tensor]:
    """Return the [B, L, L] inner products with the items of the session, and [B, L] with the positive.

    Half precision is multiplied in float32. The contents of padding, NaN included, have no effect.
    """
    sizes = check_shape("query", query, "B L D", floating=True)
    check_shape("keys", keys, "B L D", sizes, floating=True)
    check_shape("items", items, "B L", sizes, dtype=torch.int64)
    valid_mask = (items != PADDING_INDEX)[..., None]
    with without_autocast(query.device):
        query, keys = (at_least_float32(torch.where(valid_mask, tensor, 0)) for tensor in (query, keys))
        scores = query @ keys.transpose(1, 2)
    return scores, scores.gather(2, contrast.positive_position[..., None]).squeeze(2)
