"""Losses that look up rows of the item table so that its gradient holds these rows alone."""

from torch import nn

from skipcl_lightning.heads.combined import CombinedHead

__all__ = ["use_sparse_gradients"]


def use_sparse_gradients(argument: str, part: nn.Module) -> None:
    """Tell a loss that is given the item table to leave it sparse gradients.

    A loss of your own that can do so has an attribute ``sparse_gradients``, False at first; where it is True
    every use of the table goes through ``torch.nn.functional.embedding(items, table, sparse=True)``.

    Args:
        argument: What the caller knows the part by.
        part: The loss; a ``CombinedHead`` passes it on to those of its heads that use the table.

    Raises:
        ValueError: It has no such attribute.

    Example:
        >>> from skipcl_lightning.heads import SampledSoftmax
        >>> loss = SampledSoftmax(8)
        >>> use_sparse_gradients("next_item_loss", loss)
        >>> loss.sparse_gradients
        True
    """
    if isinstance(part, CombinedHead):
        for head in part.heads:
            if getattr(head, "uses_item_table", False):
                use_sparse_gradients(argument, head)
        return
    if not hasattr(part, "sparse_gradients"):
        raise ValueError(
            f"`{argument}` must be able to leave sparse gradients beside `sparse_item_table`, got "
            f"{type(part).__name__}, which has none. Use `SampledSoftmax`, or a head that looks up rows only."
        )
    vars(part)["sparse_gradients"] = True
