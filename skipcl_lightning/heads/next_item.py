"""Next-item losses over the positions that have something to predict."""

from typing import get_args

from torch import Tensor, nn

from skipcl_lightning._checks import check_choice, check_integer
from skipcl_lightning._settings import records_settings
from skipcl_lightning.functional.chunked_sampled_softmax import chunked_sampled_softmax_loss
from skipcl_lightning.functional.chunked_softmax import chunked_softmax_loss
from skipcl_lightning.functional.softmax import (
    Sampler,
    sample_items,
    sampling_log_probability,
)
from skipcl_lightning.heads.real_positions import real_positions

__all__ = ["FullSoftmax", "SampledSoftmax"]


class FullSoftmax(nn.Module):
    """Cross-entropy over the whole catalogue, without the logits of all positions at once.

    Args:
        chunk_size: Positions whose logits are held at once (`chunked_softmax_loss`); None for as many as
            suit the catalogue and the device.

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
        """The mean loss over positions with a target.

        Args:
            query: [B, L, D] floating point, the backbone's output.
            item_embeddings: [V + 1, D] floating point; row 0 is padding.
            target: [B, L] int64 in 0..V; 0 where there is nothing to predict.
            weight: [B, L] floating point above 0, how much each position counts in the mean; None for alike.
            most_targets: No fewer than the positions with a target, where the host knows such a number: a GPU
                then computes at so many positions, and else at all of them.

        Returns:
            A scalar; exactly 0, with a zero gradient, without targets.

        Raises:
            ValueError: Shapes disagree, or a target is not in 0..V.
        """
        query, target, weight = real_positions(query, target, weight, most_targets)
        return chunked_softmax_loss(query, item_embeddings, target, weight, chunk_size=self.chunk_size)


class SampledSoftmax(nn.Module):
    """Cross-entropy against one set of sampled items, drawn anew in each step and shared by the batch.

    Args:
        num_negatives: K, items drawn with replacement; below the catalogue's size.
        sampler: `uniform`, or `log_uniform` by popularity rank.
        correct_sampling: Correct the logits of the negatives for how likely each was drawn (logQ), so that
            the loss estimates the full softmax.

    Raises:
        ValueError: A setting is out of range.

    Examples:
        >>> import torch
        >>> head = SampledSoftmax(2)
        >>> head(torch.ones(1, 1, 4), torch.ones(9, 4), torch.tensor([[3]])).isfinite()
        tensor(True)
    """

    takes_most_targets = True

    @records_settings
    def __init__(
        self, num_negatives: int = 256, *, sampler: Sampler = "uniform", correct_sampling: bool = False
    ) -> None:
        super().__init__()
        check_integer("num_negatives", num_negatives)
        check_choice("sampler", sampler, get_args(Sampler))
        self.num_negatives = num_negatives
        self.sampler: Sampler = sampler
        self.correct_sampling = correct_sampling
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
        """The mean loss over positions with a target.

        Args:
            query: [B, L, D] floating point, the backbone's output.
            item_embeddings: [V + 1, D] floating point; row 0 is padding.
            target: [B, L] int64 in 0..V; 0 where there is nothing to predict.
            weight: [B, L] floating point above 0, how much each position counts in the mean; None for alike.
            most_targets: No fewer than the positions with a target, where the host knows such a number: a GPU
                then computes at so many positions, and else at all of them.

        Returns:
            A scalar; exactly 0, with a zero gradient, without targets.

        Raises:
            ValueError: Shapes disagree, a target is not in 0..V, or there are not fewer negatives than items.
        """
        query, target, weight = real_positions(query, target, weight, most_targets)
        num_items = len(item_embeddings) - 1
        negatives = sample_items(self.num_negatives, num_items, sampler=self.sampler, device=query.device)
        log_probability = None
        if self.correct_sampling:
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
