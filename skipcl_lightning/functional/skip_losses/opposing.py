"""Contrast of the listened and the skipped sequence of a session."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_shape
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.products import cosine
from skipcl_lightning.functional.skip_losses.contrast import Contrast

__all__ = ["RejectedSequence", "opposing_contrast", "rejected_sequence"]


class RejectedSequence(NamedTuple):
    """The rejected items of each session as a sequence.

    Attributes:
        items: [B, L] int64, the rejected items in order, padded on the right with 0.
        position: [B, L] int64, the position of each in its session; L at padding.
    """

    items: Tensor
    position: Tensor


def rejected_sequence(items: Tensor, contrast: Contrast) -> RejectedSequence:
    """Return the rejected items of each session as a sequence.

    Args:
        items: [B, L] int64; 0 is padding.
        contrast: The contrast of these sessions.

    Returns:
        The sequences.

    Raises:
        TypeError: `items` is not int64.
        ValueError: Shapes disagree.

    Examples:
        >>> from skipcl_lightning.functional import session_contrast
        >>> items, feedback = torch.tensor([[5, 6, 7]]), torch.tensor([[-1.0, 1.0, -0.5]])
        >>> rejected_sequence(items, session_contrast((items, feedback))).items
        tensor([[5, 7, 0]])
    """
    sizes = check_shape("items", items, "B L", dtype=torch.int64)
    length = sizes["L"]
    positions = torch.arange(length, device=items.device).expand_as(items)
    position = torch.where(contrast.rejected_mask, positions, length).sort(dim=1).values
    moved = items.gather(1, position.clamp(max=max(length - 1, 0)))
    return RejectedSequence(torch.where(position < length, moved, PADDING_INDEX), position)


def opposing_contrast(
    query: Tensor,
    keys: Tensor,
    opposing: Tensor,
    items: Tensor,
    contrast: Contrast,
    *,
    temperature: float | Tensor = 0.1,
) -> tuple[Tensor, Tensor]:
    r"""Return the contrast of the next listened item with the encoded sequence of skipped items.

    With n_s the output of an encoder of the skipped items after the skip s, and S the skips before p(t):

    $$
    \ell_t = -\log \frac{\exp(\cos(q_t, e_{p(t)}) / \tau)}
    {\exp(\cos(q_t, e_{p(t)}) / \tau) + \sum_{s \in S} \exp(\cos(q_t, n_s) / \tau)}
    $$

    Args:
        query: [B, L, D] floating point, q_t.
        keys: [B, L, D] floating point, e_t.
        opposing: [B, L, D] floating point, n_s for each place of the rejected sequence.
        items: [B, L] int64; 0 is padding.
        contrast: The contrast of the same batch.
        temperature: τ > 0.

    Returns:
        [B, L] losses and [B, L] weights of the anchors, both 0 where there is no anchor. An anchor
        has a skip before its positive.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Reference:
        After Ivanova, Frolov, Vasilev: Benefiting from Negative yet Informative Feedback by
        Contrasting Opposing Sequential Patterns, RecSys 2025, arXiv 2508.14786, which contrasts two encoders;
        here the backbone is the listened one.

    Examples:
        >>> from skipcl_lightning.functional import session_contrast
        >>> items, feedback = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
        >>> ones = torch.ones(1, 3, 2)
        >>> losses, _ = opposing_contrast(ones, ones, ones, items, session_contrast((items, feedback)))
        >>> losses.round(decimals=4)
        tensor([[0.6931, 0.0000, 0.0000]])
    """
    sizes = check_shape("query", query, "B L D", floating=True)
    check_shape("keys", keys, "B L D", sizes, floating=True)
    check_shape("opposing", opposing, "B L D", sizes, floating=True)
    check_shape("items", items, "B L", sizes, dtype=torch.int64)
    sequence = rejected_sequence(items, contrast)
    valid_mask, opposing_mask = items != PADDING_INDEX, sequence.items != PADDING_INDEX
    positive = contrast.positive_position
    mask = sequence.position[:, None, :] < positive[..., None]  # [B, L, L]
    similarity = cosine(query, keys, temperature, query_mask=valid_mask, keys_mask=valid_mask)
    own = similarity.gather(2, positive[..., None]).squeeze(2)
    logits = cosine(query, opposing, temperature, query_mask=valid_mask, keys_mask=opposing_mask)
    # A finite floor, since a row of -inf has a NaN gradient.
    negative = torch.where(mask, logits, torch.finfo(logits.dtype).min).logsumexp(dim=2)
    anchor_mask = contrast.anchor_mask & mask.any(dim=2)
    losses = torch.where(anchor_mask, -F.logsigmoid(own - negative), 0)
    return losses, contrast.anchor_weight * anchor_mask
