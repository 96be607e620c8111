"""Skip losses that compare the scores of the ranking: margin, softmax and unlikelihood."""

import math
from typing import Literal, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_number, check_shape
from skipcl_lightning.batch import PADDING_INDEX, Sessions, as_batch
from skipcl_lightning.functional.next_item.full_softmax import log_partition
from skipcl_lightning.functional.next_item.look_up import look_up, require_table
from skipcl_lightning.functional.products import at_least_float32, without_autocast
from skipcl_lightning.functional.skip_losses.contrast import (
    Contrast,
    ContrastOptions,
    Reduction,
    reduce_anchors,
    session_contrast,
    settings_within_session,
)

__all__ = [
    "MarginLoss",
    "check_margin",
    "mean_over_negatives",
    "session_scores",
    "skip_margin",
    "skip_softmax",
    "skip_unlikelihood",
]

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
    without negatives, and the weights without an anchor.
    """
    weights = contrast.log_weight.exp()[:, None, :] * contrast.negative_mask  # [B, L, L]
    total = weights.sum(dim=2)
    losses = (pairs * weights).sum(dim=2) / torch.where(total > 0, total, 1)
    return losses, contrast.anchor_weight * contrast.negative_mask.any(dim=2)


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


def skip_softmax(
    query: Tensor,
    keys: Tensor,
    sessions: Sessions,
    item_embeddings: Tensor | None = None,
    *,
    samples: Tensor | None = None,
    sparse_gradients: bool = False,
    reduction: Reduction = "mean",
    **contrast: Unpack[ContrastOptions],
) -> Tensor:
    r"""Return the cross-entropy of the next listened item against the skipped items and sampled items.

    With the score r(t, i) = q_t · e_i and K items n_k drawn for the whole batch:

    $$
    \ell_t = -\log \frac{\exp r(t, p(t))}{\exp r(t, p(t)) + \sum_{s \in S} w_s \exp r(t, s)
    + \sum_{k : n_k \ne i_{p(t)}} \exp r(t, n_k)}
    $$

    The listener may like a sampled item; a skipped item is a certain negative.

    Args:
        query: [B, L, D] floating point, q_t: the backbone's output.
        keys: [B, L, D] floating point, e_t: the embedding of the item at t.
        sessions: A `SessionBatch`, or the pair `(items, feedback)` of [B, L] int64 and [B, L] floating point
            in [-1, 1]; padding on the right.
        item_embeddings: [V + 1, D] floating point; row 0 is padding. Needed with `samples`.
        samples: [K] int64 in 1..V, drawn for the batch; None for skipped items only.
        sparse_gradients: Whether lookups in `item_embeddings` leave sparse gradients.
        reduction: `none` returns one value for each position, `mean` averages over the anchors.
        contrast: Keyword arguments of `ContrastSettings`, but `negatives` is `passed` by default and not
            `batch`.

    Returns:
        A scalar, or [B, L] with 0 at positions that are no anchors (`none`).

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree, a setting is out of range, or `item_embeddings` is missing.

    Reference:
        For skips among the candidates: Seshadri, Shashaani, Knees, RecSys 2024, arXiv 2409.07367, which
        contrasts cosines; for the sampled sum: Bengio and Senécal, IEEE Transactions on Neural Networks
        19(4), 2008, doi 10.1109/TNN.2007.912312.

    Examples:
        >>> sessions = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
        >>> skip_softmax(torch.ones(1, 3, 1), torch.ones(1, 3, 1), sessions).round(decimals=4)
        tensor(0.6931)
    """
    batch, settings = as_batch(sessions), settings_within_session(contrast)
    found = session_contrast(batch, **settings.options)
    scores, own = session_scores(query, keys, batch.items, found)
    # Finite, because a row of -inf has a NaN gradient.
    floor = torch.finfo(scores.dtype).min
    logits = torch.where(found.negative_mask, scores + found.log_weight[:, None, :], floor)
    if samples is not None:
        check_shape("samples", samples, "K", dtype=torch.int64)
        table = require_table(item_embeddings, "sampled items")
        sample_keys = look_up(samples, table, sparse=sparse_gradients)
        query = torch.where(batch.valid_mask[..., None], query, 0)  # NaN at padding must not spread
        with without_autocast(query.device):
            sampled = query.to(scores.dtype) @ sample_keys.to(scores.dtype).T  # [B, L, K]
        target = batch.items.gather(1, found.positive_position)
        logits = torch.cat([logits, sampled.masked_fill(samples == target[..., None], floor)], dim=2)
    losses = -F.logsigmoid(own - logits.logsumexp(dim=2))
    return reduce_anchors(losses, found.anchor_weight * found.negative_mask.any(dim=2), reduction)


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
