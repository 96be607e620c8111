"""Prediction of whether the next item is listened to."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_number, check_shape
from skipcl_lightning.batch import SessionBatch, Sessions, as_batch
from skipcl_lightning.functional.products import at_least_float32, without_autocast
from skipcl_lightning.functional.skip_losses.contrast import Reduction, reduce_anchors

__all__ = ["PredictionTargets", "prediction_targets", "skip_prediction_loss"]


class PredictionTargets(NamedTuple):
    """What a skip prediction learns at each position.

    Attributes:
        position: [B, L] int64, the position of the item whose feedback is predicted; 0 without one.
        label: [B, L] float32 in [0, 1], 1 if that item was listened to; 0 without one.
        weight: [B, L] float32, the weight of the position in the mean; 0 without an item to predict.
    """

    position: Tensor
    label: Tensor
    weight: Tensor


def prediction_targets(
    sessions: Sessions, *, graded: bool = False, dislike_weight: float = 1.0, like_weight: float = 1.0
) -> PredictionTargets:
    """Return the item and the label of each position for skip prediction.

    The item at t + 1 is predicted at t, whatever its feedback. If the batch hides items from a bidirectional
    backbone (`cloze_mask`), each hidden item is predicted at its own position, and nothing elsewhere.

    The label is 0 for a rejected item (`SessionBatch.rejected_mask`), else 1. With `graded` it is (1 + f) / 2
    for feedback f, but 0 for a disliked and 1 for a liked item.

    Args:
        sessions: A `SessionBatch`, or the pair `(items, feedback)`.
        graded: Whether labels are graded.
        dislike_weight: Weight of a disliked item in the mean, above 0; other items have 1.
        like_weight: Weight of a liked item in the mean, above 0.

    Returns:
        The targets.

    Raises:
        TypeError: A weight is no number.
        ValueError: A weight is not above 0.

    Examples:
        >>> items, feedback = torch.tensor([[1, 2, 3, 0]]), torch.tensor([[1.0, -1.0, 0.5, 0.0]])
        >>> prediction_targets((items, feedback), graded=True)
        PredictionTargets(position=tensor([[1, 2, 0, 0]]), label=tensor([[0.0000, 0.7500, 0.0000, 0.0000]]), \
weight=tensor([[1., 1., 0., 0.]]))
    """
    check_number("dislike_weight", dislike_weight, minimum=0, open_minimum=True)
    check_number("like_weight", like_weight, minimum=0, open_minimum=True)
    batch = as_batch(sessions)
    here = torch.arange(batch.items.shape[1], device=batch.items.device)
    if batch.cloze_mask is not None:
        position, exists = here, batch.cloze_mask & batch.valid_mask
    else:
        position, exists = here + 1, batch.valid_mask & F.pad(batch.valid_mask, (0, 1))[:, 1:]
    position = torch.where(exists, position, 0)
    label, weight = _labels(batch, graded), torch.ones_like(batch.feedback)
    if batch.explicit_feedback is not None:
        weight = torch.where(batch.explicit_feedback < 0, dislike_weight, weight)
        weight = torch.where(batch.explicit_feedback > 0, like_weight, weight)
    return PredictionTargets(
        position,
        torch.where(exists, label.gather(1, position), 0),
        torch.where(exists, weight.gather(1, position), 0),
    )


def skip_prediction_loss(
    session_vectors: Tensor,
    item_vectors: Tensor,
    item_bias: Tensor,
    sessions: Sessions,
    *,
    graded: bool = False,
    dislike_weight: float = 1.0,
    like_weight: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Return the cross-entropy of predicting whether the next item is listened to.

    With the session vector w_t, the item vector k(i) and the item bias b(i),

    $$
    a(t, i) = w_t \cdot k(i) + b(i), \qquad
    \ell_t = BCE(\sigma(a(t, i_{t+1})), y_{t+1})
    $$

    at each position with a next item, whatever its feedback; for items, labels and weights see
    `prediction_targets`.

    Args:
        session_vectors: [B, L, M] floating point, w_t.
        item_vectors: [B, L, M] floating point, k of the item at each position.
        item_bias: [B, L] floating point, b of the item at each position.
        sessions: A `SessionBatch`, or the pair `(items, feedback)` of [B, L] int64 and [B, L] floating point
            in [-1, 1].
        graded: Whether labels are graded.
        dislike_weight: Weight of a disliked item in the mean.
        like_weight: Weight of a liked item in the mean.
        reduction: `none` returns one value for each position, `mean` averages over the positions with a next
            item, by their weights.

    Returns:
        A scalar, or [B, L] with 0 at positions without a next item (`none`). A batch without any has a mean
        of exactly 0, with a zero gradient.

    Raises:
        TypeError: A tensor or a weight has the wrong dtype.
        ValueError: Shapes disagree, or a setting is out of range.

    Reference:
        The task is that of the WSDM Cup 2019 (Brost, Mehrotra, Jehan: The Music Streaming Sessions Dataset,
        WWW 2019, arXiv 1901.09851). As a factor of the ranking it is P(conversion | click) of Ma et al.:
        Entire Space Multi-Task Model, SIGIR 2018, arXiv 1804.07931.

    Examples:
        >>> sessions = torch.tensor([[1, 2]]), torch.tensor([[1.0, -1.0]])
        >>> vectors = torch.ones(1, 2, 1)
        >>> skip_prediction_loss(vectors, vectors, torch.zeros(1, 2), sessions)  # log(1 + e)
        tensor(1.3133)
    """
    batch = as_batch(sessions)
    sizes = check_shape("session_vectors", session_vectors, "B L M", floating=True)
    check_shape("item_vectors", item_vectors, "B L M", sizes, floating=True)
    check_shape("item_bias", item_bias, "B L", sizes, floating=True)
    check_shape("items", batch.items, "B L", sizes)
    targets = prediction_targets(batch, graded=graded, dislike_weight=dislike_weight, like_weight=like_weight)
    valid_mask = batch.valid_mask
    with without_autocast(session_vectors.device):
        # The contents of padding, NaN included, have no effect.
        query, keys = (
            at_least_float32(torch.where(valid_mask[..., None], vectors, 0))
            for vectors in (session_vectors, item_vectors)
        )
        bias = at_least_float32(torch.where(valid_mask, item_bias, 0)).gather(1, targets.position)
        keys = keys.gather(1, targets.position[..., None].expand_as(keys))  # [B, L, M]
        logits = (query * keys).sum(dim=2) + bias
        losses = F.binary_cross_entropy_with_logits(logits, targets.label.to(logits.dtype), reduction="none")
    return reduce_anchors(losses, targets.weight, reduction)


def _labels(batch: SessionBatch, graded: bool) -> Tensor:
    """[B, L] float32: how far each item was listened to, in [0, 1]."""
    if not graded:
        return (~batch.rejected_mask).to(batch.feedback.dtype)
    label = (1 + batch.feedback) / 2
    if batch.explicit_feedback is None:
        return label
    label = torch.where(batch.explicit_feedback < 0, 0, label)
    return torch.where(batch.explicit_feedback > 0, 1, label)
