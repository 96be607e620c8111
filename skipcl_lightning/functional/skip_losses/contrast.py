"""Anchors, positives and negatives of sessions, for every loss that contrasts them."""

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, TypedDict, Unpack, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_number
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch, Sessions, as_batch
from skipcl_lightning.functional.next_item.cloze import cloze_positives
from skipcl_lightning.functional.positions import next_listened
from skipcl_lightning.functional.precision import at_least_float32

__all__ = [
    "PASSED",
    "Anchors",
    "Contrast",
    "ContrastOptions",
    "ContrastSettings",
    "Negatives",
    "Reduction",
    "SkipWeights",
    "is_distributed",
    "reduce_anchors",
    "session_contrast",
    "settings_within_session",
    "weighted_mean",
]

Anchors = Literal["listened", "all"]
Negatives = Literal["session", "past", "passed", "batch"]
SkipWeights = Literal["uniform", "strength"]
Reduction = Literal["none", "mean", "sum"]


class ContrastOptions(TypedDict, total=False):
    """The keyword arguments of every skip loss and head, for type checkers: see `ContrastSettings`."""

    anchors: Anchors
    negatives: Negatives
    skip_weights: SkipWeights
    dislike_weight: float
    like_weight: float


# The default negatives of the losses that compare the scores of the ranking.
PASSED: ContrastOptions = {"negatives": "passed"}


@dataclass(frozen=True, kw_only=True)
class ContrastSettings:
    """The settings that all skip losses share: which positions are compared with which items.

    Every skip loss and head takes them as keyword arguments. The positive of position t is the next listened
    item, at p(t).

    Args:
        anchors: `listened`: only listened positions are anchors. `all`: skipped positions too.
        negatives: Which rejected items are negatives: all of the `session`; those at positions before p(t)
            (`past`, no look ahead); those between the previous listened item and p(t) (`passed`); those of
            all sessions of the `batch` (`SkipInfoNCE` only).
        skip_weights: `uniform`: each negative has the weight 1. `strength`: the distance of its feedback
            below the threshold, divided by the distance of the threshold from -1.
        dislike_weight: Factor of the weight of a disliked negative, above 0.
        like_weight: Weight in the mean of an anchor whose positive is liked, above 0; other anchors have 1.

    Raises:
        TypeError: A weight is no number.
        ValueError: A setting is out of range or not among its choices.

    Examples:
        >>> ContrastSettings(negatives="past").anchors
        'listened'
    """

    anchors: Anchors = "listened"
    negatives: Negatives = "session"
    skip_weights: SkipWeights = "uniform"
    dislike_weight: float = 1.0
    like_weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("anchors", self.anchors, get_args(Anchors))
        check_choice("negatives", self.negatives, get_args(Negatives))
        check_choice("skip_weights", self.skip_weights, get_args(SkipWeights))
        check_number("dislike_weight", self.dislike_weight, minimum=0, open_minimum=True)
        check_number("like_weight", self.like_weight, minimum=0, open_minimum=True)

    @property
    def options(self) -> ContrastOptions:
        """The settings as keyword arguments."""
        values: ContrastOptions = {}
        for field in fields(self):
            values[field.name] = getattr(self, field.name)  # type: ignore[literal-required]
        return values

    def check_cloze(self) -> None:
        """Check that the settings are defined for a bidirectional backbone.

        Raises:
            ValueError: `anchors` is 'all'.
        """
        if self.anchors == "all":
            raise ValueError(
                "`anchors` must be 'listened' for a bidirectional backbone, got 'all'. Only hidden tracks "
                "that were listened to can be anchors."
            )


def settings_within_session(options: ContrastOptions) -> ContrastSettings:
    """Return the settings of a loss that knows only the negatives of an anchor's own session.

    The default of `negatives` is `passed` here, and 'batch' is a `ValueError`.
    """
    settings = ContrastSettings(**(PASSED | options))
    check_choice("negatives", settings.negatives, get_args(Negatives)[:-1])
    return settings


class Contrast(NamedTuple):
    """What a skip loss compares at each position.

    Attributes:
        positive_position: [B, L] int64, the position of each anchor's positive; 0 elsewhere.
        anchor_mask: [B, L] bool, True at positions with a positive. A loss also needs a negative there.
        anchor_weight: [B, L] float32, the weight of each anchor in the mean; 0 elsewhere.
        negative_mask: [B, L, L] bool, which positions of the session hold a negative of which anchor.
        log_weight: [B, L] float32, the logarithm of the weight of each position as a negative; finite.
        rejected_mask: [B, L] bool, `SessionBatch.rejected_mask`.
        kept_items: [B, L] int64, the items that are not rejected; 0 elsewhere.
    """

    positive_position: Tensor
    anchor_mask: Tensor
    anchor_weight: Tensor
    negative_mask: Tensor
    log_weight: Tensor
    rejected_mask: Tensor
    kept_items: Tensor


def session_contrast(sessions: Sessions, **contrast: Unpack[ContrastOptions]) -> Contrast:
    """Return the anchors, positives and negatives of each session.

    Rejected items (`is_rejected`: skipped or disliked, and not liked) are negatives. An item that the same
    session also keeps at another position is not, and neither is the positive itself. A disliked item is
    never a positive; a liked skip is neither a positive nor a negative.

    If the batch hides items from a bidirectional backbone (`cloze_mask`), the anchors are hidden listened
    positions, and each is its own positive (`cloze_positives`).

    Args:
        sessions: A `SessionBatch`, or the pair `(items, feedback)` of [B, L] int64 and [B, L] floating point
            in [-1, 1].
        contrast: Keyword arguments of `ContrastSettings`. The negatives of `batch` within a session are
            those of `session`.

    Returns:
        The contrast.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree, or a setting is out of range or not among its choices.

    Examples:
        >>> items, feedback = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1.0, -1.0, 1.0, -1.0]])
        >>> contrast = session_contrast((items, feedback), negatives="passed")
        >>> contrast.anchor_mask, contrast.negative_mask[0, 0]
        (tensor([[ True, False, False, False]]), tensor([False,  True, False, False]))
    """
    batch, settings = as_batch(sessions), ContrastSettings(**contrast)
    items, valid_mask, listened, rejected = (
        batch.items,
        batch.valid_mask,
        batch.listened_mask,
        batch.rejected_mask,
    )
    kept = valid_mask & ~rejected
    positive_position = _positive_position(batch, settings)
    positive = positive_position.clamp(min=0)
    anchor_mask = (listened if settings.anchors == "listened" else valid_mask) & (positive_position >= 0)
    same_item = items[:, :, None] == items[:, None, :]  # [B, L, L]
    also_kept = (same_item & kept[:, :, None]).any(dim=1)
    within_reach = _within_reach(listened, positive, settings.negatives)
    anchor_weight = torch.ones_like(batch.feedback)
    if batch.explicit_feedback is not None:
        liked = (batch.explicit_feedback > 0).gather(1, positive)
        anchor_weight = torch.where(liked, settings.like_weight, anchor_weight)
    return Contrast(
        positive_position=positive,
        anchor_mask=anchor_mask,
        anchor_weight=anchor_weight * anchor_mask,
        negative_mask=(rejected & ~also_kept)[:, None, :] & within_reach,
        log_weight=_log_weights(batch, settings),
        rejected_mask=rejected,
        kept_items=torch.where(kept, items, PADDING_INDEX),
    )


def reduce_anchors(
    losses: Tensor, weights: Tensor, reduction: Reduction, *, gather_ranks: bool = False
) -> Tensor:
    """Return the [B, L] losses of the anchors, their weighted mean or their weighted sum.

    Losses and weights are 0 where there is no anchor. A mean over no anchor is exactly 0. With
    `gather_ranks`, the mean is over the anchors of all W processes: each process returns W times its own
    weighted sum divided by the weights of all processes, so the average that DDP takes of the gradients is
    that of the global mean.
    """
    check_choice("reduction", reduction, get_args(Reduction))
    if reduction == "none":
        return losses
    if reduction == "sum":
        return (losses * weights).sum()
    if not (gather_ranks and is_distributed()):
        return weighted_mean(losses, weights)
    total = weights.detach().sum()
    dist.all_reduce(total)
    return dist.get_world_size() * (losses * weights).sum() / torch.where(total > 0, total, 1)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean; exactly 0, with a zero gradient, if all weights are 0."""
    total = weights.sum()
    return (losses * weights).sum() / torch.where(total > 0, total, 1)


def is_distributed() -> bool:
    """Return whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _positive_position(batch: SessionBatch, settings: ContrastSettings) -> Tensor:
    """[B, L] int64: the position of the positive of each position, or -1."""
    if batch.cloze_mask is not None:
        settings.check_cloze()
        return cloze_positives(batch.items, batch.listened_mask, batch.cloze_mask)
    feedback = batch.feedback
    if batch.explicit_feedback is not None:
        feedback = feedback.masked_fill(batch.explicit_feedback < 0, -1.0)
    return next_listened(feedback, batch.valid_mask, skip_threshold=batch.skip_threshold)


def _within_reach(listened: Tensor, positive: Tensor, negatives: Negatives) -> Tensor:
    """[B, L, L] or [1, L, 1] bool: position s may hold a negative of anchor t."""
    length = listened.shape[1]
    if negatives in ("session", "batch"):
        return listened.new_ones(1, length, 1)
    positions = torch.arange(length, device=listened.device)
    before = positions < positive[:, :, None]
    if negatives == "past":
        return before
    latest = torch.where(listened, positions, -1).cummax(dim=1).values
    previous = torch.cat([torch.full_like(latest[:, :1], -1), latest], dim=1)[:, :length]
    return before & (positions > previous.gather(1, positive)[:, :, None])


def _log_weights(batch: SessionBatch, settings: ContrastSettings) -> Tensor:
    """[B, L] log w_s; its values at positions that are not rejected are finite and unused."""
    feedback, explicit = at_least_float32(batch.feedback), batch.explicit_feedback
    by_strength = settings.skip_weights == "strength"
    weights = (
        (batch.skip_threshold - feedback) / (batch.skip_threshold + 1)
        if by_strength
        else torch.ones_like(feedback)
    )
    if explicit is not None:
        dislikes = -explicit if by_strength else torch.ones_like(feedback)
        weights = torch.where(explicit < 0, settings.dislike_weight * dislikes, weights)
    return weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
