"""Sparse gradients of the item table, for losses that only look up rows."""

from collections.abc import Iterator

from torch import nn

from skipcl_lightning.heads.combined import CombinedHead

__all__ = ["only_looks_up", "use_sparse_gradients"]


def only_looks_up(next_item_loss: nn.Module, skip_head: nn.Module | None) -> bool:
    """Return whether all losses use the item table only by looking up rows.

    Args:
        next_item_loss: The next-item loss.
        skip_head: The skip head, or None; for a `CombinedHead`, its heads.

    Returns:
        Whether every loss that gets the table has the attribute of `use_sparse_gradients`.

    Examples:
        >>> from skipcl_lightning.heads import FullSoftmax, SampledSoftmax
        >>> only_looks_up(SampledSoftmax(8), None), only_looks_up(FullSoftmax(), None)
        (True, False)
    """
    return all(hasattr(part, "sparse_gradients") for _, part in _given_the_table(next_item_loss, skip_head))


def use_sparse_gradients(next_item_loss: nn.Module, skip_head: nn.Module | None) -> None:
    """Let losses that get the item table leave sparse gradients.

    A loss of your own that can do so has an attribute `sparse_gradients`, False at first. If it is True, use
    the table only through `torch.nn.functional.embedding(items, table, sparse=True)`.

    Args:
        next_item_loss: The next-item loss.
        skip_head: The skip head, or None; for a `CombinedHead`, its heads.

    Raises:
        ValueError: A loss has no such attribute.

    Examples:
        >>> from skipcl_lightning.heads import SampledSoftmax
        >>> loss = SampledSoftmax(8)
        >>> use_sparse_gradients(loss, None)
        >>> loss.sparse_gradients
        True
    """
    for argument, part in _given_the_table(next_item_loss, skip_head):
        if not hasattr(part, "sparse_gradients"):
            raise ValueError(
                f"`{argument}` must be able to leave sparse gradients beside `sparse_item_table`, got "
                f"{type(part).__name__}, which has none. Use `SampledSoftmax`, or a head that looks up "
                "rows only."
            )
        vars(part)["sparse_gradients"] = True


def _given_the_table(
    next_item_loss: nn.Module, skip_head: nn.Module | None
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the losses that get the item table, with the name of their argument."""
    yield "next_item_loss", next_item_loss
    for head in skip_head.heads if isinstance(skip_head, CombinedHead) else [skip_head]:
        if head is not None and getattr(head, "uses_item_table", False):
            yield "skip_head", head
