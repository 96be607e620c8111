"""Unlikelihood of the skipped tracks: the next-item softmax should give them no probability."""

import math

import torch
from torch import Tensor

from skipcl_lightning._checks import check_shape
from skipcl_lightning.functional.contrast import Contrast
from skipcl_lightning.functional.partition import log_partition
from skipcl_lightning.functional.precision import without_autocast
from skipcl_lightning.functional.skip_margin import mean_over_negatives, session_scores

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

    $$
    \ell_{t,s} = -\log(1 - p(i_s \mid t))
    $$

    With samples the sum over the catalogue is estimated: that of the other items is V - 1 times the mean of
    exp r over the samples that are not i_s. A track for which all samples are i_s contributes nothing.

    Args:
        query: [B, L, D] floating point, q_t.
        keys: [B, L, D] floating point, e_t.
        items: [B, L] int64; 0 is padding.
        contrast: What is compared: `session_contrast`.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        samples: [K] int64 in 1..V, drawn uniformly for the batch; None for the whole catalogue,
            whose logits are held a chunk at a time, twice (`partition.log_partition`).

    Returns:
        [B, L] losses and [B, L] weights of the anchors, both 0 where there is none.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Reference:
        Welleck et al.: Neural Text Generation with Unlikelihood Training, ICLR 2020, arXiv 1908.04319; for
        skips, arXiv 2308.12256.

    Examples:
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
    if samples is not None:
        check_shape("samples", samples, "K", sizes, dtype=torch.int64)
    anchor_mask = contrast.anchor_mask & contrast.negative_mask.any(dim=2)
    with without_autocast(query.device):
        # Whatever stands elsewhere, NaN included, must not reach a gradient through a zero factor.
        query = torch.where(anchor_mask[..., None], query, 0).to(scores.dtype)
        if samples is None:
            log_probability = scores - _log_totals(query, item_embeddings, anchor_mask)[..., None]
        else:
            rows = item_embeddings[samples].to(scores.dtype)
            usable = items[:, :, None] != samples  # [B, L, K]
            others = _log_sum_of_others(query @ rows.T, usable, sizes["V+1"] - 2)
            log_probability = scores - torch.logaddexp(scores, others)
            # Without a usable sample nothing is known of the other items.
            contrast = contrast._replace(negative_mask=contrast.negative_mask & usable.any(dim=2)[:, None, :])
    return mean_over_negatives(-_log_complement(log_probability.clamp(max=_MOST_LOG_PROBABILITY)), contrast)


def _log_totals(query: Tensor, item_embeddings: Tensor, anchor_mask: Tensor) -> Tensor:
    """[B, L]: the logarithm of each anchor's sum over the catalogue; what stands elsewhere has no meaning."""
    if query.device.type == "cpu" and not torch.compiler.is_compiling():
        totals = log_partition(query[anchor_mask], item_embeddings)
        return query.new_zeros(anchor_mask.shape).masked_scatter(anchor_mask, totals)
    # A GPU's host would have to wait for the number of anchors, and a compiled step be compiled for it.
    return log_partition(query.flatten(0, 1), item_embeddings).view(anchor_mask.shape)


def _log_sum_of_others(logits: Tensor, usable: Tensor, num_others: int) -> Tensor:
    """[B, L, L]: at each position, for each track of the session, the estimated sum of all other items."""
    others = usable.to(logits.dtype)  # [B, L, K]
    largest = logits.amax(dim=2, keepdim=True).detach()
    total = (logits - largest).exp() @ others.transpose(1, 2)  # no subtraction, which would lose digits
    mean = total / others.sum(dim=2)[:, None, :].clamp(min=1)
    return mean.clamp(min=torch.finfo(logits.dtype).tiny).log() + largest + math.log(max(num_others, 1))


def _log_complement(log_probability: Tensor) -> Tensor:
    """log(1 - p) from log p < 0, precise near both ends."""
    near_one = log_probability > -math.log(2)
    # `where` sends a gradient through both sides, so neither may be infinite.
    high = torch.where(near_one, log_probability, -1.0)
    low = torch.where(near_one, -1.0, log_probability)
    return torch.where(near_one, (-torch.expm1(high)).log(), torch.log1p(-low.exp()))
