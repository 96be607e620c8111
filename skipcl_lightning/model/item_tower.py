"""The item tower: embeddings of items from their content."""

from collections.abc import Iterator, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from skipcl_lightning._checks import check_integer

__all__ = ["ItemTower"]


class ItemTower(nn.Module):
    r"""Embeddings of items from their numbers and categories, linear in both.

    $$
    t_i = W x_i + \sum_c \frac{1}{|S_{ic}|} \sum_{s \in S_{ic}} E_{cs}
    $$

    with the numbers x_i of item i and its set S_ic of categories in column c; an empty set adds nothing. So
    an item without any content, and padding, is zero.

    Args:
        numbers: [V + 1, F] floating point; row 0 is padding and zero.
        categories: By column, [V + 1, M] int32 codes, 0 for none.
        num_categories: By column, the number of different codes.
        embedding_size: D.

    Raises:
        ValueError: `embedding_size` is below 1.

    Reference:
        Kula: Metadata Embeddings for User and Item Cold-start Recommendations, 2015, arXiv 1507.08439.

    Examples:
        >>> import torch
        >>> codes = torch.tensor([[0, 0], [1, 2], [2, 0]], dtype=torch.int32)
        >>> tower = ItemTower(torch.zeros(3, 0), {"genre": codes}, {"genre": 2}, embedding_size=4)
        >>> tower().shape, tower(torch.tensor([[2, 1]])).shape
        (torch.Size([3, 4]), torch.Size([1, 2, 4]))
    """

    numbers: Tensor

    def __init__(
        self,
        numbers: Tensor,
        categories: Mapping[str, Tensor],
        num_categories: Mapping[str, int],
        embedding_size: int,
    ) -> None:
        super().__init__()
        check_integer("embedding_size", embedding_size)
        self.columns = list(categories)
        self.tables = nn.ModuleList(
            nn.Embedding(num_categories[name] + 1, embedding_size, padding_idx=0) for name in categories
        )
        self.projection = (
            nn.Linear(numbers.shape[1], embedding_size, bias=False) if numbers.shape[1] else None
        )
        # Each column adds vectors of about length 1.
        for table in self._tables():
            nn.init.normal_(table.weight[1:], std=embedding_size**-0.5)
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=(embedding_size * numbers.shape[1]) ** -0.5)
        self.set_rows(numbers, categories)

    def set_rows(self, numbers: Tensor, categories: Mapping[str, Tensor]) -> None:
        """Take the content of a catalogue, which may have more items than before.

        Args:
            numbers: [V + 1, F], as for the class.
            categories: By column, [V + 1, M], as for the class.
        """
        weight = next(self.parameters())
        self.register_buffer("numbers", numbers.to(weight))
        for place, name in enumerate(self.columns):
            self.register_buffer(f"codes_{place}", categories[name].to(weight.device))

    def rows(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the content of the catalogue, as `set_rows` takes it."""
        return self.numbers, {name: self._codes(place) for place, name in enumerate(self.columns)}

    def forward(self, items: Tensor | None = None) -> Tensor:
        """Return the embeddings of items.

        Args:
            items: [...] int64 in 0..V; None for the whole catalogue.

        Returns:
            [..., D], or [V + 1, D].
        """
        rows = slice(None) if items is None else items.flatten()
        parts = [] if self.projection is None else [self.projection(self.numbers[rows])]
        for place, table in enumerate(self._tables()):
            codes = self._codes(place)[rows]
            # ONNX takes no int32; the whole catalogue would become too large.
            codes = codes if items is None else codes.long()
            parts.append(F.embedding_bag(codes, table.weight, mode="mean", padding_idx=0))
        total: Tensor = sum(parts[1:], parts[0])
        return total if items is None else total.view(*items.shape, -1)

    def _tables(self) -> Iterator[nn.Embedding]:
        return (table for table in self.tables if isinstance(table, nn.Embedding))

    def _codes(self, place: int) -> Tensor:
        codes: Tensor = getattr(self, f"codes_{place}")
        return codes
