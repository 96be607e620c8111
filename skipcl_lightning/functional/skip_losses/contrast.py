"""The skip-contrastive loss, and what all skip losses share: anchors, positives and negatives."""

from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer, check_number, check_shape
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch, Sessions, as_batch, is_among, training_targets
from skipcl_lightning.functional.backbone_input import cloze_positives
from skipcl_lightning.functional.next_item.look_up import look_up, require_table
from skipcl_lightning.functional.products import cosine

__all__ = [
    "PASSED",
    "Anchors",
    "Candidates",
    "Contrast",
    "ContrastOptions",
    "ContrastSettings",
    "Negatives",
    "Reduction",
    "SkipWeights",
    "absent_mask",
    "candidate_similarity",
    "check_info_nce_settings",
    "gather_candidates",
    "gather_latest",
    "is_distributed",
    "move_padding_last",
    "reduce_anchors",
    "rejected_candidates",
    "session_contrast",
    "settings_within_session",
    "skip_info_nce",
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
    items, listened, rejected = batch.items, batch.listened_mask, batch.rejected_mask
    kept = batch.valid_mask & ~rejected
    positive_position = _positive_position(batch, settings)
    positive = positive_position.clamp(min=0)
    anchor_mask = positive_position >= 0
    if settings.anchors == "listened":
        anchor_mask = anchor_mask & listened
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
    """Return the [B, L] losses of the anchors, 0 elsewhere, or their weighted mean or sum.

    Weights are 0 where there is no anchor. A mean over no anchor is exactly 0. With `gather_ranks`, the mean
    is over the anchors of all W processes: each process returns W times its own weighted sum divided by the
    weights of all processes, so the average that DDP takes of the gradients is that of the global mean.
    """
    check_choice("reduction", reduction, get_args(Reduction))
    losses = torch.where(weights > 0, losses, 0)
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
    if batch.cloze_mask is None:
        return training_targets(batch, "next_listened")
    settings.check_cloze()
    return cloze_positives(batch.items, batch.listened_mask, batch.cloze_mask)


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
    previous = F.pad(latest, (1, 0), value=-1)[:, :length]
    return before & (positions > previous.gather(1, positive)[:, :, None])


def _log_weights(batch: SessionBatch, settings: ContrastSettings) -> Tensor:
    """[B, L] log w_s; its values at positions that are not rejected are finite and unused."""
    explicit, by_strength = batch.explicit_feedback, settings.skip_weights == "strength"
    weights = torch.ones_like(batch.feedback)
    if by_strength:
        weights = (batch.skip_threshold - batch.feedback) / (batch.skip_threshold + 1)
    if explicit is not None:
        dislikes = -explicit if by_strength else torch.ones_like(explicit)
        weights = torch.where(explicit < 0, settings.dislike_weight * dislikes, weights)
    return weights.clamp(min=torch.finfo(weights.dtype).tiny).log()


class Candidates(NamedTuple):
    """Items that the anchors of a batch may be compared with.

    Attributes:
        items: [C] int64 shared by all positions, or [B, L, C] for each position; in 0..V, 0 is no item.
        keys: [C, D] or [B, L, C, D] floating point, their embeddings.
        log_weight: [C] or [B, L, C] floating point, the logarithm of their weights; None for weights of 1.
    """

    items: Tensor
    keys: Tensor
    log_weight: Tensor | None = None


def rejected_candidates(keys: Tensor, items: Tensor, contrast: Contrast) -> Candidates:
    """Return the rejected items of a batch as negatives for all of its sessions.

    On a CPU only they are returned. On other devices all positions are, with item 0 where nothing is
    rejected, because the host would have to wait for their number.

    Args:
        keys: [B, L, D] floating point.
        items: [B, L] int64.
        contrast: The contrast of the same batch.

    Returns:
        [C] candidates.

    Examples:
        >>> from skipcl_lightning.functional import session_contrast
        >>> items = torch.tensor([[1, 2]])
        >>> contrast = session_contrast((items, torch.tensor([[1.0, -1.0]])))
        >>> rejected_candidates(torch.ones(1, 2, 3), items, contrast).items
        tensor([2])
    """
    if items.device.type == "cpu":
        mask = contrast.rejected_mask
        return Candidates(items[mask], keys[mask], contrast.log_weight[mask])
    rejected = torch.where(contrast.rejected_mask, items, PADDING_INDEX)
    return Candidates(rejected.flatten(), keys.flatten(0, 1), contrast.log_weight.flatten())


def candidate_similarity(
    name: str, query: Tensor, part: Candidates, temperature: float | Tensor, query_mask: Tensor
) -> Tensor:
    """Return cos(q, k) / τ of each position with shared candidates, or with its own: [B, L, C].

    `name` is the argument's name in errors; queries where `query_mask` [B, L] is False count as 0.
    """
    sizes = check_shape("query", query, "B L D")
    shape = "C" if part.items.dim() == 1 else "B L C"
    sizes = check_shape(f"{name}.items", part.items, shape, sizes, dtype=torch.int64)
    check_shape(f"{name}.keys", part.keys, f"{shape} D", sizes, floating=True)
    return cosine(query, part.keys, temperature, query_mask=query_mask)


def absent_mask(part: Candidates, items: Tensor) -> Tensor:
    """Return which candidates are an item, but none of those of the session, [B, X] int64.

    The result is [B, 1, C] bool for shared candidates, else [B, L, C].
    """
    shared = part.items.dim() == 1
    wanted = part.items.expand(len(items), -1) if shared else part.items.flatten(1)
    mask = ~is_among(wanted, items) & (wanted != PADDING_INDEX)
    return mask[:, None, :] if shared else mask.view(part.items.shape)


def gather_candidates(candidates: Candidates) -> Candidates:
    """Return the [C] candidates of all processes, filled up with item 0 to equal numbers.

    The gradient of each key is the sum over the losses of all processes. Together with the mean that DDP
    takes over processes, this is the gradient of `reduce_anchors` with `gather_ranks`.
    """
    if not is_distributed():
        return candidates
    size = torch.tensor(len(candidates.items), device=candidates.items.device)
    dist.all_reduce(size, op=dist.ReduceOp.MAX)
    most = int(size)
    weight = torch.zeros_like(candidates.items, dtype=candidates.keys.dtype)
    weight = weight if candidates.log_weight is None else candidates.log_weight
    return Candidates(
        _gather(_fill(candidates.items, most)),
        _GatherWithGradient.apply(_fill(candidates.keys, most)),  # type: ignore[no-untyped-call]
        _gather(_fill(weight, most)),
    )


def gather_latest(items: Tensor, most: int) -> Tensor:
    """Return the first `most` of each process's [N] items, those of the processes in turn; of one, all N."""
    if not is_distributed():
        return items
    # A fixed size, because a GPU's host would have to wait for the number of items.
    items = move_padding_last(items)[:most]
    return _gather(_fill(items, most)).view(-1, most).T.flatten()


def move_padding_last(items: Tensor) -> Tensor:
    """Move the padding of [N] items behind the others, which keep their order."""
    # The sort does not ask a GPU for the number of items.
    return items[(items == PADDING_INDEX).to(torch.uint8).sort(stable=True).indices]


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keys: Tensor) -> Tensor:
        ctx.size = len(keys)
        return _gather(keys)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.size
        return gradient[start : start + ctx.size]


def _gather(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def _fill(tensor: Tensor, size: int) -> Tensor:
    """Append zeros up to `size` rows."""
    missing = tensor.new_zeros(size - len(tensor), *tensor.shape[1:])
    return torch.cat([tensor, missing])


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
    positives. No negative of a position is one of its mined positives. With the mined positives j, each of
    weight β and with the same negatives, the loss is

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
    parts, shared = [], {}
    if candidates is not None:
        shared["candidates"] = candidates
    if settings.negatives == "batch":
        own = rejected_candidates(keys, batch.items, found)
        shared["batch"] = gather_candidates(own) if gather_ranks else own
    else:
        parts.append((similarity, found.negative_mask, found.log_weight[:, None, :]))
    if batch.mined_negatives is not None:
        shared["mined_negatives"] = _mined(batch.mined_negatives, batch, item_embeddings, sparse_gradients)
    mined_positives = None
    if batch.mined_positives is not None:
        mined_positives = _mined(batch.mined_positives, batch, item_embeddings, sparse_gradients)
        rejected = torch.where(found.rejected_mask, batch.items, PADDING_INDEX)
        positive_mask = absent_mask(mined_positives, rejected)  # [B, L, P]
    for name, part in shared.items():
        logits = candidate_similarity(name, query, part, temperature, valid_mask)
        log_weight = logits.new_zeros(1) if part.log_weight is None else part.log_weight
        mask = absent_mask(part, found.kept_items)
        if mined_positives is not None:
            mask = _without(mask, part.items, mined_positives.items.where(positive_mask, PADDING_INDEX))
        parts.append((logits, mask, log_weight))
    negative_logit, has_negative = _sum_negatives(parts, num_hardest)
    losses = -F.logsigmoid(own_logit - negative_logit)
    if mined_positives is not None:
        logits = candidate_similarity("mined_positives", query, mined_positives, temperature, valid_mask)
        extra = torch.where(positive_mask, -F.logsigmoid(logits - negative_logit[..., None]), 0).sum(dim=2)
        losses = (losses + mined_positive_weight * extra) / (
            1 + mined_positive_weight * positive_mask.sum(dim=2)
        )
    return reduce_anchors(losses, found.anchor_weight * has_negative, reduction, gather_ranks=gather_ranks)


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


def _mined(items: Tensor, batch: SessionBatch, item_embeddings: Tensor | None, sparse: bool) -> Candidates:
    """Return the mined items of the position before each positive."""
    if batch.cloze_mask is not None:
        # The positive of a hidden position is the item there, so the position before it counts.
        items = F.pad(items[:, :-1], (0, 0, 1, 0), value=PADDING_INDEX)
    return Candidates(items, look_up(items, require_table(item_embeddings, "mined tracks"), sparse=sparse))


def _without(mask: Tensor, items: Tensor, positives: Tensor) -> Tensor:
    """[B, L, C] bool: the mask of candidates [C] or [B, L, C], without the positives [B, L, P] of a place."""
    for positive in positives.unbind(2):
        mask = mask & (items != positive[..., None])
    return mask


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
