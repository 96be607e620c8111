"""Positions of next listened items, and the target of each position."""

from typing import Literal, get_args

import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_shape
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch

__all__ = [
    "TargetRule",
    "history_places",
    "last_position",
    "next_item_targets",
    "next_listened",
    "possible_targets",
    "target_positions",
    "target_weights",
    "training_targets",
]

TargetRule = Literal["next_listened", "next"]


def next_listened(feedback: Tensor, valid_mask: Tensor, *, skip_threshold: float = 0.0) -> Tensor:
    """Return the position p(t) of the next listened item after each position t.

    p(t) = min {s > t : position s holds an item and f_s ≥ `skip_threshold`}, and -1 if there is no such s.

    Args:
        feedback: [B, L] floating point, in [-1, 1].
        valid_mask: [B, L] bool, True at items.
        skip_threshold: Feedback below it is a skip.

    Returns:
        [B, L] int64 positions in 0..L-1, or -1. Also defined at skipped and padded positions, because the
        rule depends only on later positions.

    Raises:
        TypeError: `valid_mask` is not bool.
        ValueError: The shapes disagree.

    Reference:
        Seshadri, Shashaani, Knees: Enhancing Sequential Music Recommendation with Negative Feedback-informed
        Contrastive Learning, RecSys 2024, doi 10.1145/3640457.3688188.

    Examples:
        >>> next_listened(torch.tensor([[1.0, -1.0, 0.0, -0.5]]), torch.ones(1, 4, dtype=torch.bool))
        tensor([[ 2,  2, -1, -1]])
    """
    sizes = check_shape("feedback", feedback, "B L", floating=True)
    check_shape("valid_mask", valid_mask, "B L", sizes, dtype=torch.bool)
    length = feedback.shape[1]
    positions = torch.arange(length, device=feedback.device)
    listened = valid_mask & (feedback >= skip_threshold)
    candidates = torch.where(listened, positions, length)
    at_or_after = candidates.flip(1).cummin(dim=1).values.flip(1)
    after = torch.cat([at_or_after[:, 1:], at_or_after.new_full((len(feedback), 1), length)], dim=1)[
        :, :length
    ]
    return torch.where(after < length, after, -1)


def target_positions(
    items: Tensor,
    feedback: Tensor,
    *,
    explicit_feedback: Tensor | None = None,
    rule: TargetRule = "next_listened",
    skip_threshold: float = 0.0,
) -> Tensor:
    """Return the position of each position's target.

    Args:
        items: [B, L] int64 item indices; 0 is padding.
        feedback: [B, L] floating point, in [-1, 1].
        explicit_feedback: [B, L] floating point in [-1, 1]; an item below 0 was disliked, and is never a
            target.
        rule: As for `next_item_targets`.
        skip_threshold: Feedback below it is a skip; unused by `next`.

    Returns:
        [B, L] int64 positions in 0..L-1, or -1 without a target.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: The rule is unknown or the shapes disagree.

    Examples:
        >>> items, feedback = torch.tensor([[5, 3, 4, 0]]), torch.tensor([[1.0, -1.0, 1.0, 0.0]])
        >>> target_positions(items, feedback)
        tensor([[ 2,  2, -1, -1]])
    """
    check_choice("rule", rule, get_args(TargetRule))
    sizes = check_shape("items", items, "B L", dtype=torch.int64)
    valid_mask = items != PADDING_INDEX
    disliked = torch.zeros_like(valid_mask)
    if explicit_feedback is not None:
        check_shape("explicit_feedback", explicit_feedback, "B L", sizes, floating=True)
        disliked = explicit_feedback < 0
    if rule == "next_listened":
        heard = feedback.masked_fill(disliked, -1.0)
        position = next_listened(heard, valid_mask, skip_threshold=skip_threshold)
        return torch.where(valid_mask, position, -1)
    wanted = valid_mask & ~disliked
    position = torch.arange(1, sizes["L"] + 1, device=items.device).expand_as(items)
    wanted = torch.cat([wanted[:, 1:], torch.zeros_like(wanted[:, :1])], dim=1)[:, : sizes["L"]]
    return torch.where(valid_mask & wanted, position, -1)


def next_item_targets(
    items: Tensor,
    feedback: Tensor,
    *,
    explicit_feedback: Tensor | None = None,
    rule: TargetRule = "next_listened",
    skip_threshold: float = 0.0,
) -> Tensor:
    """Return the target item of each position.

    `next_listened`: i_{p(t)}, so a skipped item is never a target (the paper's text). `next`: i_{t+1},
    whatever its feedback, as in most sequence recommenders. A disliked item is never a target: the first rule
    takes a later one, the second has no target there.

    Args:
        items: [B, L] int64 item indices; 0 is padding.
        feedback: [B, L] floating point, in [-1, 1].
        explicit_feedback: [B, L] floating point in [-1, 1], below 0 for a disliked item.
        rule: `next_listened` or `next`.
        skip_threshold: Feedback below it is a skip; unused by `next`.

    Returns:
        [B, L] int64 item indices; 0 without a target.

    Raises:
        ValueError: The rule is unknown or the shapes disagree.

    Examples:
        >>> items, feedback = torch.tensor([[5, 3, 4, 0]]), torch.tensor([[1.0, -1.0, 1.0, 0.0]])
        >>> next_item_targets(items, feedback)
        tensor([[4, 4, 0, 0]])
        >>> next_item_targets(items, feedback, rule="next")
        tensor([[3, 4, 0, 0]])
    """
    position = target_positions(
        items, feedback, explicit_feedback=explicit_feedback, rule=rule, skip_threshold=skip_threshold
    )
    return torch.where(position >= 0, items.gather(1, position.clamp(min=0)), PADDING_INDEX)


def possible_targets(batch: SessionBatch, rule: TargetRule) -> Tensor:
    """Return the items that may be targets of the cloze task.

    Args:
        batch: B sessions.
        rule: `next_listened`: listened items only; `next`: all. A disliked item is never a target.

    Returns:
        [B, L] bool.

    Examples:
        >>> batch = SessionBatch(torch.tensor([[5, 3, 0]]), torch.tensor([[1.0, -1.0, 0.0]]))
        >>> possible_targets(batch, "next_listened")
        tensor([[ True, False, False]])
    """
    wanted = batch.listened_mask if rule == "next_listened" else batch.valid_mask
    return wanted if batch.explicit_feedback is None else wanted & (batch.explicit_feedback >= 0)


def training_targets(batch: SessionBatch, rule: TargetRule) -> Tensor:
    """Return the position of each position's target in a training step.

    Args:
        batch: B sessions; with a `cloze_mask`, each hidden item that may be a target (`possible_targets`) is
            the target of its own position.
        rule: As for `next_item_targets`.

    Returns:
        [B, L] int64 positions in 0..L-1, or -1 without a target.

    Examples:
        >>> batch = SessionBatch(torch.tensor([[5, 3, 4]]), torch.tensor([[1.0, -1.0, 1.0]]))
        >>> training_targets(batch, "next_listened")
        tensor([[ 2,  2, -1]])
    """
    if batch.cloze_mask is not None:
        positions = torch.arange(batch.items.shape[1], device=batch.items.device)
        return torch.where(batch.cloze_mask & possible_targets(batch, rule), positions, -1)
    return target_positions(
        batch.items,
        batch.feedback,
        explicit_feedback=batch.explicit_feedback,
        rule=rule,
        skip_threshold=batch.skip_threshold,
    )


def target_weights(batch: SessionBatch, positions: Tensor, like_weight: float) -> Tensor:
    """Return the weight of each position's target in the next-item loss.

    Args:
        batch: B sessions.
        positions: [B, L] int64, as from `training_targets`.
        like_weight: Weight of a liked target; other targets have 1.

    Returns:
        [B, L] float32.

    Examples:
        >>> likes = torch.tensor([[0.0, 1.0]])
        >>> batch = SessionBatch(torch.tensor([[5, 3]]), torch.ones(1, 2), explicit_feedback=likes)
        >>> target_weights(batch, torch.tensor([[1, -1]]), 3.0)
        tensor([[3., 1.]])
    """
    if batch.explicit_feedback is None:
        return torch.ones_like(batch.feedback)
    liked = batch.explicit_feedback.gather(1, positions.clamp(min=0)) > 0
    return torch.where(liked, like_weight, 1.0)


def last_position(sequence: Tensor, valid_mask: Tensor) -> Tensor:
    """Return the entry at the last item of each session.

    A session without an item yields zeros, whatever a backbone computed from padding.

    Args:
        sequence: [B, L, D] of any dtype.
        valid_mask: [B, L] bool, True at items; padding is on the right.

    Returns:
        [B, D].

    Raises:
        ValueError: The shapes disagree.

    Examples:
        >>> last_position(torch.tensor([[[1.0], [2.0], [9.0]]]), torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    sizes = check_shape("sequence", sequence, "B L D")
    check_shape("valid_mask", valid_mask, "B L", sizes, dtype=torch.bool)
    lengths = valid_mask.sum(dim=1)
    rows = torch.arange(len(sequence), device=sequence.device)
    return torch.where((lengths > 0)[:, None], sequence[rows, (lengths - 1).clamp(min=0)], 0)


def history_places(
    history_mask: Tensor, valid_mask: Tensor, max_length: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the places of each listener's history and session in one sequence, padded on the right.

    The sequence is the history followed by the session. If it is longer than `max_length`, it loses its
    oldest items, so a long session leaves less of the history.

    Args:
        history_mask: [B, H] bool, True at items; padding is on the right.
        valid_mask: [B, L] bool, True at the session's items; padding is on the right.
        max_length: The largest number of items, at least each session's; None for no limit.

    Returns:
        [B, W] int64, the place of each item in the concatenation [B, H + L] of history and session;
        [B, W] bool, True at items; [B, L] int64, the place of each item of the session in the sequence.

    Raises:
        TypeError: A mask is not bool.
        ValueError: The shapes disagree.

    Examples:
        >>> history, session = torch.tensor([[True, False]]), torch.tensor([[True, True]])
        >>> history_places(history, session)[:2]
        (tensor([[0, 2, 3, 3]]), tensor([[ True,  True,  True, False]]))
    """
    sizes = check_shape("history_mask", history_mask, "B H", dtype=torch.bool)
    sizes = check_shape("valid_mask", valid_mask, "B L", sizes, dtype=torch.bool)
    history, session = history_mask.sum(dim=1, keepdim=True), valid_mask.sum(dim=1, keepdim=True)
    kept, width = history, sizes["H"] + sizes["L"]
    if max_length is not None:
        kept = torch.minimum(history, (max_length - session).clamp(min=0))  # [B, 1]
        width = min(width, max_length)
    here = torch.arange(width, device=valid_mask.device)
    places = torch.where(here < kept, history - kept + here, sizes["H"] - kept + here)  # [B, W]
    of_session = kept + torch.arange(sizes["L"], device=valid_mask.device)
    return (
        places.clamp(max=sizes["H"] + sizes["L"] - 1),
        here < kept + session,
        of_session.clamp(max=max(width - 1, 0)),
    )
