"""What a backbone sees of a batch: hidden items, mask tokens and a history in front of the session."""

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_number, check_shape
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch

__all__ = ["append_mask_token", "cloze_positives", "draw_cloze_mask", "hide_masked", "history_places"]


def draw_cloze_mask(
    candidates: Tensor,
    *,
    probability: float,
    last_probability: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the items of each session that are hidden in a step.

    With `last_probability` a session hides only its last candidate, as at evaluation. Otherwise each
    candidate is hidden with `probability`, and the last one if no other is, so every session with a candidate
    is used.

    Args:
        candidates: [B, L] bool, the items that may be hidden.
        probability: The probability of each, in (0, 1].
        last_probability: The probability that a session hides only its last candidate, in [0, 1].
        generator: The source of randomness; None for torch's global generator.

    Returns:
        [B, L] bool, True only at candidates.

    Raises:
        TypeError: `candidates` is not bool.
        ValueError: A setting is out of range.

    Reference:
        Sun et al.: BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from
        Transformer, CIKM 2019, arXiv 1904.06690, section 3.6. The authors' code for MovieLens-1M hides 0.2 of
        the items, and the last item alone in one of eleven sessions.

    Examples:
        >>> candidates = torch.tensor([[True, True, False], [False, False, False]])
        >>> draw_cloze_mask(candidates, probability=0.2, last_probability=1.0)
        tensor([[False,  True, False],
                [False, False, False]])
    """
    sizes = check_shape("candidates", candidates, "B L", dtype=torch.bool)
    check_number("probability", probability, minimum=0, maximum=1, open_minimum=True)
    check_number("last_probability", last_probability, minimum=0, maximum=1)
    device = candidates.device
    # Not `torch.rand`, which cannot be compiled for dynamic shapes with a generator.
    drawn = torch.empty(candidates.shape, device=device).uniform_(generator=generator) < probability
    only_last = torch.empty(sizes["B"], 1, device=device).uniform_(generator=generator) < last_probability
    drawn = candidates & drawn & ~only_last
    following = candidates.flip(1).cumsum(dim=1).flip(1)  # candidates from here on
    last = candidates & (following == 1)
    return drawn | (last & ~drawn.any(dim=1, keepdim=True))


def hide_masked(batch: SessionBatch, mask_index: int) -> SessionBatch:
    """Return the batch as the backbone may see it, without hidden items, their feedback and their context.

    The context of the play after a hidden one is hidden too: its gap, for one, tells how long the hidden item
    was played.

    Args:
        batch: B sessions.
        mask_index: The item index of the mask token, V + 1.

    Returns:
        The batch itself if nothing is hidden; otherwise one with the mask token and feedback 0 at hidden
        positions, and context 0 there and at the position after.

    Examples:
        >>> mask = torch.tensor([[False, True]])
        >>> batch = SessionBatch(torch.tensor([[1, 2]]), torch.ones(1, 2), cloze_mask=mask)
        >>> hide_masked(batch, 9).items
        tensor([[1, 9]])
    """
    hidden, explicit, context = batch.cloze_mask, batch.explicit_feedback, batch.context
    if hidden is None:
        return batch
    in_context = hidden | F.pad(hidden, (1, -1))  # and the positions after hidden ones
    return batch.replace(
        items=batch.items.masked_fill(hidden, mask_index),
        feedback=batch.feedback.masked_fill(hidden, 0),
        explicit_feedback=None if explicit is None else explicit.masked_fill(hidden, 0),
        context=None if context is None else context.masked_fill(in_context[..., None], 0),
    )


def append_mask_token(batch: SessionBatch, mask_index: int) -> SessionBatch:
    """Return the sessions with a mask token after their last item, at which the next item is predicted.

    Args:
        batch: B sessions; an empty session gets the token at its first position.
        mask_index: The item index of the mask token, V + 1.

    Returns:
        A batch of L + 1 positions; the token's feedback and context are 0, unknown.

    Examples:
        >>> batch = SessionBatch(torch.tensor([[5, 3], [2, 0]]), torch.ones(2, 2))
        >>> append_mask_token(batch, 9).items
        tensor([[5, 3, 9],
                [2, 9, 0]])
    """
    explicit, context = batch.explicit_feedback, batch.context
    end = batch.lengths[:, None]
    return batch.replace(
        items=F.pad(batch.items, (0, 1), value=PADDING_INDEX).scatter(1, end, mask_index),  # [B, L + 1]
        feedback=F.pad(batch.feedback, (0, 1)),
        explicit_feedback=None if explicit is None else F.pad(explicit, (0, 1)),
        context=None if context is None else F.pad(context, (0, 0, 0, 1)),
        cloze_mask=None,
        mined_negatives=None,
        mined_positives=None,
    )


def cloze_positives(items: Tensor, listened_mask: Tensor, cloze_mask: Tensor) -> Tensor:
    """Return the position of each anchor's positive in the cloze task: its own, or -1 at other positions.

    A bidirectional backbone has seen all visible items. So only a hidden position may be an anchor, and only
    if its item is not visible at another position of the session.

    Args:
        items: [B, L] int64 item indices before hiding; 0 is padding.
        listened_mask: [B, L] bool, True at listened items.
        cloze_mask: [B, L] bool, True at hidden items.

    Returns:
        [B, L] int64 positions in 0..L-1, or -1.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Examples:
        >>> items = torch.tensor([[5, 3, 5, 4]])
        >>> hidden = torch.tensor([[False, True, True, False]])
        >>> cloze_positives(items, torch.ones(1, 4, dtype=torch.bool), hidden)
        tensor([[-1,  1, -1, -1]])
    """
    sizes = check_shape("items", items, "B L", dtype=torch.int64)
    check_shape("listened_mask", listened_mask, "B L", sizes, dtype=torch.bool)
    check_shape("cloze_mask", cloze_mask, "B L", sizes, dtype=torch.bool)
    same_item = items[:, :, None] == items[:, None, :]  # [B, L, L]
    visible_elsewhere = (same_item & ~cloze_mask[:, None, :]).any(dim=2)
    anchors = cloze_mask & listened_mask & ~visible_elsewhere
    positions = torch.arange(sizes["L"], device=items.device)
    return torch.where(anchors, positions, -1)


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
