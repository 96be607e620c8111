"""The skip-contrastive loss: towards the next listened track, away from the skipped ones."""

from typing import Literal, get_args

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
    reduce_anchors,
    session_contrast,
)
from skipcl_lightning.functional.contrast_candidates import (
    Candidates,
    candidate_similarity,
    rejected_candidates,
    unkept_mask,
)
from skipcl_lightning.functional.similarity import cosine

__all__ = ["Negatives", "skip_info_nce", "skip_info_nce_terms"]

Negatives = Literal["session", "past", "passed", "batch"]


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

    $$
    \ell_t = -\log \frac{\exp(\cos(q_t, e_{p(t)}) / \tau)}
    {\exp(\cos(q_t, e_{p(t)}) / \tau) + \sum_{s \in S} w_s \exp(\cos(q_t, e_s) / \tau)}
    $$

    Only what is really there enters: a skipped track that is the same item as the positive, or that the
    anchor's own session also listens to, is no negative; an anchor without a positive or without any
    negative is no anchor. A batch without anchors yields exactly 0, with a zero gradient. Padding,
    whatever stands in it, and the order of the sessions change nothing. Half-precision input is
    contrasted in float32.

    Beyond the paper, negatives may be mined or shared by all sessions, and mined positives may join p(t):
    with weight β each, and the same sum of negatives, the loss of an anchor is then

    $$
    \ell_t = \frac{\ell_{t, p(t)} + \beta \sum_j \ell_{t, j}}{1 + \beta \sum_j 1}
    $$

    Memory is O(B·L²) for negatives within sessions, O(B²·L²) for `batch`.

    Args:
        query: [B, L, D] floating point, q_t: the session as known after t tracks (or the item at t).
        keys: [B, L, D] floating point, e_t: the embedding of the item at t.
        items: [B, L] int64 item indices; 0 is padding, on the right.
        feedback: [B, L] floating point, in [-1, 1].
        explicit_feedback: [B, L] floating point in [-1, 1]: below 0 disliked, above 0 liked, 0 unknown.
            What it does to anchors and negatives: `session_contrast`.
        anchors: `listened` positions (default), or `all` real ones.
        negatives: Skips of the whole `session` (the paper), only those at positions before p(t)
            (`past`: no look ahead), those between p(t) and the listened track before it (`passed`), or
            those of every session of the `batch`.
        skip_weights: w_s = 1 (`uniform`), or how far below the threshold the feedback is, as a share
            of the way to -1 (`strength`; \|f_s\| at the default threshold).
        dislike_weight: What w_s of a disliked track is multiplied by, above 0.
        like_weight: How much an anchor counts in the mean whose positive is liked, above 0.
        temperature: τ > 0; a float, or a tensor with one element when it is learned.
        skip_threshold: The feedback under which a track counts as skipped, in (-1, 1].
        positive_position: [B, L] int64, the position p(t) of the positive of each t, or -1 for none; by
            default that of the next listened track. `cloze_positives` gives those of a bidirectional
            backbone, which has seen what comes next.
        candidates: [C] negatives for all sessions, such as a memory bank: beside those of the session, and
            under `batch` in place of the batch's own (`rejected_candidates`).
        mined_negatives: [B, L, M] negatives of each position.
        mined_positives: [B, L, P] positives of each position, beside p(t); none that the session rejects.
        mined_positive_weight: β ≥ 0.
        num_hardest: Keep only so many of each anchor's negatives, those with the largest term in the sum: the
            most similar ones where all weigh 1, else by similarity and weight; None for all.
        reduction: `none` yields one value a position, `mean` averages over the anchors.

    Returns:
        A scalar, or [B, L] with 0 at every position that is no anchor (`none`).

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree or a setting is not among its choices.

    Reference:
        Seshadri, Shashaani, Knees: Enhancing Sequential Music Recommendation with Negative
        Feedback-informed Contrastive Learning, RecSys 2024, arXiv 2409.07367. README, "Differences from
        the paper", lists what is done otherwise.

    Examples:
        >>> query = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
        >>> keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
        >>> items, feedback = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
        >>> loss = skip_info_nce(query, keys, items, feedback, temperature=1.0, reduction="none")
        >>> loss.round(decimals=4)  # -log(e / (e + 1)) at the one anchor
        tensor([[0.3133, 0.0000, 0.0000]])
    """
    sizes = check_shape("query", query, "B L D", floating=True)
    check_shape("keys", keys, "B L D", sizes, floating=True)
    check_shape("items", items, "B L", sizes, dtype=torch.int64)
    check_choice("negatives", negatives, get_args(Negatives))
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
    if negatives == "batch" and candidates is None:
        candidates = rejected_candidates(keys, items, contrast)
    losses, weights = skip_info_nce_terms(
        query,
        keys,
        items,
        contrast,
        within_session=negatives != "batch",
        temperature=temperature,
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
    contrast: Contrast,
    *,
    within_session: bool = True,
    temperature: float | Tensor,
    candidates: Candidates | None = None,
    mined_negatives: Candidates | None = None,
    mined_positives: Candidates | None = None,
    mined_positive_weight: float = 0.5,
    num_hardest: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The losses of `skip_info_nce` and what each counts; for a mean over several processes.

    Args:
        query: As for `skip_info_nce`, like all others.
        keys: [B, L, D].
        items: [B, L].
        contrast: Of the same sessions.
        within_session: Whether its negatives take part, or the candidates alone.
        temperature: τ.
        candidates: [C] or None.
        mined_negatives: [B, L, M] or None.
        mined_positives: [B, L, P] or None.
        mined_positive_weight: β.
        num_hardest: How many negatives.

    Returns:
        [B, L] losses and [B, L] weights, both 0 where there is no anchor.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree or a setting is out of range.
    """
    _check_settings(temperature, mined_positive_weight, num_hardest)
    # Whatever stands at padding, NaN included, must not reach the sum through a zero factor.
    valid_mask = items != PADDING_INDEX
    similarity = cosine(query, keys, temperature, query_mask=valid_mask, keys_mask=valid_mask)
    own_logit = similarity.gather(2, contrast.positive_position[..., None]).squeeze(2)
    parts = []
    if within_session:
        parts.append((similarity, contrast.negative_mask, contrast.log_weight[:, None, :]))
    for name, part in (("candidates", candidates), ("mined_negatives", mined_negatives)):
        if part is not None:
            logits = candidate_similarity(name, query, part, temperature, valid_mask)
            log_weight = logits.new_zeros(1) if part.log_weight is None else part.log_weight
            mask = unkept_mask(part, contrast.kept_items)
            if contrast.given_positives is not None:
                mask = mask & (part.items != contrast.given_positives[..., None])
            parts.append((logits, mask, log_weight))
    negative_logit, has_negative = _sum_negatives(parts, num_hardest)
    anchor_mask = contrast.anchor_mask & has_negative
    losses = -F.logsigmoid(own_logit - negative_logit)
    if mined_positives is not None:
        logits = candidate_similarity("mined_positives", query, mined_positives, temperature, valid_mask)
        rejected = torch.where(contrast.rejected_mask, items, PADDING_INDEX)
        is_rejected = (mined_positives.items.flatten(1)[:, :, None] == rejected[:, None, :]).any(dim=2)
        mask = (mined_positives.items != PADDING_INDEX) & ~is_rejected.view(logits.shape)
        extra = torch.where(mask, -F.logsigmoid(logits - negative_logit[..., None]), 0).sum(dim=2)
        losses = (losses + mined_positive_weight * extra) / (1 + mined_positive_weight * mask.sum(dim=2))
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
