"""The skip-contrastive loss: towards the next listened track, away from the skipped ones."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_number, check_shape
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.positions import next_listened

__all__ = ["Anchors", "Negatives", "Reduction", "SkipWeights", "skip_info_nce"]

Anchors = Literal["listened", "all"]
Negatives = Literal["session", "past", "batch"]
SkipWeights = Literal["uniform", "strength"]
Reduction = Literal["none", "mean", "sum"]


def skip_info_nce(
    query: Tensor,
    keys: Tensor,
    items: Tensor,
    feedback: Tensor,
    *,
    anchors: Anchors = "listened",
    negatives: Negatives = "session",
    skip_weights: SkipWeights = "uniform",
    temperature: float | Tensor = 0.1,
    skip_threshold: float = 0.0,
    positive_position: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Contrast of the next listened track with the skipped tracks, at each position of a session.

    For an anchor position t with a next listened position p(t), and the skipped positions S:

    .. math::
        \ell_t = -\log \frac{\exp(\cos(q_t, e_{p(t)}) / \tau)}
        {\exp(\cos(q_t, e_{p(t)}) / \tau) + \sum_{s \in S} w_s \exp(\cos(q_t, e_s) / \tau)}

    Only what is really there enters: a skipped track that is the same item as the positive, or that the
    anchor's own session also listens to, is no negative; an anchor without a positive or without any
    negative is no anchor. A batch without anchors yields exactly 0, with a zero gradient. Padding,
    whatever stands in it, and the order of the sessions change nothing. Half-precision input is
    contrasted in float32.

    Memory is O(B·L²) for ``session`` and ``past``, O(B²·L²) for ``batch``.

    Args:
        query: [B, L, D] floating point, q_t: the session as known after t tracks (or the item at t).
        keys: [B, L, D] floating point, e_t: the embedding of the item at t.
        items: [B, L] int64 item indices; 0 is padding, on the right.
        feedback: [B, L] floating point, in [-1, 1].
        anchors: ``listened`` positions (default), or ``all`` real ones.
        negatives: Skips of the whole ``session`` (the paper), only those at positions before p(t)
            (``past``: no look ahead), or those of every session of the ``batch``.
        skip_weights: w_s = 1 (``uniform``), or how far below the threshold the feedback is, as a share
            of the way to -1 (``strength``; \|f_s\| at the default threshold).
        temperature: τ > 0; a float, or a tensor with one element when it is learned.
        skip_threshold: The feedback under which a track counts as skipped, in (-1, 1].
        positive_position: [B, L] int64, the position p(t) of the positive of each t, or -1 for none; by
            default that of the next listened track. ``cloze_positives`` gives those of a bidirectional
            backbone, which has seen what comes next.
        reduction: ``none`` yields one value a position, ``mean`` averages over the anchors.

    Returns:
        A scalar, or [B, L] with 0 at every position that is no anchor (``none``).

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree or a setting is not among its choices.

    Reference:
        Seshadri, Shashaani, Knees: Enhancing Sequential Music Recommendation with Negative
        Feedback-informed Contrastive Learning, RecSys 2024, arXiv 2409.07367. README, "Differences from
        the paper", lists what is done otherwise.

    Example:
        >>> query = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
        >>> keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
        >>> items, feedback = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
        >>> loss = skip_info_nce(query, keys, items, feedback, temperature=1.0, reduction="none")
        >>> loss.round(decimals=4)  # -log(e / (e + 1)) at the one anchor
        tensor([[0.3133, 0.0000, 0.0000]])
    """
    sizes = _check_arguments(query, keys, items, feedback)
    check_choice("anchors", anchors, get_args(Anchors))
    check_choice("negatives", negatives, get_args(Negatives))
    check_choice("skip_weights", skip_weights, get_args(SkipWeights))
    check_choice("reduction", reduction, get_args(Reduction))
    check_number("skip_threshold", skip_threshold, minimum=-1, maximum=1, open_minimum=True)
    if not isinstance(temperature, Tensor):
        check_number("temperature", temperature, minimum=0, open_minimum=True)

    valid_mask = items != PADDING_INDEX
    skip_mask = valid_mask & (feedback < skip_threshold)
    listened_mask = valid_mask & ~skip_mask
    if positive_position is None:
        positive_position = next_listened(feedback, valid_mask, skip_threshold=skip_threshold)
    check_shape("positive_position", positive_position, "B L", sizes, dtype=torch.int64)
    positive = positive_position.clamp(min=0)
    anchor_mask = (listened_mask if anchors == "listened" else valid_mask) & (positive_position >= 0)

    similarity = _scaled_cosine(query, keys, valid_mask, temperature, across_sessions=negatives == "batch")
    key_offset = torch.arange(len(items), device=items.device)[:, None] * items.shape[1]
    positive_column = positive + key_offset if negatives == "batch" else positive
    positive_logit = similarity.gather(2, positive_column[:, :, None]).squeeze(2)

    if negatives == "batch":
        negative_mask = _batch_negative_mask(items, skip_mask, listened_mask, positive)
        weights = _log_weights(feedback, skip_threshold, skip_weights).reshape(1, 1, -1)
    else:
        negative_mask = _session_negative_mask(items, skip_mask, listened_mask, positive)
        weights = _log_weights(feedback, skip_threshold, skip_weights)[:, None, :]
        if negatives == "past":
            positions = torch.arange(items.shape[1], device=items.device)
            negative_mask = negative_mask & (positions < positive_position[:, :, None])
    anchor_mask = anchor_mask & negative_mask.any(dim=2)

    # A finite floor, since a row of -inf has a NaN gradient.
    floor = torch.finfo(similarity.dtype).min
    negative_logit = torch.where(negative_mask, similarity + weights, floor).logsumexp(dim=2)
    loss = torch.where(anchor_mask, -F.logsigmoid(positive_logit - negative_logit), 0)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / anchor_mask.sum().clamp(min=1)


def _check_arguments(query: Tensor, keys: Tensor, items: Tensor, feedback: Tensor) -> dict[str, int]:
    sizes = check_shape("query", query, "B L D", floating=True)
    check_shape("keys", keys, "B L D", sizes, floating=True)
    check_shape("items", items, "B L", sizes, dtype=torch.int64)
    return check_shape("feedback", feedback, "B L", sizes, floating=True)


def _scaled_cosine(
    query: Tensor, keys: Tensor, valid_mask: Tensor, temperature: float | Tensor, *, across_sessions: bool
) -> Tensor:
    """cos(q_t, e_s) / τ: [B, L, L] within sessions, [B, L, B·L] across them."""
    # Whatever stands at padding, NaN included, must not reach the sum through a zero factor.
    query, keys = (torch.where(valid_mask[..., None], tensor, 0) for tensor in (query, keys))
    with torch.autocast(query.device.type, enabled=False):
        query, keys = (F.normalize(_at_least_float32(tensor), dim=-1) for tensor in (query, keys))
        if across_sessions:
            return query @ keys.flatten(0, 1).T / temperature  # [B, L, B·L]
        return query @ keys.transpose(1, 2) / temperature  # [B, L, L]


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _log_weights(feedback: Tensor, skip_threshold: float, skip_weights: SkipWeights) -> Tensor:
    """Log w_s at skipped positions: [B, L]; finite elsewhere too, where the mask decides."""
    if skip_weights == "uniform":
        return torch.zeros_like(feedback)
    strength = (skip_threshold - feedback) / (skip_threshold + 1)
    return strength.clamp(min=torch.finfo(feedback.dtype).tiny).log()


def _session_negative_mask(
    items: Tensor, skip_mask: Tensor, listened_mask: Tensor, positive: Tensor
) -> Tensor:
    """[B, L, L]: position s of the same session is a negative for anchor t."""
    same_item = items[:, :, None] == items[:, None, :]
    also_listened = (same_item & listened_mask[:, :, None]).any(dim=1)
    # The positive is itself listened to, so this leaves out its own item as well.
    mask = (skip_mask & ~also_listened)[:, None, :]
    return mask.expand(-1, positive.shape[1], -1)


def _batch_negative_mask(items: Tensor, skip_mask: Tensor, listened_mask: Tensor, positive: Tensor) -> Tensor:
    """[B, L, B·L]: position s of any session is a negative for anchor t."""
    listened_items = torch.where(listened_mask, items, PADDING_INDEX).sort(dim=1).values
    candidates = items.flatten().expand(len(items), -1).contiguous()  # [B, B·L]
    slot = torch.searchsorted(listened_items, candidates).clamp(max=items.shape[1] - 1)
    also_listened = listened_items.gather(1, slot) == candidates
    mask = (skip_mask.flatten() & ~also_listened)[:, None, :]
    return mask.expand(-1, positive.shape[1], -1)
