"""How often an item followed another one in the training set, as scores."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional import SparseScores

__all__ = ["Transitions"]

# Followers that are kept for each context.
_MOST_FOLLOWERS = 100


class Transitions(nn.Module):
    """How often items follow a context in the training set: log(1 + count), for the most frequent followers.

    Its values stay float32 where a module is converted to another precision, so the counts stay exact.

    Args:
        num_contexts: C, the number of contexts.
        num_transitions: P, the number of stored transitions.
        most_followers: The largest number of followers of one context.

    Examples:
        >>> contexts, followers, counts = torch.tensor([[1, 1], [2, 3], [5, 1]])
        >>> Transitions.from_counts(contexts, followers, counts)(torch.tensor([1, 2]))
        SparseScores(items=tensor([[2, 3],
                [0, 0]]), scores=tensor([[1.7918, 0.6931],
                [0.0000, 0.0000]]))
    """

    contexts: Tensor
    offsets: Tensor
    followers: Tensor
    values: Tensor

    def __init__(self, num_contexts: int, num_transitions: int, most_followers: int) -> None:
        super().__init__()
        self.most_followers = most_followers
        self.register_buffer("contexts", torch.zeros(num_contexts, dtype=torch.int64))
        self.register_buffer("offsets", torch.zeros(num_contexts + 1, dtype=torch.int64))
        self.register_buffer("followers", torch.zeros(num_transitions, dtype=torch.int64))
        self.register_buffer("values", torch.zeros(num_transitions, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the buffers, and keep the values float32."""
        # Conversions to another precision leave integers alone.
        self.values = self.values.view(torch.int32)
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        finally:
            self.values = self.values.view(torch.float32)
        return self

    @classmethod
    def from_counts(
        cls, contexts: Tensor, followers: Tensor, counts: Tensor, *, most_followers: int = _MOST_FOLLOWERS
    ) -> "Transitions":
        """Keep the most frequent followers of each context; equal counts are ordered by item.

        Args:
            contexts: [P] int64, ascending, as of `SessionDataModule.transition_counts`.
            followers: [P] int64 in 1..V, ascending within a context.
            counts: [P] int64.
            most_followers: The followers to keep for each context, at least 1.

        Returns:
            The module, on the CPU.
        """
        order = torch.argsort(counts, descending=True, stable=True)
        order = order[torch.argsort(contexts[order], stable=True)]
        first = torch.searchsorted(
            contexts, contexts
        )  # where each transition's context begins, in both orders
        kept = order[torch.arange(len(order)) - first < most_followers].sort().values
        different, lengths = torch.unique_consecutive(contexts[kept], return_counts=True)
        result = cls(len(different), len(kept), int(lengths.max()) if len(kept) else 0)
        result.contexts.copy_(different)
        result.offsets[1:] = lengths.cumsum(0)
        result.followers.copy_(followers[kept])
        result.values.copy_(counts[kept].double().log1p())
        return result

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "Transitions":
        """Return the module with a state dict."""
        lengths = state["offsets"].diff()
        most = int(lengths.max()) if len(lengths) else 0
        result = cls(len(state["contexts"]), len(state["followers"]), most)
        result.load_state_dict(state)
        return result

    def counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the stored transitions as `from_counts` takes them; counts are exact below a million."""
        contexts = self.contexts.repeat_interleave(self.offsets.diff())
        return contexts, self.followers, self.values.double().expm1().round().long()

    def __add__(self, other: "Transitions") -> "Transitions":
        """Return the sum of two counts, on the CPU; it lacks the followers that either has not stored."""
        contexts, followers, counts = (
            torch.cat(pair).cpu() for pair in zip(self.counts(), other.counts(), strict=True)
        )
        order = torch.argsort(followers, stable=True)
        order = order[torch.argsort(contexts[order], stable=True)]
        contexts, followers = contexts[order], followers[order]
        first = torch.ones_like(contexts, dtype=torch.bool)
        first[1:] = (contexts[1:] != contexts[:-1]) | (followers[1:] != followers[:-1])
        sums = torch.zeros_like(contexts[first]).index_add_(0, first.cumsum(0) - 1, counts[order])
        return self.from_counts(contexts[first], followers[first], sums)

    def recode_pairs(self, old_items: int, new_items: int) -> None:
        """Write contexts of two items, `before · (V + 1) + last`, for another number of items V.

        Args:
            old_items: The V of the contexts.
            new_items: The new V, at least as large.
        """
        before, last = self.contexts // (old_items + 1), self.contexts % (old_items + 1)
        self.contexts.copy_(before * (new_items + 1) + last)

    def forward(self, contexts: Tensor) -> SparseScores:
        """Return the followers of each context, [N] int64, and log(1 + count)."""
        if not len(self.contexts):
            nothing = contexts.new_zeros(len(contexts), 0)
            return SparseScores(nothing, nothing.to(self.values.dtype))
        row = torch.searchsorted(self.contexts, contexts).clamp(max=len(self.contexts) - 1)
        known = self.contexts[row] == contexts
        start, end = self.offsets[row], self.offsets[row + 1]
        # At the right, so that rows ascend with 0 at the left.
        places = (
            end[:, None] - self.most_followers + torch.arange(self.most_followers, device=contexts.device)
        )
        real = (places >= start[:, None]) & known[:, None]
        places = places.clamp(min=0)
        return SparseScores(
            torch.where(real, self.followers[places], PADDING_INDEX),
            torch.where(real, self.values[places], 0),
        )
