"""Which tracks of a session are contrasted with which: anchors, their positives and their negatives."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_number, check_shape
from skipcl_lightning.batch import PADDING_INDEX, is_rejected
from skipcl_lightning.functional.positions import next_listened
from skipcl_lightning.functional.precision import at_least_float32

__all__ = [
    "Anchors",
    "Contrast",
    "Reduction",
    "SessionNegatives",
    "SkipWeights",
    "reduce_anchors",
    "session_contrast",
    "weighted_mean",
]

Anchors = Literal["listened", "all"]
SessionNegatives = Literal["session", "past", "passed"]
SkipWeights = Literal["uniform", "strength"]
Reduction = Literal["none", "mean", "sum"]


class Contrast(NamedTuple):
    """What a head compares at each position.

    Attributes:
        positive_position: [B, L] int64, where the positive of each position stands; 0 where there is none.
        anchor_mask: [B, L] bool, True where there is one.
        anchor_weight: [B, L] float32, how much each anchor counts; 0 where there is none.
        negative_mask: [B, L, L] bool, which tracks of its session are negatives of a position.
        log_weight: [B, L] float32, the logarithm of each track's weight as a negative; finite everywhere.
        rejected_mask: [B, L] bool, tracks that were rejected (`is_rejected`), whatever else the session
            did.
        kept_items: [B, L] int64, the items that the session does not reject; 0 elsewhere.
        given_positives: [B, L] int64, the item of each positive where the caller chose the positives; None
            for the next listened tracks, which are among `kept_items`.
    """

    positive_position: Tensor
    anchor_mask: Tensor
    anchor_weight: Tensor
    negative_mask: Tensor
    log_weight: Tensor
    rejected_mask: Tensor
    kept_items: Tensor
    given_positives: Tensor | None


def session_contrast(
    items: Tensor,
    feedback: Tensor,
    *,
    explicit_feedback: Tensor | None = None,
    anchors: Anchors = "listened",
    negatives: SessionNegatives = "session",
    skip_weights: SkipWeights = "uniform",
    dislike_weight: float = 1.0,
    like_weight: float = 1.0,
    skip_threshold: float = 0.0,
    positive_position: Tensor | None = None,
) -> Contrast:
    r"""Anchors, positives and negatives of each session, for any head that contrasts them.

    The positive of t is the next listened track, at p(t). What is pushed away is what was skipped or
    disliked: all of it (`session`), what stands before p(t) (`past`: no look ahead), or what was passed
    over between the listened track before p(t) and p(t) itself (`passed`). A disliked track was never
    listened to, however long it played; a liked one is never pushed away, though it may have been skipped.
    A track that the session elsewhere listens to or likes is no negative, and neither is the positive itself.

    A negative weighs 1 or, by `strength`, how far its feedback is below the threshold, as a share of the
    way to -1; a disliked one that of its explicit feedback, times `dislike_weight`.

    Args:
        items: [B, L] int64 item indices; 0 is padding, on the right.
        feedback: [B, L] floating point, in [-1, 1].
        explicit_feedback: [B, L] floating point in [-1, 1]: below 0 disliked, above 0 liked, 0 unknown; None
            where nothing is known.
        anchors: `listened` positions, or `all` real ones.
        negatives: Which skipped and disliked tracks are negatives.
        skip_weights: `uniform`, or by `strength`.
        dislike_weight: What the weight of a disliked track is multiplied by, above 0.
        like_weight: How much an anchor counts whose positive is liked, above 0; all others count 1.
        skip_threshold: The feedback under which a track counts as skipped, in (-1, 1].
        positive_position: [B, L] int64, the position of the positive of each t, or -1 for none; by default
            that of the next listened track. `cloze_positives` gives those of a bidirectional backbone.

    Returns:
        The contrast. Whether an anchor has a negative is for the head to say, which may have others.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree or a setting is out of range or not among its choices.

    Examples:
        >>> items, feedback = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1.0, -1.0, 1.0, -1.0]])
        >>> contrast = session_contrast(items, feedback, negatives="passed")
        >>> contrast.anchor_mask, contrast.negative_mask[0, 0]
        (tensor([[ True, False, False, False]]), tensor([False,  True, False, False]))
    """
    sizes = check_shape("items", items, "B L", dtype=torch.int64)
    check_shape("feedback", feedback, "B L", sizes, floating=True)
    check_choice("anchors", anchors, get_args(Anchors))
    check_choice("negatives", negatives, get_args(SessionNegatives))
    check_choice("skip_weights", skip_weights, get_args(SkipWeights))
    check_number("dislike_weight", dislike_weight, minimum=0, open_minimum=True)
    check_number("like_weight", like_weight, minimum=0, open_minimum=True)
    check_number("skip_threshold", skip_threshold, minimum=-1, maximum=1, open_minimum=True)
    if explicit_feedback is None:
        explicit_feedback = torch.zeros_like(feedback)
    check_shape("explicit_feedback", explicit_feedback, "B L", sizes, floating=True)

    valid_mask = items != PADDING_INDEX
    disliked = explicit_feedback < 0
    listened = valid_mask & (feedback >= skip_threshold) & ~disliked
    rejected = valid_mask & is_rejected(feedback, explicit_feedback, skip_threshold)
    kept = valid_mask & ~rejected
    is_given = positive_position is not None
    if positive_position is None:
        positive_position = next_listened(
            feedback.masked_fill(disliked, -1.0), valid_mask, skip_threshold=skip_threshold
        )
    check_shape("positive_position", positive_position, "B L", sizes, dtype=torch.int64)
    positive = positive_position.clamp(min=0)
    positive_items = items.gather(1, positive)
    anchor_mask = (listened if anchors == "listened" else valid_mask) & (positive_position >= 0)

    same_item = items[:, :, None] == items[:, None, :]
    also_kept = (same_item & kept[:, :, None]).any(dim=1)
    negative_mask = (rejected & ~also_kept)[:, None, :] & _within_reach(listened, positive, negatives)
    if is_given:
        # The session need not have listened to such a positive.
        negative_mask = negative_mask & (items[:, None, :] != positive_items[:, :, None])
    liked_positive = (explicit_feedback > 0).gather(1, positive)
    return Contrast(
        positive_position=positive,
        anchor_mask=anchor_mask,
        anchor_weight=torch.where(liked_positive, like_weight, 1.0) * anchor_mask,
        negative_mask=negative_mask,
        log_weight=_log_weights(
            feedback, explicit_feedback, disliked, skip_threshold, skip_weights, dislike_weight
        ),
        rejected_mask=rejected,
        kept_items=torch.where(kept, items, PADDING_INDEX),
        given_positives=positive_items if is_given else None,
    )


def reduce_anchors(losses: Tensor, weights: Tensor, reduction: Reduction) -> Tensor:
    """The losses of anchors as they are, their weighted mean, or their weighted sum.

    Args:
        losses: [B, L] floating point, 0 where there is no anchor.
        weights: [B, L] floating point, 0 where there is none.
        reduction: `none`, `mean` or `sum`.

    Returns:
        [B, L] for `none`, else a scalar; a mean over no anchor is exactly 0.

    Raises:
        ValueError: The reduction is unknown.

    Examples:
        >>> reduce_anchors(torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 3.0]]), "mean")
        tensor(3.5000)
    """
    check_choice("reduction", reduction, get_args(Reduction))
    if reduction == "none":
        return losses
    return (losses * weights).sum() if reduction == "sum" else weighted_mean(losses, weights)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """A mean that is exactly 0, with a zero gradient, of nothing.

    Args:
        losses: Floating point, of any shape.
        weights: As many, 0 or above.

    Returns:
        A scalar.

    Examples:
        >>> weighted_mean(torch.ones(2), torch.zeros(2))
        tensor(0.)
    """
    total = weights.sum()
    return (losses * weights).sum() / torch.where(total > 0, total, 1)


def _within_reach(listened: Tensor, positive: Tensor, negatives: SessionNegatives) -> Tensor:
    """[B, L, L] or [1, L, 1] bool: position s may be a negative for anchor t."""
    length = listened.shape[1]
    if negatives == "session":
        return listened.new_ones(1, length, 1)
    positions = torch.arange(length, device=listened.device)
    before = positions < positive[:, :, None]
    if negatives == "past":
        return before
    latest = torch.where(listened, positions, -1).cummax(dim=1).values
    previous = torch.cat([torch.full_like(latest[:, :1], -1), latest], dim=1)[:, :length]
    return before & (positions > previous.gather(1, positive)[:, :, None])


def _log_weights(
    feedback: Tensor,
    explicit_feedback: Tensor,
    disliked: Tensor,
    skip_threshold: float,
    skip_weights: SkipWeights,
    dislike_weight: float,
) -> Tensor:
    """Log w_s at rejected positions: [B, L]; finite elsewhere too, where the mask decides."""
    if skip_weights == "uniform":
        weights = dislikes = torch.ones_like(at_least_float32(feedback))
    else:
        weights = (skip_threshold - at_least_float32(feedback)) / (skip_threshold + 1)
        dislikes = -explicit_feedback.to(weights.dtype)
    weights = torch.where(disliked, dislike_weight * dislikes, weights)
    return weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
