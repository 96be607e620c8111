"""What callbacks ask of a LightningModule and its data, and the error where something is missing."""

from collections.abc import Sequence
from typing import Any, Protocol, cast

from torch import Tensor, nn

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.heads import CombinedHead

__all__ = ["SessionData", "WatchedModule", "named_heads", "watched_data", "watched_module"]


class WatchedModule(Protocol):
    """A LightningModule that callbacks can watch: `SkipCLModule`, or any with these two.

    Its loaders yield `SessionBatch`; those of validation and test with targets. What else it has is used:

    - `skip_head`: its `weight` is λ, its `temperature` τ;
    - `ties` and `exclude_seen`, as `SkipCLModule` has them, say how targets are ranked;
    - a validation or test step that returns `{"ranks": [B]}`, the ranks of the batch's targets, saves a
      callback the ranking.
    """

    @property
    def item_table(self) -> Tensor:
        """[V + 1, D]; row 0 is padding."""
        ...

    def session_query(self, batch: SessionBatch) -> Tensor:
        """[B, D], the sessions as known after all their tracks; scores are products with the table."""
        ...


class SessionData(Protocol):
    """A LightningDataModule that knows external ids: `SessionDataModule`, or any with these two.

    `session_index` of its batches points into `session_ids`.
    """

    @property
    def vocabulary(self) -> Any:
        """The items, an `ItemVocabulary`."""
        ...

    @property
    def session_ids(self) -> Any:
        """External session ids, a polars Series."""
        ...


def watched_module(module: object, callback: object) -> WatchedModule:
    """The module, once it is sure that it has what a callback needs.

    Args:
        module: The LightningModule.
        callback: Who asks.

    Returns:
        The same module.

    Raises:
        TypeError: Something is missing, which the message names.

    Examples:
        >>> watched_module(nn.Linear(2, 2), "RankPlot")
        Traceback (most recent call last):
            ...
        TypeError: `model` must have `item_table` and `session_query` for RankPlot, got Linear without \
`item_table`, `session_query`. `skipcl_lightning.callbacks.WatchedModule` says what they are.
    """
    _check_parts("model", module, ("item_table", "session_query"), callback, "WatchedModule")
    return cast("WatchedModule", module)


def watched_data(data: object, callback: object) -> SessionData:
    """The data module, once it is sure that it has what a callback needs.

    Args:
        data: The LightningDataModule, or None.
        callback: Who asks.

    Returns:
        The same data module.

    Raises:
        TypeError: Something is missing, which the message names.
    """
    _check_parts("datamodule", data, ("vocabulary", "session_ids"), callback, "SessionData")
    return cast("SessionData", data)


def named_heads(module: object) -> dict[str, nn.Module]:
    """The skip heads of a module, those within a `CombinedHead` one by one.

    Args:
        module: Any module.

    Returns:
        By what a log key ends with: nothing for a single head, `/<its class>` within a sum; empty without.

    Examples:
        >>> named_heads(nn.Linear(2, 2))
        {}
    """
    head = getattr(module, "skip_head", None)
    if head is None:
        return {}
    if isinstance(head, CombinedHead):
        return {f"/{name}": part for name, part in head.named_heads().items()}
    return {"": head}


def _check_parts(argument: str, value: object, names: Sequence[str], callback: object, protocol: str) -> None:
    missing = [name for name in names if not hasattr(value, name)]
    if missing:
        asker = callback if isinstance(callback, str) else type(callback).__name__
        raise TypeError(
            f"`{argument}` must have {' and '.join(f'`{name}`' for name in names)} for {asker}, got "
            f"{type(value).__name__} without {', '.join(f'`{name}`' for name in missing)}. "
            f"`skipcl_lightning.callbacks.{protocol}` says what they are."
        )
