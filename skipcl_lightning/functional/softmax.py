"""Next-item cross-entropy over the whole catalogue, or over a sample of it."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_indices, check_integer, check_shape
from skipcl_lightning.functional.look_up import look_up

__all__ = ["Sampler", "full_softmax_loss", "sample_items", "sampled_softmax_loss", "sampling_log_probability"]

Sampler = Literal["uniform", "log_uniform"]


def full_softmax_loss(query: Tensor, item_embeddings: Tensor, target: Tensor) -> Tensor:
    r"""Cross-entropy of the target over the whole catalogue, one value a query.

    $$
    \ell = -\log \frac{\exp(q \cdot e_{target})}{\sum_{i=1}^{V} \exp(q \cdot e_i)}
    $$

    The padding row is no candidate.

    Args:
        query: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        target: [N] int64 in 1..V.

    Returns:
        [N] losses.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree, or a target is not in 1..V.

    Examples:
        >>> table = torch.tensor([[9.0], [1.0], [1.0]])
        >>> full_softmax_loss(torch.ones(1, 1), table, torch.tensor([2])).round(decimals=4)
        tensor([0.6931])
    """
    _check_arguments(query, item_embeddings, target)
    logits = query @ item_embeddings[1:].T  # [N, V]
    return F.cross_entropy(logits, target - 1, reduction="none")


def sampled_softmax_loss(
    query: Tensor,
    item_embeddings: Tensor,
    target: Tensor,
    negatives: Tensor,
    *,
    negative_log_probability: Tensor | None = None,
    sparse_gradients: bool = False,
) -> Tensor:
    r"""Cross-entropy of the target against one shared set of sampled items, one value a query.

    $$
    \ell = -\log \frac{\exp(q \cdot e_{target})}
    {\exp(q \cdot e_{target}) + \sum_{k : n_k \ne target} \exp(q \cdot e_{n_k} - c_k)}
    $$

    A sampled item that is the query's target is no negative. Without `negative_log_probability` c_k = 0.
    With it c_k = log(K · P(n_k)), which makes the sum an unbiased estimate of the full softmax's sum over
    all other items. The target itself is not corrected: it is always among the candidates, whatever the
    sampler does.

    Args:
        query: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        target: [N] int64 in 1..V.
        negatives: [K] int64 in 1..V, drawn with replacement, shared by all queries.
        negative_log_probability: [K] log P(n_k) of each draw under the sampler (logQ correction), or None.
        sparse_gradients: Whether the gradient of `item_embeddings`, which must then be a leaf, is a sparse
            tensor of the rows used.

    Returns:
        [N] losses.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree, or a target is not in 1..V.

    Reference:
        Bengio and Senécal: Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic
        Language Model, IEEE Transactions on Neural Networks 19(4), 2008, doi 10.1109/TNN.2007.912312.

    Examples:
        >>> table = torch.tensor([[9.0], [1.0], [1.0]])
        >>> target, negatives = torch.tensor([2]), torch.tensor([1, 2])
        >>> sampled_softmax_loss(torch.ones(1, 1), table, target, negatives).round(decimals=4)
        tensor([0.6931])
    """
    _check_arguments(query, item_embeddings, target)
    sizes = check_shape("negatives", negatives, "K", dtype=torch.int64)
    negative_rows, target_rows = (
        look_up(items, item_embeddings, sparse=sparse_gradients) for items in (negatives, target)
    )
    negative_logits = query @ negative_rows.T  # [N, K]
    target_logits = (query * target_rows).sum(dim=1, keepdim=True)  # [N, 1]
    if negative_log_probability is not None:
        check_shape("negative_log_probability", negative_log_probability, "K", sizes, floating=True)
        negative_logits = negative_logits - (negative_log_probability + math.log(len(negatives)))
    # A finite floor, since bf16 and fp16 have no room for a fixed large number.
    floor = torch.finfo(negative_logits.dtype).min
    negative_logits = negative_logits.masked_fill(negatives == target[:, None], floor)
    logits = torch.cat([target_logits.to(negative_logits.dtype), negative_logits], dim=1)  # [N, 1 + K]
    return F.cross_entropy(logits, torch.zeros_like(target), reduction="none")


def sample_items(
    num_samples: int,
    num_items: int,
    *,
    sampler: Sampler = "uniform",
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw items with replacement, uniformly or by popularity rank.

    `log_uniform`: P(i) = log((i + 1) / i) / log(V + 1), an approximation of Zipf's law for vocabularies
    numbered by falling popularity, as `ItemVocabulary` numbers them.

    Args:
        num_samples: K, at least 1 and below the catalogue's size.
        num_items: V, at least 2.
        sampler: Which of the two.
        device: Where the samples are drawn.
        generator: Where the randomness comes from; torch's global generator by default.

    Returns:
        [K] int64 in 1..V.

    Raises:
        ValueError: As many negatives as items, or more, are asked for.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> sample_items(4, 10, generator=generator).shape
        torch.Size([4])
    """
    check_choice("sampler", sampler, get_args(Sampler))
    check_integer("num_items", num_items, minimum=2)
    cure = f"A catalogue of {num_items} items has room for {num_items - 1} negatives: use the full softmax."
    check_integer("num_samples", num_samples, maximum=num_items - 1, cure=cure)
    if sampler == "uniform":
        return torch.randint(1, num_items + 1, (num_samples,), device=device, generator=generator)
    # float32 has no room for the tail of a catalogue beyond 2^24 items.
    uniform = torch.rand(num_samples, device=device, generator=generator, dtype=torch.float64)
    return (uniform * math.log(num_items + 1)).exp().long().clamp(min=1, max=num_items)


def sampling_log_probability(items: Tensor, num_items: int, *, sampler: Sampler = "uniform") -> Tensor:
    """Log probability that one draw of `sample_items` is the given item.

    Args:
        items: [K] int64 in 1..V.
        num_items: V.
        sampler: The sampler that draws.

    Returns:
        [K] float32.

    Raises:
        ValueError: The sampler is unknown.

    Examples:
        >>> sampling_log_probability(torch.tensor([1, 2]), 2, sampler="log_uniform").exp().sum()
        tensor(1.)
    """
    check_choice("sampler", sampler, get_args(Sampler))
    check_integer("num_items", num_items)
    if sampler == "uniform":
        return torch.full(items.shape, -math.log(num_items), device=items.device)
    return (torch.log1p(1 / items.float()) / math.log(num_items + 1)).log()


def _check_arguments(query: Tensor, item_embeddings: Tensor, target: Tensor) -> None:
    sizes = check_shape("query", query, "N D", floating=True)
    check_shape("item_embeddings", item_embeddings, "V+1 D", sizes, floating=True)
    check_shape("target", target, "N", sizes, dtype=torch.int64)
    check_indices("target", target, len(item_embeddings) - 1)
