"""Losses that only look rows of the item table up, so that its gradient may hold these rows alone."""

from collections.abc import Iterator

from torch import nn

from skipcl_lightning.heads.combined import CombinedHead

__all__ = ["only_looks_up", "use_sparse_gradients"]


def only_looks_up(next_item_loss: nn.Module, skip_head: nn.Module | None) -> bool:
    """Whether losses do nothing with the item table but look rows of it up.

    Args:
        next_item_loss: The one.
        skip_head: The other, or None; of a `CombinedHead` its heads.

    Returns:
        Whether all that are given the table have the attribute of `use_sparse_gradients`.

    Examples:
        >>> from skipcl_lightning.heads import FullSoftmax, SampledSoftmax
        >>> only_looks_up(SampledSoftmax(8), None), only_looks_up(FullSoftmax(), None)
        (True, False)
    """
    return all(hasattr(part, "sparse_gradients") for _, part in _given_the_table(next_item_loss, skip_head))


def use_sparse_gradients(next_item_loss: nn.Module, skip_head: nn.Module | None) -> None:
    """Tell losses that are given the item table to leave it sparse gradients.

    A loss of your own that can do so has an attribute `sparse_gradients`, False at first; where it is True
    every use of the table goes through `torch.nn.functional.embedding(items, table, sparse=True)`.

    Args:
        next_item_loss: The one.
        skip_head: The other, or None; of a `CombinedHead` its heads.

    Raises:
        ValueError: One has no such attribute.

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
    """Losses by the argument they came as."""
    yield "next_item_loss", next_item_loss
    for head in skip_head.heads if isinstance(skip_head, CombinedHead) else [skip_head]:
        if head is not None and getattr(head, "uses_item_table", False):
            yield "skip_head", head
