"""The skip-contrastive loss: pull to the next listened item, push from the skipped items."""

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_integer, check_number, check_shape
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch, Sessions, as_batch
from skipcl_lightning.functional.next_item.look_up import look_up, require_table
from skipcl_lightning.functional.skip_losses.candidates import (
    Candidates,
    candidate_similarity,
    gather_candidates,
    rejected_candidates,
    unkept_mask,
)
from skipcl_lightning.functional.skip_losses.contrast import (
    ContrastOptions,
    ContrastSettings,
    Reduction,
    reduce_anchors,
    session_contrast,
)
from skipcl_lightning.functional.skip_losses.similarity import cosine

__all__ = ["check_info_nce_settings", "skip_info_nce"]


def skip_info_nce(
    query: Tensor,
    keys: Tensor,
    sessions: Sessions,
    item_embeddings: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    num_hardest: int | None = None,
    gather_ranks: bool = False,
    mined_positive_weight: float = 0.5,
    candidates: Candidates | None = None,
    sparse_gradients: bool = False,
    reduction: Reduction = "mean",
    **contrast: Unpack[ContrastOptions],
) -> Tensor:
    r"""Return the contrastive loss of the next listened item against the skipped items.

    For an anchor at position t with the next listened position p(t), and the positions S of its negatives:

    $$
    \ell_t = -\log \frac{\exp(\cos(q_t, e_{p(t)}) / \tau)}
    {\exp(\cos(q_t, e_{p(t)}) / \tau) + \sum_{s \in S} w_s \exp(\cos(q_t, e_s) / \tau)}
    $$

    A position without a positive, or without any negative, is no anchor. A batch without anchors has a loss
    of exactly 0 with a zero gradient. The contents of padding and the order of the sessions have no effect.
    Half-precision input is contrasted in float32.

    If the batch has mined items (`SessionDataModule(mined_negatives=…)`), they join the negatives and
    positives. With the mined positives j, each of weight β and with the same negatives, the loss is

    $$
    \ell_t = \frac{\ell_{t, p(t)} + \beta \sum_j \ell_{t, j}}{1 + \beta \sum_j 1}
    $$

    Memory is O(B·L²) for negatives within sessions, O(B²·L²) for `batch`.

    Args:
        query: [B, L, D] floating point, q_t: the backbone's output after t items (or the item at t).
        keys: [B, L, D] floating point, e_t: the embedding of the item at t.
        sessions: A `SessionBatch`, or the pair `(items, feedback)` of [B, L] int64 and [B, L] floating point
            in [-1, 1]; padding on the right.
        item_embeddings: [V + 1, D] floating point; row 0 is padding. Needed for mined items.
        temperature: τ > 0; a tensor with one element if it is learned.
        num_hardest: Keep only this many negatives of each anchor, those with the largest terms w_s exp(…) of
            the sum; None for all.
        gather_ranks: Share the `batch` negatives of all processes, and average over all their anchors.
        mined_positive_weight: β ≥ 0.
        candidates: [C] more negatives for all sessions, such as a memory bank.
        sparse_gradients: Whether lookups in `item_embeddings` leave sparse gradients.
        reduction: `none` returns one value for each position, `mean` averages over the anchors.
        contrast: Keyword arguments of `ContrastSettings`: `anchors`, `negatives`, `skip_weights`,
            `dislike_weight`, `like_weight`.

    Returns:
        A scalar, or [B, L] with 0 at positions that are no anchors (`none`).

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree, a setting is out of range, or `item_embeddings` is missing.

    Reference:
        Seshadri, Shashaani, Knees: Enhancing Sequential Music Recommendation with Negative
        Feedback-informed Contrastive Learning, RecSys 2024, arXiv 2409.07367. The documentation's
        page "Differences from the paper" lists the departures.

    Examples:
        >>> query = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
        >>> keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
        >>> items, feedback = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
        >>> loss = skip_info_nce(query, keys, (items, feedback), temperature=1.0, reduction="none")
        >>> loss.round(decimals=4)  # -log(e / (e + 1)) at the one anchor
        tensor([[0.3133, 0.0000, 0.0000]])
    """
    batch, settings = as_batch(sessions), ContrastSettings(**contrast)
    sizes = check_shape("query", query, "B L D", floating=True)
    check_shape("keys", keys, "B L D", sizes, floating=True)
    check_shape("items", batch.items, "B L", sizes)
    check_info_nce_settings(temperature, num_hardest, gather_ranks, mined_positive_weight, settings)
    found = session_contrast(batch, **settings.options)
    # NaN at padding must not reach the sum through a zero factor.
    valid_mask = batch.valid_mask
    similarity = cosine(query, keys, temperature, query_mask=valid_mask, keys_mask=valid_mask)
    own_logit = similarity.gather(2, found.positive_position[..., None]).squeeze(2)
    parts = []
    shared = {"candidates": candidates} if candidates is not None else {}
    if settings.negatives == "batch":
        own = rejected_candidates(keys, batch.items, found)
        shared["batch"] = gather_candidates(own) if gather_ranks else own
    else:
        parts.append((similarity, found.negative_mask, found.log_weight[:, None, :]))
    mined_negatives, mined_positives = (
        _mined(items, batch, item_embeddings, sparse_gradients)
        for items in (batch.mined_negatives, batch.mined_positives)
    )
    if mined_negatives is not None:
        shared["mined_negatives"] = mined_negatives
    for name, part in shared.items():
        logits = candidate_similarity(name, query, part, temperature, valid_mask)
        log_weight = logits.new_zeros(1) if part.log_weight is None else part.log_weight
        parts.append((logits, unkept_mask(part, found.kept_items), log_weight))
    negative_logit, has_negative = _sum_negatives(parts, num_hardest)
    losses = -F.logsigmoid(own_logit - negative_logit)
    if mined_positives is not None:
        logits = candidate_similarity("mined_positives", query, mined_positives, temperature, valid_mask)
        mask = _unrejected_mask(mined_positives, batch.items, found.rejected_mask)
        extra = torch.where(mask, -F.logsigmoid(logits - negative_logit[..., None]), 0).sum(dim=2)
        losses = (losses + mined_positive_weight * extra) / (1 + mined_positive_weight * mask.sum(dim=2))
    anchor_mask = found.anchor_mask & has_negative
    return reduce_anchors(
        torch.where(anchor_mask, losses, 0),
        found.anchor_weight * anchor_mask,
        reduction,
        gather_ranks=gather_ranks,
    )


def check_info_nce_settings(
    temperature: float | Tensor,
    num_hardest: int | None,
    gather_ranks: bool,
    mined_positive_weight: float,
    contrast: ContrastSettings,
) -> None:
    """Check the settings of `skip_info_nce`; a temperature that is a tensor is not checked."""
    check_number("mined_positive_weight", mined_positive_weight, minimum=0)
    if not isinstance(temperature, Tensor):
        check_number("temperature", temperature, minimum=0, open_minimum=True)
    if num_hardest is not None:
        check_integer("num_hardest", num_hardest)
    if gather_ranks and contrast.negatives != "batch":
        raise ValueError(
            f"`negatives` must be 'batch' with `gather_ranks`, got {contrast.negatives!r}. Negatives within "
            "a session are on its own process."
        )


def _mined(
    items: Tensor | None, batch: SessionBatch, item_embeddings: Tensor | None, sparse: bool
) -> Candidates | None:
    """Return the mined items of the position before each positive."""
    if items is None:
        return None
    if batch.cloze_mask is not None:
        # The positive of a hidden position is the item there, so the position before it counts.
        items = F.pad(items[:, :-1], (0, 0, 1, 0), value=PADDING_INDEX)
    return Candidates(items, look_up(items, require_table(item_embeddings, "mined tracks"), sparse=sparse))


def _unrejected_mask(part: Candidates, items: Tensor, rejected_mask: Tensor) -> Tensor:
    """[B, L, P] bool: real mined positives that the session does not reject."""
    rejected = torch.where(rejected_mask, items, PADDING_INDEX)
    is_rejected = (part.items.flatten(1)[:, :, None] == rejected[:, None, :]).any(dim=2)
    return (part.items != PADDING_INDEX) & ~is_rejected.view(part.items.shape)


def _sum_negatives(
    parts: list[tuple[Tensor, Tensor, Tensor]], num_hardest: int | None
) -> tuple[Tensor, Tensor]:
    """[B, L] logarithm of the weighted sum over the negatives, and [B, L] bool: there is a negative.

    Each part holds [B, L, C] similarities, and the mask and log weights of the candidates, which broadcast.
    """
    logits = []
    for similarity, mask, log_weight in parts:
        # Finite, because a row of -inf has a NaN gradient; half of the lowest, so that a sum stays finite.
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
