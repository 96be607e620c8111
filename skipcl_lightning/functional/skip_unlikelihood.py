"""Unlikelihood of the skipped tracks: the next-item softmax should give them no probability."""

import math

import torch
from torch import Tensor

from skipcl_lightning._checks import check_shape
from skipcl_lightning.functional.contrast import Contrast
from skipcl_lightning.functional.precision import without_autocast
from skipcl_lightning.functional.skip_margin import session_scores

__all__ = ["skip_unlikelihood"]

# Nearer to 1 a probability has no finite log(1 - p) in float32, and no gradient.
_MOST_LOG_PROBABILITY = -1e-6


def skip_unlikelihood(
    query: Tensor,
    keys: Tensor,
    items: Tensor,
    contrast: Contrast,
    item_embeddings: Tensor,
    *,
    samples: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The unlikelihood of what was skipped, at each anchor.

    With p(i | t) the softmax of r(t, i) = q_t · e_i over the whole catalogue, the weighted mean over an
    anchor's negatives S of

    .. math::
        \ell_{t,s} = -\log(1 - p(i_s \mid t))

    With samples the sum over the catalogue is estimated: that of the other items is V - 1 times the mean of
    exp r over the samples that are not i_s.

    Args:
        query: [B, L, D] floating point, q_t.
        keys: [B, L, D] floating point, e_t.
        items: [B, L] int64; 0 is padding.
        contrast: What is compared: ``session_contrast``.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        samples: [K] int64 in 1..V, drawn uniformly for the batch; None for the whole catalogue, whose
            logits [anchors, V] are then held at once.

    Returns:
        [B, L] losses and [B, L] weights of the anchors, both 0 where there is none.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Reference:
        Welleck et al.: Neural Text Generation with Unlikelihood Training, ICLR 2020, arXiv 1908.04319; for
        skips, arXiv 2308.12256.

    Example:
        >>> from skipcl_lightning.functional import session_contrast
        >>> items, feedback = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
        >>> table, contrast = torch.ones(4, 1), session_contrast(items, feedback)
        >>> losses, _ = skip_unlikelihood(torch.ones(1, 3, 1), torch.ones(1, 3, 1), items, contrast, table)
        >>> losses.round(decimals=4)  # -log(1 - 1/3)
        tensor([[0.4055, 0.0000, 0.0000]])
    """
    scores, _ = session_scores(query, keys, items, contrast)
    sizes = check_shape("query", query, "B L D")
    sizes = check_shape("item_embeddings", item_embeddings, "V+1 D", sizes, floating=True)
    anchor_mask = contrast.anchor_mask & contrast.negative_mask.any(dim=2)
    chosen = query[anchor_mask].to(scores.dtype)  # [anchors, D]: logits are what costs
    of_skips = scores[anchor_mask]  # [anchors, L]
    with without_autocast(query.device):
        if samples is None:
            total = (chosen @ item_embeddings[1:].to(scores.dtype).T).logsumexp(dim=1, keepdim=True)
            log_probability = of_skips - total
        else:
            check_shape("samples", samples, "K", sizes, dtype=torch.int64)
            logits = chosen @ item_embeddings[samples].to(scores.dtype).T  # [anchors, K]
            others = _log_sum_of_others(logits, samples, items, anchor_mask, sizes["V+1"] - 2)
            log_probability = of_skips - torch.logaddexp(of_skips, others)
    pairs = -_log_complement(log_probability.clamp(max=_MOST_LOG_PROBABILITY))
    weights = (contrast.log_weight.exp()[:, None, :] * contrast.negative_mask)[anchor_mask]
    each = (pairs * weights).sum(dim=1) / weights.sum(dim=1)
    losses = torch.zeros_like(contrast.anchor_weight, dtype=scores.dtype).masked_scatter(anchor_mask, each)
    return losses, contrast.anchor_weight * anchor_mask


def _log_sum_of_others(
    logits: Tensor, samples: Tensor, items: Tensor, anchor_mask: Tensor, num_others: int
) -> Tensor:
    """[anchors, L]: for each track of the anchor's session, the estimated sum of all other items."""
    same = items[:, :, None] == samples  # [B, L, K]
    largest = logits.amax(dim=1, keepdim=True).detach()
    shifted = (logits - largest).exp()  # [anchors, K]
    rows = anchor_mask.nonzero()[:, 0]
    others = ~same[rows]  # [anchors, L, K]
    total = (others * shifted[:, None, :]).sum(dim=2)
    tiny = torch.finfo(logits.dtype).tiny
    mean = total / others.sum(dim=2).clamp(min=1)
    return mean.clamp(min=tiny).log() + largest + math.log(max(num_others, 1))


def _log_complement(log_probability: Tensor) -> Tensor:
    """log(1 - p) from log p < 0, precise near both ends."""
    near_one = log_probability > -math.log(2)
    # `where` sends a gradient through both sides, so neither may be infinite.
    high = torch.where(near_one, log_probability, -1.0)
    low = torch.where(near_one, -1.0, log_probability)
    return torch.where(near_one, (-torch.expm1(high)).log(), torch.log1p(-low.exp()))
