"""Protocols of the modules and data that callbacks need, and their checks."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.evaluation import QueryModel
from skipcl_lightning.heads import CombinedHead
from skipcl_lightning.module import SkipCLModule

__all__ = [
    "SessionData",
    "WatchedModule",
    "named_heads",
    "plain_scores",
    "skipcl_parts",
    "watched_data",
    "watched_module",
]


class WatchedModule(QueryModel, Protocol):
    """Protocol of a LightningModule that callbacks can watch, such as `SkipCLModule`.

    Like any `QueryModel` of `skipcl_lightning.evaluation`, it has item embeddings `item_table` [V + 1, D],
    whose row 0 is padding, and `session_query(batch)` [B, D], the query of each session after all its items.
    A score is the inner product of a query with a row.

    Its loaders yield `SessionBatch`; validation and test batches have targets. Optional parts:

    - `skip_head`: its `weight` is λ and its `temperature` is τ;
    - `ties`, `exclude_seen` and `retired`: how targets are ranked, as in `SkipCLModule`;
    - a validation or test step that returns `{"ranks": [B]}`, the ranks of the batch's targets. Callbacks
      then do not rank the targets again.
    """


class SessionData(Protocol):
    """Protocol of a LightningDataModule that knows external ids, such as `SessionDataModule`.

    `session_index` of its batches is an index into `session_ids`.
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
    """Return the module if it has what a callback needs."""
    _check_parts("model", module, ("item_table", "session_query"), callback, "WatchedModule")
    return cast("WatchedModule", module)


def watched_data(trainer: Trainer, callback: object) -> SessionData:
    """Return the data module if it has what a callback needs."""
    data = getattr(trainer, "datamodule", None)
    _check_parts("datamodule", data, ("vocabulary", "session_ids"), callback, "SessionData")
    return cast("SessionData", data)


def skipcl_parts(
    trainer: Trainer, module: LightningModule, callback: object
) -> tuple[SkipCLModule, SessionDataModule]:
    """Return module and data module if they are the library's own."""
    data = getattr(trainer, "datamodule", None)
    if not isinstance(module, SkipCLModule) or not isinstance(data, SessionDataModule):
        raise TypeError(
            f"`{type(callback).__name__}` must be used with a SkipCLModule and a SessionDataModule, got "
            f"{type(module).__name__} and {type(data).__name__}. Leave it out of the callbacks."
        )
    return module, data


def plain_scores(module: WatchedModule) -> AbstractContextManager[None]:
    """Return a context without `skip_penalty`, in which the item table holds the embeddings alone."""
    at_penalty = getattr(module, "at_skip_penalty", None)
    return nullcontext() if at_penalty is None else cast("AbstractContextManager[None]", at_penalty(0.0))


def named_heads(module: object) -> dict[str, nn.Module]:
    """Return the skip heads of a module by the suffix of their log keys; empty if there is none.

    The suffix is `""` for a single head, `/<its class>` for a part of a `CombinedHead`.
    """
    head = getattr(module, "skip_head", None)
    if head is None:
        return {}
    if isinstance(head, CombinedHead):
        return {f"/{name}": part for name, part in head.named_heads().items()}
    return {"": head}


def _check_parts(argument: str, value: object, names: Sequence[str], callback: object, protocol: str) -> None:
    missing = ", ".join(f"`{name}`" for name in names if not hasattr(value, name))
    if missing:
        raise TypeError(
            f"`{argument}` must have {' and '.join(f'`{name}`' for name in names)} for "
            f"{type(callback).__name__}, got {type(value).__name__} without {missing}. "
            f"`skipcl_lightning.callbacks.{protocol}` says what they are."
        )
