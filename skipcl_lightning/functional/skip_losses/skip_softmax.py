"""A next-item softmax in which the skipped items are certain negatives."""

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_shape
from skipcl_lightning.batch import Sessions, as_batch
from skipcl_lightning.functional.next_item.look_up import look_up, require_table
from skipcl_lightning.functional.precision import without_autocast
from skipcl_lightning.functional.skip_losses.contrast import (
    ContrastOptions,
    Reduction,
    reduce_anchors,
    session_contrast,
    settings_within_session,
)
from skipcl_lightning.functional.skip_losses.skip_margin import session_scores

__all__ = ["skip_softmax"]


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
    anchor_mask = found.anchor_mask & found.negative_mask.any(dim=2)
    return reduce_anchors(torch.where(anchor_mask, losses, 0), found.anchor_weight * anchor_mask, reduction)
