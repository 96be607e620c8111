"""Checkpoints that load without data or arguments, and how one is fitted to a module.

Lightning keeps a module's plain arguments but not its modules, and item indices mean nothing without the
vocabulary. So a checkpoint holds parts and vocabulary as plain values.
"""

import hashlib
from collections.abc import Iterable, Mapping
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from skipcl_lightning._files import check_weights, named_in_errors, open_checkpoint
from skipcl_lightning._settings import describe_part
from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.data import ItemFeatures, ItemVocabulary, SessionDataModule, SessionEncoder
from skipcl_lightning.data.prepare.inputs import CHECKPOINT_KEY
from skipcl_lightning.heads import NEXT_ITEM_LOSSES, SKIP_HEADS
from skipcl_lightning.model import ItemTower, Transitions, read_transitions
from skipcl_lightning.module.growth import first_rows

if TYPE_CHECKING:
    from skipcl_lightning.module.skipcl_module import SkipCLModule

__all__ = [
    "build_tower",
    "check_context_sizes",
    "count_transitions",
    "describe_parts",
    "fingerprint_counts",
    "holds_vocabulary",
    "load_list",
    "match_context",
    "match_encoder",
    "read_for_training",
    "read_setting",
    "refuse_other_items",
    "restore",
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


def _load_encoder(
    checkpoint: Mapping[str, Any], known: SessionEncoder | None, num_items: int, *, may_grow: bool
) -> SessionEncoder | None:
    """Return the encoder with the vocabulary of a checkpoint, or `known`, to which it is compared.

    Where it `may_grow`, the module may know more items, behind those of the checkpoint.
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


def _num_stored_items(checkpoint: Mapping[str, Any]) -> int | None:
    """Return the number of items of a checkpoint; None for one without a vocabulary."""
    state = checkpoint.get(CHECKPOINT_KEY, {}).get("encoder")
    return None if state is None else len(state["vocabulary"]["ids"])


def load_list(checkpoint: Mapping[str, Any], name: str) -> list[Any]:
    """Return a list of `save_encoder`, such as `growth`; empty for a checkpoint without."""
    return list(checkpoint.get(CHECKPOINT_KEY, {}).get(name, ()))


def _grow_state(state: dict[str, Tensor], own: Mapping[str, Tensor], old_items: int, num_items: int) -> None:
    """Append the rows of the module's new items, which `own` has, to the state of a checkpoint."""
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


def read_for_training(module: "SkipCLModule", path: str | Path, data: SessionDataModule) -> dict[str, Any]:
    """Return a checkpoint that fits a module and the data, before a training.

    Args:
        module: The module; its items become those of the data.
        path: The checkpoint.
        data: The sessions to train on.

    Raises:
        OSError: There is no such file.
        ValueError: The file is damaged or another program's, or the checkpoint has other items than the data,
            another context or other weights than the module.
    """
    check_context_sizes(module.model.context_sizes, data.encoder)
    module.encoder = match_encoder(data.encoder, module.encoder, module.num_items)
    with named_in_errors(path):
        checkpoint = open_checkpoint(path)
        restore(module, checkpoint, data, fits=True)
        module.grown_from = None
        count_transitions(module, data)
        checkpoint["state_dict"].update(_transition_state(module))
        check_weights(checkpoint["state_dict"], module)
    return checkpoint


def restore(module: "SkipCLModule", checkpoint: dict[str, Any], data: object, *, fits: bool) -> None:
    """Fit a checkpoint and a module to each other, before the state dict is loaded.

    Args:
        module: The module.
        checkpoint: What Lightning has read; changed in place.
        data: The data module, if there is one.
        fits: Whether a training follows. Then a module with more items appends their rows to the checkpoint.

    Raises:
        ValueError: The checkpoint has other items than the data or the module.
    """
    module.encoder = _load_encoder(checkpoint, module.encoder, module.num_items, may_grow=fits)
    old_items = _num_stored_items(checkpoint) or module.num_items
    growth = load_list(checkpoint, "growth") or [old_items]
    extended = old_items in module.growth
    module.growth = growth if old_items == module.num_items else [*growth, module.num_items]
    state: dict[str, Tensor] | None = checkpoint.get("state_dict")
    if state is None:  # Lightning has loaded sharded weights already.
        return
    module.model.make_room(name.removeprefix("model.") for name in state)
    _load_content(module, checkpoint, state, data)
    _load_transitions(module, checkpoint, state, old_items, fits=fits)
    if old_items == module.num_items:
        return
    module.grown_from = old_items
    table, own = state["model.item_embedding.weight"], module.model.item_embedding.weight
    # Not those of `extend_items`; and torch has an error for another size.
    if not extended and table.shape[1:] == own.shape[1:]:
        has_tower = module.model.item_tower is not None  # then a new item is what its content says
        rows = 0 if has_tower else first_rows(table, module.encoder, data, module.target_rule).to(own)
        own.data[old_items + 1 :] = rows
    _grow_state(state, module.state_dict(), old_items, module.num_items)


def _load_content(
    module: "SkipCLModule", checkpoint: dict[str, Any], state: dict[str, Tensor], data: object
) -> None:
    """Make a tower for the content that a checkpoint holds; the data has that of new items."""
    columns = checkpoint.get(module.CHECKPOINT_HYPER_PARAMS_KEY, {}).get("item_features")
    if columns is None:
        return
    start = "model.item_tower."
    names = [one["name"] for one in columns if "values" in one]
    codes = {name: state[f"{start}codes_{place}"] for place, name in enumerate(names)}
    features = ItemFeatures.from_rows(columns, state[f"{start}numbers"], codes)
    grows = len(features.numbers) <= module.num_items
    if not grows and columns == module.item_columns:
        return
    if grows and module.encoder is not None:
        features = features.extended(getattr(data, "content_table", None), module.encoder.vocabulary)
    tower = build_tower(features, module.num_items, module.model.embedding_size)
    module.item_columns = features.describe()
    module.model.item_tower = tower.to(module.device)
    state.update({start + name: buffer for name, buffer in tower.named_buffers()})


def count_transitions(module: "SkipCLModule", data: object) -> None:
    """Count the transitions of the training set, unless they are not wanted or counted already.

    Args:
        module: The module.
        data: The data module, if there is one.

    Raises:
        ValueError: They are wanted, and there is no data module.
    """
    known = module.model.transitions
    if known is None and module.transition_weight == 0:
        return
    if not isinstance(data, SessionDataModule):
        if known is not None:
            return
        raise ValueError(
            f"`transition_weight` must be 0 without a `SessionDataModule`, got "
            f"{module.transition_weight!r}. Its training set is counted."
        )
    log = fingerprint_counts(data.item_counts)
    # Transitions of unknown origin may be of this log.
    if known is not None and (log in module.counted_logs or not module.counted_logs):
        return
    tables = [
        Transitions.from_counts(*data.transition_counts(module.target_rule, order=order)) for order in (1, 2)
    ]
    _set_transitions(module, tables if known is None else map(add, known, tables))
    module.counted_logs.append(log)


def _load_transitions(
    module: "SkipCLModule",
    checkpoint: dict[str, Any],
    state: dict[str, Tensor],
    old_items: int,
    *,
    fits: bool,
) -> None:
    """Make room for the transitions of a checkpoint; add those of a new log to it."""
    tables: list[Any] = read_transitions(state, "model.transitions.")
    if not tables:
        return
    own = module.model.transitions
    tables[1].recode_pairs(old_items, module.num_items)
    logs = load_list(checkpoint, "counted_logs")
    new_logs = [log for log in module.counted_logs if log not in logs]
    if fits and logs and new_logs and own is not None:
        # `setup` has counted the new log, in a module with the old counts or without.
        tables = [*own] if set(logs) <= set(module.counted_logs) else list(map(add, tables, own))
        logs += new_logs
    _set_transitions(module, tables)
    module.counted_logs = logs
    state.update(_transition_state(module))


def _transition_state(module: "SkipCLModule") -> dict[str, Tensor]:
    transitions = module.model.transitions
    return {} if transitions is None else transitions.state_dict(prefix="model.transitions.")


def _set_transitions(module: "SkipCLModule", tables: Iterable[Any]) -> None:
    module.model.transitions = nn.ModuleList(tables).to(module.device)


def build_tower(features: ItemFeatures, num_items: int, size: int) -> ItemTower:
    """Return the tower of some features.

    Args:
        features: The content of the items.
        num_items: V.
        size: D.

    Raises:
        ValueError: The features are of another number of items.
    """
    if len(features.numbers) != num_items + 1:
        raise ValueError(
            f"`item_features` must be those of the {num_items} items, got {len(features.numbers) - 1}. "
            "Take `SessionDataModule.item_features`, or encode the table for the data's vocabulary."
        )
    return ItemTower(features.numbers, features.categories, features.num_categories, size)


def check_context_sizes(given: Mapping[str, int], encoder: SessionEncoder) -> None:
    """Raise unless a module that is about to be trained has exactly the inputs of its data.

    Args:
        given: The module's `context_sizes`.
        encoder: The encoder of the data.

    Raises:
        ValueError: They differ.
    """
    found = {} if encoder.context is None else encoder.context.sizes
    if list(given.items()) != list(found.items()):
        raise ValueError(
            f"`context_sizes` must be the data's {found or None}, got {given or None}. Build the module with "
            "`context_sizes=datamodule.context_sizes`, or leave `context` out of the data module."
        )
