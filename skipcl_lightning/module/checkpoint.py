"""Checkpoints that load without data or arguments: parts and item vocabulary as plain values.

Lightning keeps a module's plain arguments but not its modules, and item indices mean nothing without the
vocabulary.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skipcl_lightning._files import open_checkpoint
from skipcl_lightning._settings import describe_part
from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.data import ItemVocabulary, SessionEncoder
from skipcl_lightning.data.prepare.inputs import CHECKPOINT_KEY
from skipcl_lightning.heads import NEXT_ITEM_LOSSES, SKIP_HEADS

__all__ = [
    "describe_parts",
    "fingerprint_counts",
    "grow_state",
    "holds_vocabulary",
    "load_encoder",
    "load_list",
    "match_context",
    "match_encoder",
    "num_stored_items",
    "read_setting",
    "refuse_other_items",
    "save_encoder",
]


def describe_parts(
    backbone: nn.Module | None, skip_head: nn.Module | None, next_item_loss: nn.Module
) -> dict[str, Any]:
    """Describe the parts of a module by name and settings.

    Args:
        backbone: The backbone; None if `build_backbone` makes it again.
        skip_head: The skip head, or None.
        next_item_loss: The next-item loss.

    Returns:
        Plain values by argument name.
    """
    return {
        "backbone": None if backbone is None else describe_part(backbone, BACKBONES),
        "skip_head": None if skip_head is None else describe_part(skip_head, SKIP_HEADS),
        "next_item_loss": describe_part(next_item_loss, NEXT_ITEM_LOSSES),
    }


def save_encoder(
    checkpoint: dict[str, Any],
    encoder: SessionEncoder | None,
    module_class: type,
    history: Mapping[str, list[Any]],
) -> None:
    """Add the vocabulary, the name of the module's class and more lists to a checkpoint, as plain values.

    Args:
        checkpoint: The dictionary that Lightning is about to write.
        encoder: The encoder with the vocabulary, or None.
        module_class: The class that is trained.
        history: Lists of plain values by name.
    """
    checkpoint[CHECKPOINT_KEY] = {
        "encoder": None if encoder is None else encoder.state_dict(),
        "module_class": module_class.__qualname__,
        **{name: list(values) for name, values in history.items()},
    }


def read_setting(path: str | Path, name: str, default: Any) -> Any:
    """Return a setting of the module that a checkpoint holds, without reading its weights.

    Args:
        path: The checkpoint.
        name: The name of the setting.
        default: The value for a checkpoint without this setting.

    Returns:
        A plain value.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return open_checkpoint(path, records="settings").get("hyper_parameters", {}).get(name, default)


def holds_vocabulary(path: str | Path) -> bool:
    """Return whether a checkpoint holds an item vocabulary.

    Args:
        path: The checkpoint.

    Returns:
        False for a module that was not fitted with a `SessionDataModule`.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return open_checkpoint(path, records="settings").get(CHECKPOINT_KEY, {}).get("encoder") is not None


def load_encoder(
    checkpoint: Mapping[str, Any], known: SessionEncoder | None, num_items: int, *, may_grow: bool
) -> SessionEncoder | None:
    """Return the encoder with the item vocabulary of a checkpoint.

    Args:
        checkpoint: The dictionary that Lightning has read.
        known: The module's encoder, if it has one.
        num_items: The module's V.
        may_grow: Whether the module may know more items, behind those of the checkpoint.

    Returns:
        `known`, or else the checkpoint's encoder; None if there is neither.

    Raises:
        ValueError: The checkpoint has other items or another context than the data, or another number than
            the module.
    """
    state = checkpoint.get(CHECKPOINT_KEY, {}).get("encoder")
    if state is None:
        return known
    encoder = SessionEncoder.from_state_dict(state)
    if known is not None:
        match_context(encoder, known)
    if may_grow and known is not None and _begins_with(known.vocabulary, encoder.vocabulary):
        encoder = known
    if known is not None and known.vocabulary != encoder.vocabulary:
        refuse_other_items(trained_on=encoder, data=known)
    if len(encoder.vocabulary) != num_items:
        raise ValueError(
            f"`num_items` must be the checkpoint's {len(encoder.vocabulary)}, got {num_items}. "
            "Leave it out, or build the module with the checkpoint's own."
        )
    return known or encoder


def num_stored_items(checkpoint: Mapping[str, Any]) -> int | None:
    """Return the number of items of a checkpoint; None for one without a vocabulary."""
    state = checkpoint.get(CHECKPOINT_KEY, {}).get("encoder")
    return None if state is None else len(state["vocabulary"]["ids"])


def load_list(checkpoint: Mapping[str, Any], name: str) -> list[Any]:
    """Return a list of `save_encoder`, such as `growth`; empty for a checkpoint without."""
    return list(checkpoint.get(CHECKPOINT_KEY, {}).get(name, ()))


def grow_state(state: dict[str, Tensor], own: Mapping[str, Tensor], old_items: int, num_items: int) -> None:
    """Append rows for new items to a state dict.

    Args:
        state: Of a checkpoint with `old_items` items; changed in place.
        own: The state dict of a module with more, whose last rows are appended.
        old_items: V of the checkpoint.
        num_items: V of the module.
    """
    for name, rows in own.items():
        known = state.get(name)
        per_item = len(rows.shape) and len(rows) == num_items + 1
        if per_item and known is not None and known.shape == (old_items + 1, *rows.shape[1:]):
            state[name] = torch.cat([known, rows[old_items + 1 :].to(known)])


def fingerprint_counts(item_counts: Tensor) -> str:
    """Return a digest of the counts of a training set, [V + 1] int64, equal if uncounted items follow."""
    last = int(item_counts.nonzero().max()) if item_counts.any() else 0
    return hashlib.sha256(item_counts[: last + 1].numpy().tobytes()).hexdigest()[:16]


def match_encoder(data: SessionEncoder, known: SessionEncoder | None, num_items: int) -> SessionEncoder:
    """Return the data's encoder, after a check that its items are those of the module.

    Args:
        data: The encoder of the data module.
        known: The module's encoder, if it has one.
        num_items: The module's V.

    Returns:
        `known`, or else that of the data.

    Raises:
        ValueError: The data has other items.
    """
    if known is not None and known.vocabulary != data.vocabulary:
        refuse_other_items(trained_on=known, data=data)
    if len(data.vocabulary) != num_items:
        raise ValueError(
            f"`num_items` must be the data's {len(data.vocabulary)}, got {num_items}. "
            "Build the module with `num_items=datamodule.num_items`."
        )
    return known or data


def match_context(trained_on: SessionEncoder | None, data: SessionEncoder) -> None:
    """Raise unless the codes of the data's context mean to a model what they meant in training.

    Args:
        trained_on: The model's encoder; None, or one without context, fits any data.
        data: The encoder of the data module.

    Raises:
        ValueError: The inputs, or the categories of one, differ.
    """
    if trained_on is None or trained_on.context in (None, data.context):
        return
    raise ValueError(
        f"`context` must be what the model was trained on, {trained_on.context}, got {data.context} with "
        "other inputs or categories. Build the data module with `context=module.encoder.context`."
    )


def refuse_other_items(*, trained_on: SessionEncoder, data: SessionEncoder) -> None:
    """Raise an error that names both vocabularies, and the way out.

    Args:
        trained_on: The encoder of a module.
        data: The encoder of data with another vocabulary.

    Raises:
        ValueError: Always.
    """
    known, found = trained_on.vocabulary, data.vocabulary
    if _begins_with(found, known):
        cure = (
            f"It has {len(found) - len(known)} more: `module.extend_items(data.vocabulary.ids, …)` adds them."
        )
    elif _begins_with(known, found):
        cure = f"It lacks {len(known) - len(found)}: `SessionDataModule(log, vocabulary=module)` has all."
    else:
        cure = "`SessionDataModule(log, vocabulary=module)` numbers a log by the model's items."
    raise ValueError(
        f"`data` must have the items that the model was trained on, got data with {found} for a model "
        f"trained on {known}. {cure}"
    )


def _begins_with(longer: ItemVocabulary, shorter: ItemVocabulary) -> bool:
    return longer.to_series().head(len(shorter)).equals(shorter.to_series())
