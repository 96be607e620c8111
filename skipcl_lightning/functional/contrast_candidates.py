"""Tracks from outside a session that its positions are contrasted with."""

from typing import NamedTuple

import torch
from torch import Tensor

from skipcl_lightning._checks import check_shape
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.contrast import Contrast
from skipcl_lightning.functional.similarity import cosine

__all__ = ["Candidates", "candidate_similarity", "rejected_candidates", "unkept_mask"]


class Candidates(NamedTuple):
    """Tracks that any session may be pushed from, or pulled to.

    Attributes:
        items: [..., C] int64 in 0..V; 0 is none.
        keys: [..., C, D] floating point, their embeddings.
        log_weight: [..., C] floating point, the logarithm of their weights; None for weights of 1.
    """

    items: Tensor
    keys: Tensor
    log_weight: Tensor | None = None


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

    Examples:
        >>> from skipcl_lightning.functional import session_contrast
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


def candidate_similarity(
    name: str, query: Tensor, part: Candidates, temperature: float | Tensor, query_mask: Tensor
) -> Tensor:
    """cos(q, k) / τ of each position with candidates that all share, or with its own.

    Args:
        name: The argument's name, for errors.
        query: [B, L, D] floating point.
        part: [C] or [B, L, C] candidates.
        temperature: τ > 0.
        query_mask: [B, L] bool, False where a query counts as 0.

    Returns:
        [B, L, C].

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Examples:
        >>> one = Candidates(torch.tensor([4]), torch.tensor([[0.0, 2.0]]))
        >>> candidate_similarity("candidates", torch.ones(1, 1, 2), one, 1.0, torch.ones(1, 1).bool())
        tensor([[[0.7071]]])
    """
    sizes = check_shape("query", query, "B L D")
    shape = "C" if part.items.dim() == 1 else "B L C"
    sizes = check_shape(f"{name}.items", part.items, shape, sizes, dtype=torch.int64)
    check_shape(f"{name}.keys", part.keys, f"{shape} D", sizes, floating=True)
    return cosine(query, part.keys, temperature, query_mask=query_mask)


def unkept_mask(part: Candidates, kept_items: Tensor) -> Tensor:
    """Return which candidates a session may be pushed from: those that it does not keep itself.

    Args:
        part: [C] or [B, L, C] candidates.
        kept_items: [B, L] int64, the items that each session does not reject; 0 elsewhere.

    Returns:
        [B, 1, C] or [B, L, C] bool; False where there is no candidate.

    Examples:
        >>> two = Candidates(torch.tensor([4, 5]), torch.ones(2, 3))
        >>> unkept_mask(two, torch.tensor([[5, 1]]))
        tensor([[[ True, False]]])
    """
    shared = part.items.dim() == 1
    wanted = part.items.expand(len(kept_items), -1) if shared else part.items.flatten(1)
    kept = kept_items.sort(dim=1).values
    place = torch.searchsorted(kept, wanted.contiguous()).clamp(max=kept.shape[1] - 1)
    mask = (kept.gather(1, place) != wanted) & (wanted != PADDING_INDEX)
    return mask[:, None, :] if shared else mask.view(part.items.shape)
