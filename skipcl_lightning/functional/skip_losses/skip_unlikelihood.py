"""Unlikelihood of the skipped items: the next-item softmax should give them no probability."""

import math
from typing import Unpack

import torch
from torch import Tensor

from skipcl_lightning._checks import check_shape
from skipcl_lightning.batch import Sessions, as_batch
from skipcl_lightning.functional.next_item.full_softmax import log_partition
from skipcl_lightning.functional.next_item.look_up import require_table
from skipcl_lightning.functional.precision import without_autocast
from skipcl_lightning.functional.skip_losses.contrast import (
    ContrastOptions,
    Reduction,
    reduce_anchors,
    session_contrast,
    settings_within_session,
)
from skipcl_lightning.functional.skip_losses.skip_margin import mean_over_negatives, session_scores

__all__ = ["skip_unlikelihood"]

# Closer to 0, log p has no finite log(1 - p) in float32, and no gradient.
_MOST_LOG_PROBABILITY = -1e-6


def skip_unlikelihood(
    query: Tensor,
    keys: Tensor,
    sessions: Sessions,
    item_embeddings: Tensor | None = None,
    *,
    samples: Tensor | None = None,
    reduction: Reduction = "mean",
    **contrast: Unpack[ContrastOptions],
) -> Tensor:
    r"""Return the unlikelihood of the skipped items at each anchor.

    With p(i | t) the softmax of r(t, i) = q_t · e_i over the whole catalogue, the loss of an anchor is the
    weighted mean over its negatives S of

    $$
    \ell_{t,s} = -\log(1 - p(i_s \mid t))
    $$

    With samples, the sum over the catalogue is estimated: the sum over the other items is V - 1 times the
    mean of exp r over the samples that are not i_s. An item i_s that equals all samples is left out.

    Args:
        query: [B, L, D] floating point, q_t: the backbone's output.
        keys: [B, L, D] floating point, e_t: the embedding of the item at t.
        sessions: A `SessionBatch`, or the pair `(items, feedback)` of [B, L] int64 and [B, L] floating point
            in [-1, 1]; padding on the right.
        item_embeddings: [V + 1, D] floating point; row 0 is padding. Always needed.
        samples: [K] int64 in 1..V, drawn uniformly for the batch; None for the whole catalogue
            (`log_partition`).
        reduction: `none` returns one value for each position, `mean` averages over the anchors.
        contrast: Keyword arguments of `ContrastSettings`, but `negatives` is `passed` by default and not
            `batch`.

    Returns:
        A scalar, or [B, L] with 0 at positions that are no anchors (`none`).

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree, a setting is out of range, or `item_embeddings` is missing.

    Reference:
        Welleck et al.: Neural Text Generation with Unlikelihood Training, ICLR 2020, arXiv 1908.04319; for
        skips, arXiv 2308.12256.

    Examples:
        >>> sessions = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
        >>> ones = torch.ones(1, 3, 1)
        >>> skip_unlikelihood(ones, ones, sessions, torch.ones(4, 1)).round(decimals=4)  # -log(1 - 1/3)
        tensor(0.4055)
    """
    batch, settings = as_batch(sessions), settings_within_session(contrast)
    table = require_table(item_embeddings, "probabilities")
    found = session_contrast(batch, **settings.options)
    scores, _ = session_scores(query, keys, batch.items, found)
    sizes = check_shape("query", query, "B L D")
    sizes = check_shape("item_embeddings", table, "V+1 D", sizes, floating=True)
    if samples is not None:
        check_shape("samples", samples, "K", sizes, dtype=torch.int64)
    anchor_mask = found.anchor_mask & found.negative_mask.any(dim=2)
    with without_autocast(query.device):
        # NaN at other positions must not reach a gradient through a zero factor.
        query = torch.where(anchor_mask[..., None], query, 0).to(scores.dtype)
        if samples is None:
            log_probability = scores - _log_totals(query, table, anchor_mask)[..., None]
        else:
            rows = table[samples].to(scores.dtype)
            usable = batch.items[:, :, None] != samples  # [B, L, K]
            others = _log_sum_of_others(query @ rows.T, usable, sizes["V+1"] - 2)
            log_probability = scores - torch.logaddexp(scores, others)
            found = found._replace(negative_mask=found.negative_mask & usable.any(dim=2)[:, None, :])
    losses = -_log_complement(log_probability.clamp(max=_MOST_LOG_PROBABILITY))
    return reduce_anchors(*mean_over_negatives(losses, found), reduction)


def _log_totals(query: Tensor, item_embeddings: Tensor, anchor_mask: Tensor) -> Tensor:
    """[B, L]: the logarithm of each anchor's sum over the catalogue; other positions have no meaning."""
    if query.device.type == "cpu" and not torch.compiler.is_compiling():
        totals = log_partition(query[anchor_mask], item_embeddings)
        return query.new_zeros(anchor_mask.shape).masked_scatter(anchor_mask, totals)
    # The host of a GPU would have to wait for the number of anchors; a compiler would compile for each.
    return log_partition(query.flatten(0, 1), item_embeddings).view(anchor_mask.shape)


def _log_sum_of_others(logits: Tensor, usable: Tensor, num_others: int) -> Tensor:
    """[B, L, L]: for each position and each item of the session, the estimated log sum of all other items."""
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
