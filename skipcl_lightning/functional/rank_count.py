"""Items counted by whether they score below a target: in float32 what is certain, and exactly all else."""

from collections.abc import Iterator

import torch
from torch import Tensor

from skipcl_lightning.functional.exact import compare_exactly, multiply_pairs

__all__ = ["RankCount", "compare_all", "item_blocks"]

# Items that are looked at together where one of them is near the target; fewer take longer to add up.
_GROUP = 256
_MOST_OPEN = 2**16
# One in so many scores of a query near the target, and a product of all of them is taken.
_DENSE_SHARE = 32


def item_blocks(num_items: int, width: int) -> Iterator[tuple[int, int]]:
    """Where blocks of items begin and end: of whole groups, as far as there are so many.

    Args:
        num_items: C.
        width: The most items of a block, 1 or more.

    Returns:
        Begin and end of each, in order.

    Examples:
        >>> list(item_blocks(600, 300))
        [(0, 256), (256, 512), (512, 600)]
    """
    width = width // _GROUP * _GROUP or width
    whole = num_items // _GROUP * _GROUP
    for left in range(0, whole, width):
        yield left, min(left + width, whole)
    for left in range(whole, num_items, width):
        yield left, min(left + width, num_items)


class RankCount:
    """How many items lie below each query's own score, and how many tie with it.

    What float32 leaves open is collected, and settled by products in float64, many at a time.

    Args:
        queries: [N, D] floating point.
        item_embeddings: [V + 1, D] floating point; row 0 is padding.
        own: [N, 1] float64, the score of each query's target.

    Attributes:
        below: [N] int64, of the pairs that were settled; what `add_block` finds is for the caller to add.
        tied: [N] int64.
    """

    def __init__(self, queries: Tensor, item_embeddings: Tensor, own: Tensor) -> None:
        self.queries, self.item_embeddings, self.own = queries, item_embeddings, own
        self.below, self.tied = (
            torch.zeros(len(queries), dtype=torch.int64, device=queries.device) for _ in range(2)
        )
        self.open: list[tuple[Tensor, Tensor]] = []
        self.num_open = 0

    def add_block(self, part: Tensor, top: int, left: int) -> Tensor:
        """Add up what is certain of a block, and note what is open.

        Args:
            part: [N, C] float32 differences from the own scores of the queries from `top` on, of the items
                from `left` on, in units of `error_unit`; overwritten.
            top: The first query.
            left: The first item.

        Returns:
            [N] float32, the items certainly above less those certainly below.
        """
        size = _GROUP if part.shape[1] % _GROUP == 0 else part.shape[1]
        groups = part.clamp_(-1, 1).view(len(part), -1, size)
        # -1 for each item that is surely below, 1 for each that is surely above; 0.8 at most is open, and
        # would take 0.36 from the sum of squares.
        signs = groups.sum(dim=2).round_()
        open_mask = ~(torch.linalg.vector_norm(groups, dim=2) > (size - 0.25) ** 0.5)
        unsure = open_mask.nonzero(as_tuple=True)  # few groups, in most blocks
        if len(unsure[0]):
            near = groups[unsure]  # [unsure, size]
            below_mask = near == -1
            signs[unsure] = size - 2 * below_mask.sum(dim=1, dtype=torch.float32)
            self._add_near(open_mask, unsure, ~below_mask & (near != 1), top, left)
        return signs.sum(dim=1)

    def _add_near(
        self, open_mask: Tensor, unsure: tuple[Tensor, ...], near_mask: Tensor, top: int, left: int
    ) -> None:
        """[N, groups] bool, where it is True [unsure] twice, and which items there are near the own score."""
        pairs, items = near_mask.nonzero(as_tuple=True)
        size = near_mask.shape[1]
        width = open_mask.shape[1] * size
        if len(pairs) * _DENSE_SHARE > width:
            rows = open_mask.any(dim=1).nonzero().squeeze(1)
            if len(pairs) * _DENSE_SHARE > len(rows) * width:
                mask = near_mask.new_zeros(*open_mask.shape, size)
                mask[unsure] = near_mask
                self._settle_all(rows + top, left, mask[rows].flatten(1))
                return
        row, group = (index[pairs] for index in unsure)
        self.open.append((row + top, (left + group * size + items)[:, None]))  # [pairs], [pairs, 1]
        self.num_open += len(pairs)
        if self.num_open > _MOST_OPEN:
            self.settle()

    def settle(self) -> None:
        """Decide on the pairs that are open."""
        if not self.open:
            return
        rows, items = (torch.cat(parts) for parts in zip(*self.open, strict=True))
        products, lengths = multiply_pairs(self.queries[rows], self.item_embeddings, items)
        is_below, is_tied = compare_exactly(products, self.own[rows], lengths, self.queries.shape[1])
        self.below.index_add_(0, rows, is_below.squeeze(1).long())
        self.tied.index_add_(0, rows, is_tied.squeeze(1).long())
        self.open, self.num_open = [], 0

    def _settle_all(self, rows: Tensor, left: int, near_mask: Tensor) -> None:
        """As in a collapsed table: pair by pair would take far longer than a product of all."""
        items = self.item_embeddings[left : left + near_mask.shape[1]]
        is_below, is_tied = compare_all(self.queries[rows], items, self.own[rows])
        self.below[rows] += (is_below & near_mask).sum(dim=1)
        self.tied[rows] += (is_tied & near_mask).sum(dim=1)


def compare_all(queries: Tensor, items: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Which items lie below each query's own score, and which equal it.

    Args:
        queries: [N, D] floating point.
        items: [C, D] floating point.
        own: [N, 1] float64.

    Returns:
        [N, C] bool twice.

    Examples:
        >>> own = torch.tensor([[2.0]], dtype=torch.float64)
        >>> compare_all(torch.ones(1, 1), torch.tensor([[1.0], [2.0], [3.0]]), own)
        (tensor([[ True, False, False]]), tensor([[False,  True, False]]))
    """
    queries, items = queries.to(own.dtype), items.to(own.dtype)
    lengths = queries.norm(dim=1, keepdim=True) * items.norm(dim=1)  # [N, C]
    return compare_exactly(queries @ items.T, own, lengths, queries.shape[1])
