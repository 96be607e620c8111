"""A next-item softmax in which the skipped tracks are certain negatives."""

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_shape
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.contrast import Contrast
from skipcl_lightning.functional.precision import without_autocast
from skipcl_lightning.functional.skip_margin import session_scores

__all__ = ["skip_softmax"]


def skip_softmax(
    query: Tensor,
    keys: Tensor,
    items: Tensor,
    contrast: Contrast,
    *,
    samples: Tensor | None = None,
    sample_keys: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Cross-entropy of the next listened track against the skipped ones, and sampled items beside them.

    With the score r(t, i) = q_t · e_i and K items drawn for the whole batch:

    $$
    \ell_t = -\log \frac{\exp r(t, p(t))}{\exp r(t, p(t)) + \sum_{s \in S} w_s \exp r(t, s)
    + \sum_{k : n_k \ne i_{p(t)}} \exp r(t, n_k)}
    $$

    Where a sample of uniform negatives stands for items that may well be liked, a skip is certain.

    Args:
        query: [B, L, D] floating point, q_t.
        keys: [B, L, D] floating point, e_t.
        items: [B, L] int64; 0 is padding.
        contrast: What is compared: `session_contrast`.
        samples: [K] int64 in 1..V, drawn for the batch; None for skips alone.
        sample_keys: [K, D] floating point, their embeddings.

    Returns:
        [B, L] losses and [B, L] weights of the anchors, both 0 where there is none: an anchor has a skip.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree, or only one of the two is given.

    Reference:
        For skips among the candidates: Seshadri, Shashaani, Knees, RecSys 2024, arXiv 2409.07367, contrast
        them by cosine instead; for the sampled sum: Bengio and Senécal, IEEE Transactions on Neural Networks
        19(4), 2008, doi 10.1109/TNN.2007.912312.

    Examples:
        >>> from skipcl_lightning.functional import session_contrast
        >>> items, feedback = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
        >>> contrast = session_contrast(items, feedback)
        >>> losses, _ = skip_softmax(torch.ones(1, 3, 1), torch.ones(1, 3, 1), items, contrast)
        >>> losses.round(decimals=4)
        tensor([[0.6931, 0.0000, 0.0000]])
    """
    if (samples is None) != (sample_keys is None):
        raise ValueError("`samples` and `sample_keys` must be given together, got only one of them.")
    scores, own = session_scores(query, keys, items, contrast)
    # A finite floor, since a row of -inf has a NaN gradient.
    floor = torch.finfo(scores.dtype).min
    logits = torch.where(contrast.negative_mask, scores + contrast.log_weight[:, None, :], floor)
    if samples is not None and sample_keys is not None:
        sizes = check_shape("query", query, "B L D")
        sizes = check_shape("samples", samples, "K", sizes, dtype=torch.int64)
        check_shape("sample_keys", sample_keys, "K D", sizes, floating=True)
        query = torch.where((items != PADDING_INDEX)[..., None], query, 0)  # NaN at padding must not spread
        with without_autocast(query.device):
            sampled = query.to(scores.dtype) @ sample_keys.to(scores.dtype).T  # [B, L, K]
        target = items.gather(1, contrast.positive_position)
        logits = torch.cat([logits, sampled.masked_fill(samples == target[..., None], floor)], dim=2)
    losses = -F.logsigmoid(own - logits.logsumexp(dim=2))
    anchor_mask = contrast.anchor_mask & contrast.negative_mask.any(dim=2)
    return torch.where(anchor_mask, losses, 0), contrast.anchor_weight * anchor_mask
