"""The places of a listener's history and of a session in one sequence."""

import torch
from torch import Tensor

from skipcl_lightning._checks import check_shape

__all__ = ["history_places"]


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
