"""The item table as a module, whose lookups in a step may share one dense gradient."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.look_up import gather_gradients, look_up

__all__ = ["ItemEmbedding"]


class ItemEmbedding(nn.Embedding):
    """torch's embedding of items, with padding in row 0.

    Args:
        num_items: V.
        embedding_size: D.
        sparse: Whether gradients are sparse tensors of the rows used.

    Example:
        >>> import torch
        >>> items = ItemEmbedding(3, 2, sparse=False)
        >>> items.table.shape, items(torch.tensor([[1, 0]])).shape
        (torch.Size([4, 2]), torch.Size([1, 2, 2]))
    """

    def __init__(self, num_items: int, embedding_size: int, *, sparse: bool) -> None:
        super().__init__(num_items + 1, embedding_size, padding_idx=PADDING_INDEX, sparse=sparse)
        self._gathered: Tensor | None = None

    @property
    def table(self) -> Tensor:
        """[V + 1, D]; within ``gathered_gradients`` one to look rows up in by ``look_up``."""
        return self.weight if self._gathered is None else self._gathered

    @contextmanager
    def gathered_gradients(self) -> Iterator[None]:
        """A context whose lookups make one dense gradient together, where that pays.

        It does on a CPU; a GPU has made several in no time.
        """
        if self.weight.device.type == "cpu" and not self.sparse:
            self._gathered = gather_gradients(self.weight)
        try:
            yield
        finally:
            self._gathered = None

    def forward(self, items: Tensor) -> Tensor:
        """[...] int64 in 0..V to [..., D]."""
        if self._gathered is None:
            return super().forward(items)
        return look_up(items, self._gathered, padding_index=PADDING_INDEX)
