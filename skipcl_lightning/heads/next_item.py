"""Next-item losses over the positions that have a target."""

from typing import get_args

import torch
from torch import Tensor, nn

from skipcl_lightning._checks import check_choice, check_integer, check_number, check_shape
from skipcl_lightning._settings import records_settings
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.next_item.bpr_max import chunked_bpr_max_loss
from skipcl_lightning.functional.next_item.full_softmax import chunked_softmax_loss
from skipcl_lightning.functional.next_item.gbce import chunked_gbce_loss
from skipcl_lightning.functional.next_item.sampled_softmax import (
    Sampler,
    chunked_sampled_softmax_loss,
    sample_items,
    sampling_log_probability,
)

__all__ = ["GBCE", "BPRMax", "FullSoftmax", "SampledSoftmax", "real_positions"]

# GPU tensors are cut at multiples of this, so that memory of one size serves many batches.
_ROUND = 128


class FullSoftmax(nn.Module):
    """Cross-entropy over the whole catalogue, computed in chunks of positions.

    Args:
        chunk_size: Positions in a chunk; None for the default of `chunked_softmax_loss`.

    Raises:
        TypeError: `chunk_size` is no integer.
        ValueError: It is below 1.

    Examples:
        >>> import torch
        >>> target = torch.tensor([[2, 0]])  # nothing to predict at the second position
        >>> FullSoftmax()(torch.ones(1, 2, 1), torch.ones(3, 1), target).round(decimals=4)
        tensor(0.6931)
    """

    takes_most_targets = True

    @records_settings
    def __init__(self, chunk_size: int | None = None) -> None:
        super().__init__()
        if chunk_size is not None:
            check_integer("chunk_size", chunk_size)
        self.chunk_size = chunk_size

    def forward(
        self,
        query: Tensor,
        item_embeddings: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        most_targets: int | None = None,
    ) -> Tensor:
        """Return the mean loss over the positions with a target.

        Args:
            query: [B, L, D] floating point, the backbone's output.
            item_embeddings: [V + 1, D] floating point; row 0 is padding.
            target: [B, L] int64 in 0..V; 0 where there is nothing to predict.
            weight: [B, L] floating point above 0, the weight of each position in the mean; None for equal
                weights.
            most_targets: An upper bound of the number of targets, or None. A GPU computes logits at this many
                positions, or at all positions.

        Returns:
            A scalar; exactly 0, with a zero gradient, without targets.

        Raises:
            ValueError: Shapes disagree, or a target is not in 0..V.
        """
        query, target, weight = real_positions(query, target, weight, most_targets)
        return chunked_softmax_loss(query, item_embeddings, target, weight, chunk_size=self.chunk_size)


class _SharedNegatives(nn.Module):
    """A loss against one set of sampled items, drawn in each step and shared by the batch.

    Args:
        num_negatives: K, items drawn with replacement; below the catalogue's size.
        sampler: `uniform`, or `log_uniform` by popularity rank.

    Raises:
        TypeError: `num_negatives` is no integer.
        ValueError: A setting is out of range.
    """

    takes_most_targets = True

    def __init__(self, num_negatives: int, *, sampler: Sampler) -> None:
        super().__init__()
        check_integer("num_negatives", num_negatives)
        check_choice("sampler", sampler, get_args(Sampler))
        self.num_negatives = num_negatives
        self.sampler: Sampler = sampler
        self.sparse_gradients = False

    def forward(
        self,
        query: Tensor,
        item_embeddings: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        most_targets: int | None = None,
    ) -> Tensor:
        """Return the mean loss over the positions with a target; arguments as in `FullSoftmax.forward`.

        Raises:
            ValueError: Shapes disagree, a target is not in 0..V, or there are not fewer negatives than items.
        """
        query, target, weight = real_positions(query, target, weight, most_targets)
        num_items = len(item_embeddings) - 1
        cure = f"With {num_items} items, pass fewer, or use `FullSoftmax`."
        check_integer("num_negatives", self.num_negatives, maximum=num_items - 1, cure=cure)
        negatives = sample_items(self.num_negatives, num_items, sampler=self.sampler, device=query.device)
        return self._loss(query, item_embeddings, target, negatives, weight)

    def _loss(
        self, query: Tensor, item_embeddings: Tensor, target: Tensor, negatives: Tensor, weight: Tensor | None
    ) -> Tensor:
        """Return the weighted mean over [N] positions; `negatives` are [K] indices."""
        raise NotImplementedError


class SampledSoftmax(_SharedNegatives):
    """Cross-entropy against one set of sampled items, drawn in each step and shared by the batch.

    Args:
        num_negatives: K, items drawn with replacement; below the catalogue's size.
        sampler: `uniform`, or `log_uniform` by popularity rank.
        correct_sampling: Whether the logits of the negatives are corrected by the probability of their draw
            (logQ), so the loss estimates the full softmax.

    Raises:
        TypeError: `num_negatives` is no integer.
        ValueError: A setting is out of range.

    Examples:
        >>> import torch
        >>> head = SampledSoftmax(2)
        >>> head(torch.ones(1, 1, 4), torch.ones(9, 4), torch.tensor([[3]])).isfinite()
        tensor(True)
    """

    @records_settings
    def __init__(
        self, num_negatives: int = 256, *, sampler: Sampler = "uniform", correct_sampling: bool = False
    ) -> None:
        super().__init__(num_negatives, sampler=sampler)
        self.correct_sampling = correct_sampling

    def _loss(
        self, query: Tensor, item_embeddings: Tensor, target: Tensor, negatives: Tensor, weight: Tensor | None
    ) -> Tensor:
        log_probability = None
        if self.correct_sampling:
            num_items = len(item_embeddings) - 1
            log_probability = sampling_log_probability(negatives, num_items, sampler=self.sampler)
        return chunked_sampled_softmax_loss(
            query,
            item_embeddings,
            target,
            negatives,
            weight,
            negative_log_probability=log_probability,
            sparse_gradients=self.sparse_gradients,
        )


class GBCE(_SharedNegatives):
    """Generalised binary cross-entropy against one set of sampled items, shared by the batch.

    See `gbce_loss` for the formula. The default settings are those of the paper. RecTools calls the
    calibration `gbce_t`, and its default is 0.2.

    Args:
        num_negatives: K, items drawn with replacement; below the catalogue's size.
        calibration: t in [0, 1]. With 0 the loss is ordinary binary cross-entropy, which overestimates
            probabilities. With 1 the scores are calibrated: their sigmoid estimates the probability that an
            item is next.
        sampler: `uniform`, or `log_uniform` by popularity rank, for which the calibration does not hold.

    Raises:
        TypeError: `num_negatives` is no integer, or `calibration` is no number.
        ValueError: A setting is out of range.

    Reference:
        Petrov and Macdonald: gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with
        Negative Sampling, RecSys 2023, arXiv 2308.07192.

    Examples:
        >>> import torch
        >>> target = torch.tensor([[2, 0]])  # nothing to predict at the second position
        >>> GBCE(2, calibration=0.0)(torch.ones(1, 2, 1), torch.zeros(9, 1), target).isfinite()
        tensor(True)
    """

    @records_settings
    def __init__(
        self, num_negatives: int = 256, *, calibration: float = 0.75, sampler: Sampler = "uniform"
    ) -> None:
        super().__init__(num_negatives, sampler=sampler)
        check_number("calibration", calibration, minimum=0, maximum=1)
        self.calibration = calibration

    def _loss(
        self, query: Tensor, item_embeddings: Tensor, target: Tensor, negatives: Tensor, weight: Tensor | None
    ) -> Tensor:
        return chunked_gbce_loss(
            query,
            item_embeddings,
            target,
            negatives,
            weight,
            calibration=self.calibration,
            sparse_gradients=self.sparse_gradients,
        )


class BPRMax(_SharedNegatives):
    """BPR-max, a pairwise loss against one set of sampled items, shared by the batch.

    See `bpr_max_loss` for the formula. The scores are inner products; GRU4Rec applies an ELU to them first.

    Args:
        num_negatives: K, items drawn with replacement; below the catalogue's size.
        regularisation: The weight of the squared scores of the negatives, at least 0; GRU4Rec calls it
            `bpreg`.
        sampler: `uniform`, or `log_uniform` by popularity rank.

    Raises:
        TypeError: `num_negatives` is no integer, or `regularisation` is no number.
        ValueError: A setting is out of range.

    Reference:
        Hidasi and Karatzoglou: Recurrent Neural Networks with Top-k Gains for Session-based Recommendations,
        CIKM 2018, arXiv 1706.03847.

    Examples:
        >>> import torch
        >>> target = torch.tensor([[2, 0]])  # nothing to predict at the second position
        >>> BPRMax(2)(torch.ones(1, 2, 1), torch.ones(9, 1), target).isfinite()
        tensor(True)
    """

    @records_settings
    def __init__(
        self, num_negatives: int = 256, *, regularisation: float = 1.0, sampler: Sampler = "uniform"
    ) -> None:
        super().__init__(num_negatives, sampler=sampler)
        check_number("regularisation", regularisation, minimum=0)
        self.regularisation = regularisation

    def _loss(
        self, query: Tensor, item_embeddings: Tensor, target: Tensor, negatives: Tensor, weight: Tensor | None
    ) -> Tensor:
        return chunked_bpr_max_loss(
            query,
            item_embeddings,
            target,
            negatives,
            weight,
            regularisation=self.regularisation,
            sparse_gradients=self.sparse_gradients,
        )


def real_positions(
    query: Tensor, target: Tensor, weight: Tensor | None = None, most_targets: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the positions that have a target.

    On a CPU only these. On a GPU and in a compiled step their number is not known in advance, so
    `most_targets` positions (or all) are returned, with weight 0 where there is no target.

    Args:
        query: [B, L, D] floating point.
        target: [B, L] int64 in 0..V; 0 where there is nothing to predict.
        weight: [B, L] floating point above 0; None for equal weights.
        most_targets: An upper bound of the number of targets; None if unknown.

    Returns:
        [N, D] queries, [N] targets in 1..V, and [N] weights, or None for equal weights.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree.

    Examples:
        >>> real_positions(torch.ones(1, 2, 1), torch.tensor([[0, 3]]))
        (tensor([[1.]]), tensor([3]), None)
    """
    sizes = check_shape("query", query, "B L D", floating=True)
    check_shape("target", target, "B L", sizes)
    mask = target != PADDING_INDEX
    if weight is not None:
        check_shape("weight", weight, "B L", sizes, floating=True)
    if query.device.type == "cpu" and not torch.compiler.is_compiling():
        return query[mask], target[mask], None if weight is None else weight[mask]
    share = (mask.to(torch.float32) if weight is None else weight * mask).flatten()
    query, target, mask = query.flatten(0, 1), target.flatten(), mask.flatten()
    if query.device.type == "cuda" and most_targets is not None and not torch.compiler.is_compiling():
        places, mask = _few_places(mask, most_targets)
        # `index_select`: the gradient of an index would need a sort.
        query, target, share = query.index_select(0, places), target[places], share[places] * mask
    # NaN there must not reach the sum through a zero factor.
    query = torch.where(mask[:, None], query, 0)
    # Not clamped, so that the index kernels refuse a negative target.
    return query, torch.where(target == PADDING_INDEX, PADDING_INDEX + 1, target), share


def _few_places(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """[N] int64 places where a [B * L] mask is True, and [N] bool: False for filled-up places."""
    count = min(len(mask), -(-most // _ROUND) * _ROUND)
    places = torch.nonzero_static(mask, size=count, fill_value=0).squeeze(1)
    return places, torch.arange(count, device=mask.device) < mask.sum()
