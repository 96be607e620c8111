"""The skip-contrastive loss: towards the next listened track, away from the skipped ones."""

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer, check_number, check_shape
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.contrast import (
    Anchors,
    Contrast,
    Reduction,
    SkipWeights,
    at_least_float32,
    reduce_anchors,
    session_contrast,
)

__all__ = [
    "Candidates",
    "Negatives",
    "cosine",
    "rejected_candidates",
    "skip_info_nce",
    "skip_info_nce_terms",
]

Negatives = Literal["session", "past", "passed", "batch"]


class Candidates(NamedTuple):
    """Tracks that any session may be pushed from, or pulled to.

    Args:
        items: [..., C] int64 in 0..V; 0 is none.
        keys: [..., C, D] floating point, their embeddings.
        log_weight: [..., C] floating point, the logarithm of their weights; None for weights of 1.
    """

    items: Tensor
    keys: Tensor
    log_weight: Tensor | None = None


def skip_info_nce(
    query: Tensor,
    keys: Tensor,
    items: Tensor,
    feedback: Tensor,
    *,
    explicit_feedback: Tensor | None = None,
    anchors: Anchors = "listened",
    negatives: Negatives = "session",
    skip_weights: SkipWeights = "uniform",
    dislike_weight: float = 1.0,
    like_weight: float = 1.0,
    temperature: float | Tensor = 0.1,
    skip_threshold: float = 0.0,
    positive_position: Tensor | None = None,
    candidates: Candidates | None = None,
    mined_negatives: Candidates | None = None,
    mined_positives: Candidates | None = None,
    mined_positive_weight: float = 0.5,
    num_hardest: int | None = None,
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

    Beyond the paper, negatives may be mined or shared by all sessions, and mined positives may join p(t):
    with weight β each, and the same sum of negatives, the loss of an anchor is then

    .. math::
        \ell_t = \frac{\ell_{t, p(t)} + \beta \sum_j \ell_{t, j}}{1 + \beta \sum_j 1}

    Memory is O(B·L²) for negatives within sessions, O(B²·L²) for ``batch``.

    Args:
        query: [B, L, D] floating point, q_t: the session as known after t tracks (or the item at t).
        keys: [B, L, D] floating point, e_t: the embedding of the item at t.
        items: [B, L] int64 item indices; 0 is padding, on the right.
        feedback: [B, L] floating point, in [-1, 1].
        explicit_feedback: [B, L] floating point in [-1, 1]: below 0 disliked, above 0 liked, 0 unknown.
            What it does to anchors and negatives: ``session_contrast``.
        anchors: ``listened`` positions (default), or ``all`` real ones.
        negatives: Skips of the whole ``session`` (the paper), only those at positions before p(t)
            (``past``: no look ahead), those between p(t) and the listened track before it (``passed``), or
            those of every session of the ``batch``.
        skip_weights: w_s = 1 (``uniform``), or how far below the threshold the feedback is, as a share
            of the way to -1 (``strength``; \|f_s\| at the default threshold).
        dislike_weight: What w_s of a disliked track is multiplied by, above 0.
        like_weight: How much an anchor counts in the mean whose positive is liked, above 0.
        temperature: τ > 0; a float, or a tensor with one element when it is learned.
        skip_threshold: The feedback under which a track counts as skipped, in (-1, 1].
        positive_position: [B, L] int64, the position p(t) of the positive of each t, or -1 for none; by
            default that of the next listened track. ``cloze_positives`` gives those of a bidirectional
            backbone, which has seen what comes next.
        candidates: [C] negatives for all sessions, such as a memory bank: beside those of the session, and
            under ``batch`` in place of the batch's own (``rejected_candidates``).
        mined_negatives: [B, L, M] negatives of each position.
        mined_positives: [B, L, P] positives of each position, beside p(t); none that the session rejects.
        mined_positive_weight: β ≥ 0.
        num_hardest: Keep of each anchor's negatives only so many, those most similar to it; None for all.
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
    losses, weights = skip_info_nce_terms(
        query,
        keys,
        items,
        feedback,
        explicit_feedback=explicit_feedback,
        anchors=anchors,
        negatives=negatives,
        skip_weights=skip_weights,
        dislike_weight=dislike_weight,
        like_weight=like_weight,
        temperature=temperature,
        skip_threshold=skip_threshold,
        positive_position=positive_position,
        candidates=candidates,
        mined_negatives=mined_negatives,
        mined_positives=mined_positives,
        mined_positive_weight=mined_positive_weight,
        num_hardest=num_hardest,
    )
    return reduce_anchors(losses, weights, reduction)


def skip_info_nce_terms(
    query: Tensor,
    keys: Tensor,
    items: Tensor,
    feedback: Tensor,
    *,
    explicit_feedback: Tensor | None,
    anchors: Anchors,
    negatives: Negatives,
    skip_weights: SkipWeights,
    dislike_weight: float,
    like_weight: float,
    temperature: float | Tensor,
    skip_threshold: float,
    positive_position: Tensor | None,
    candidates: Candidates | None,
    mined_negatives: Candidates | None,
    mined_positives: Candidates | None,
    mined_positive_weight: float,
    num_hardest: int | None,
) -> tuple[Tensor, Tensor]:
    """The losses of ``skip_info_nce`` and what each counts; for a mean over several processes.

    Args:
        query: As for ``skip_info_nce``, like all others.
        keys: [B, L, D].
        items: [B, L].
        feedback: [B, L].
        explicit_feedback: [B, L] or None.
        anchors: Which positions.
        negatives: Which skips.
        skip_weights: Their weights.
        dislike_weight: That of dislikes.
        like_weight: That of liked positives.
        temperature: τ.
        skip_threshold: What counts as skipped.
        positive_position: [B, L] or None.
        candidates: [C] or None.
        mined_negatives: [B, L, M] or None.
        mined_positives: [B, L, P] or None.
        mined_positive_weight: β.
        num_hardest: How many negatives.

    Returns:
        [B, L] losses and [B, L] weights, both 0 where there is no anchor.
    """
    sizes = check_shape("query", query, "B L D", floating=True)
    check_shape("keys", keys, "B L D", sizes, floating=True)
    check_shape("items", items, "B L", sizes, dtype=torch.int64)
    check_choice("negatives", negatives, get_args(Negatives))
    _check_settings(temperature, mined_positive_weight, num_hardest)
    contrast = session_contrast(
        items,
        feedback,
        explicit_feedback=explicit_feedback,
        anchors=anchors,
        negatives="session" if negatives == "batch" else negatives,
        skip_weights=skip_weights,
        dislike_weight=dislike_weight,
        like_weight=like_weight,
        skip_threshold=skip_threshold,
        positive_position=positive_position,
    )
    # Whatever stands at padding, NaN included, must not reach the sum through a zero factor.
    valid_mask = (items != PADDING_INDEX)[..., None]
    query, keys = (torch.where(valid_mask, tensor, 0) for tensor in (query, keys))
    if negatives == "batch" and candidates is None:
        candidates = rejected_candidates(keys, items, contrast)
    own = keys.gather(1, contrast.positive_position[..., None].expand_as(keys))
    positives = Candidates(items.gather(1, contrast.positive_position)[..., None], own[:, :, None])
    parts = []
    if negatives != "batch":
        similarity = cosine(query, keys, temperature)
        parts.append((similarity, contrast.negative_mask, contrast.log_weight[:, None, :]))
    for name, part in (("candidates", candidates), ("mined_negatives", mined_negatives)):
        if part is not None:
            parts.append(_outside_negatives(name, query, part, contrast, temperature))
    negative_logit, has_negative = _sum_negatives(parts, num_hardest)
    anchor_mask = contrast.anchor_mask & has_negative
    own_logit = _similarity("positives", query, positives, temperature)[..., 0]
    losses = -F.logsigmoid(own_logit - negative_logit)
    if mined_positives is not None:
        losses = _with_mined_positives(
            losses,
            query,
            mined_positives,
            negative_logit,
            items,
            contrast,
            temperature,
            mined_positive_weight,
        )
    return torch.where(anchor_mask, losses, 0), contrast.anchor_weight * anchor_mask


def _sum_negatives(
    parts: list[tuple[Tensor, Tensor, Tensor]], num_hardest: int | None
) -> tuple[Tensor, Tensor]:
    """[B, L] the logarithm of the negatives' weighted sum, and [B, L] bool: there is one.

    Each part is the [B, L, C] similarities, and [B or 1, L or 1, C]: which of them count, and log weights.
    """
    logits = []
    for similarity, mask, log_weight in parts:
        # Half of the lowest, and finite, since a row of -inf has a NaN gradient. The mask of what all
        # positions share is small, and is added in one pass over what is large.
        bias = torch.where(mask, log_weight.to(similarity.dtype), torch.finfo(similarity.dtype).min / 2)
        logits.append(similarity + bias)
    has_negative = torch.stack(
        [mask.any(dim=2).expand(similarity.shape[:2]) for similarity, mask, _ in parts]
    ).any(dim=0)
    if num_hardest is None:
        return torch.stack([part.logsumexp(dim=2) for part in logits]).logsumexp(dim=0), has_negative
    together = torch.cat(logits, dim=2)
    hardest = together.topk(min(num_hardest, together.shape[2]), dim=2).values
    return hardest.logsumexp(dim=2), has_negative


def _check_settings(
    temperature: float | Tensor, mined_positive_weight: float, num_hardest: int | None
) -> None:
    check_number("mined_positive_weight", mined_positive_weight, minimum=0)
    if not isinstance(temperature, Tensor):
        check_number("temperature", temperature, minimum=0, open_minimum=True)
    if num_hardest is not None:
        check_integer("num_hardest", num_hardest)


def rejected_candidates(keys: Tensor, items: Tensor, contrast: Contrast) -> Candidates:
    """What the sessions of a batch reject, as negatives for all of them.

    On a CPU nothing else takes part; elsewhere all places of the batch do, since the host would have to wait
    for how many are rejected.

    Args:
        keys: [B, L, D] floating point.
        items: [B, L] int64.
        contrast: Of the same batch.

    Returns:
        [C] candidates, 0 at places where nothing is rejected.

    Example:
        >>> items = torch.tensor([[1, 2]])
        >>> contrast = session_contrast(items, torch.tensor([[1.0, -1.0]]))
        >>> rejected_candidates(torch.ones(1, 2, 3), items, contrast).items
        tensor([2])
    """
    if items.device.type == "cpu":
        mask = contrast.rejected_mask
        return Candidates(items[mask], keys[mask], contrast.log_weight[mask])
    rejected = torch.where(contrast.rejected_mask, items, PADDING_INDEX)
    return Candidates(rejected.flatten(), keys.flatten(0, 1), contrast.log_weight.flatten())


def cosine(query: Tensor, keys: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """cos(q, k) / τ of all queries with all keys of their session, or with keys shared by all.

    Args:
        query: [B, L, D] floating point; half precision is contrasted in float32.
        keys: [B, S, D] or [C, D].
        temperature: τ.

    Returns:
        [B, L, S] or [B, L, C].

    Example:
        >>> cosine(torch.ones(1, 1, 2), torch.tensor([[3.0, 3.0], [-1.0, -1.0]])).round()
        tensor([[[ 1., -1.]]])
    """
    with torch.autocast(query.device.type, enabled=False):
        query, keys = (F.normalize(at_least_float32(tensor), dim=-1) for tensor in (query, keys))
        # The smaller factor is what is divided.
        return (query / temperature) @ keys.transpose(-1, -2)


def _similarity(name: str, query: Tensor, part: Candidates, temperature: float | Tensor) -> Tensor:
    """[B, L, C] of candidates that are shared or each position's own."""
    sizes = check_shape("query", query, "B L D")
    if part.items.dim() == 1:
        sizes = check_shape(f"{name}.items", part.items, "C", sizes, dtype=torch.int64)
        check_shape(f"{name}.keys", part.keys, "C D", sizes, floating=True)
        return cosine(query, part.keys, temperature)
    sizes = check_shape(f"{name}.items", part.items, "B L C", sizes, dtype=torch.int64)
    check_shape(f"{name}.keys", part.keys, "B L C D", sizes, floating=True)
    with torch.autocast(query.device.type, enabled=False):
        one, other = (F.normalize(at_least_float32(tensor), dim=-1) for tensor in (query, part.keys))
        return (other @ one[..., None]).squeeze(-1) / temperature


def _outside_negatives(
    name: str, query: Tensor, part: Candidates, contrast: Contrast, temperature: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Negatives from elsewhere, as ``_sum_negatives`` takes them: none that the session itself listens to."""
    logits = _similarity(name, query, part, temperature)
    sessions = contrast.listened_items.shape[0]
    wanted = part.items.expand(sessions, -1) if part.items.dim() == 1 else part.items.flatten(1)
    listened = contrast.listened_items.sort(dim=1).values
    place = torch.searchsorted(listened, wanted.contiguous()).clamp(max=listened.shape[1] - 1)
    mask = (listened.gather(1, place) != wanted) & (wanted != PADDING_INDEX)
    mask = mask[:, None, :] if part.items.dim() == 1 else mask.view(part.items.shape)
    return logits, mask, logits.new_zeros(1) if part.log_weight is None else part.log_weight


def _with_mined_positives(
    losses: Tensor,
    query: Tensor,
    mined: Candidates,
    negative_logit: Tensor,
    items: Tensor,
    contrast: Contrast,
    temperature: float | Tensor,
    weight: float,
) -> Tensor:
    """[B, L] losses of p(t) and of the mined positives together."""
    logits = _similarity("mined_positives", query, mined, temperature)  # [B, L, P]
    rejected = torch.where(contrast.rejected_mask, items, PADDING_INDEX)
    is_rejected = (mined.items.flatten(1)[:, :, None] == rejected[:, None, :]).any(dim=2)
    mask = (mined.items != PADDING_INDEX) & ~is_rejected.view(mined.items.shape)
    extra = torch.where(mask, -F.logsigmoid(logits - negative_logit[..., None]), 0).sum(dim=2)
    return (losses + weight * extra) / (1 + weight * mask.sum(dim=2))
