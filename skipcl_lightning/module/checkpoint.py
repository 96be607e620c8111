"""Checkpoints that load without data or arguments, and how one is fitted to a module.

Lightning keeps a module's plain arguments but not its modules, and item indices mean nothing without the
vocabulary. So a checkpoint holds parts and vocabulary as plain values.
"""

import hashlib
from collections.abc import Iterable, Mapping
from io import BytesIO
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from skipcl_lightning._checks import check_flag
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
    "DIALS",
    "build_tower",
    "check_inputs",
    "check_settings",
    "count_transitions",
    "describe_parts",
    "fingerprint_counts",
    "load_dials",
    "load_list",
    "match_context",
    "match_encoder",
    "read_for_training",
    "refuse_other_items",
    "restore",
    "save_settings",
]

# What can be set anew after training.
DIALS = ("transition_weight", "skip_penalty", "exclude_seen")


def save_settings(module: "SkipCLModule", checkpoint: dict[str, Any]) -> None:
    """Write the settings, parts and vocabulary of a module into a checkpoint, as plain values.

    Args:
        module: The module.
        checkpoint: The dictionary that Lightning is about to write.
    """
    key = module.CHECKPOINT_HYPER_PARAMS_KEY
    # They may have been chosen since the module was made.
    dials = {name: getattr(module, name) for name in DIALS if name in checkpoint[key]}
    settings = {**checkpoint[key], **describe_parts(module), **dials, "item_features": module.item_columns}
    # A file with the modules that a subclass's own arguments may hold could not be read again.
    checkpoint[key] = {
        name: _plain(value) for name, value in settings.items() if not isinstance(value, nn.Module)
    }
    encoder, seed = module.encoder, module.batch_seed
    checkpoint[CHECKPOINT_KEY] = {
        "encoder": None if encoder is None else encoder.state_dict(),
        "module_class": type(module).__qualname__,
        "growth": list(module.growth),
        "counted_logs": list(module.counted_logs),
        **({} if seed is None else {"batch_seed": [seed]}),
    }


def load_dials(module: "SkipCLModule", settings: Mapping[str, Any]) -> None:
    """Give a module the settings that can be chosen after training, as a checkpoint holds them.

    Args:
        module: The module, with the parts and transitions of the checkpoint.
        settings: The settings in the checkpoint; a module keeps its own of those that are missing.

    Raises:
        TypeError: A value has another type.
        ValueError: A value is out of range.
    """
    before = {name: getattr(module, name) for name in DIALS}
    if module.model.transitions is not None:
        module.transition_weight = settings.get("transition_weight", module.transition_weight)
    if module.predicts_skips:
        module.skip_penalty = settings.get("skip_penalty", module.skip_penalty)
    module.exclude_seen = settings.get("exclude_seen", module.exclude_seen)
    check_flag("exclude_seen", module.exclude_seen)
    if module._trainer is None:
        return
    for name, value in before.items():
        if value != getattr(module, name):
            rank_zero_info(f"`{name}` is {getattr(module, name)}, as the checkpoint has it; it was {value}.")


def describe_parts(module: "SkipCLModule") -> dict[str, Any]:
    """Return the name and settings of each part of a module, by argument name.

    The backbone is None if `build_backbone` makes it again.
    """
    backbone, head = module.model.backbone, module.skip_head
    return {
        "backbone": None if module.builds_backbone else describe_part(backbone, BACKBONES),
        "skip_head": None if head is None else describe_part(head, SKIP_HEADS),
        "next_item_loss": describe_part(module.next_item_loss, NEXT_ITEM_LOSSES),
    }


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise unless a checkpoint with some settings can be read again, before a training takes its time.

    Args:
        settings: The hyperparameters of a module.

    Raises:
        TypeError: One is neither a plain value nor of a class that torch may load; it is named.
    """
    for name, value in settings.items():
        if isinstance(value, nn.Module):
            continue
        file = BytesIO()
        try:
            torch.save(_plain(value), file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except Exception as error:
            raise TypeError(
                f"`{name}` must be a plain value, so that a checkpoint can hold it, got {value!r} of type "
                f"{type(value).__name__}. Pass numbers, text, lists or dictionaries, allow the class with "
                f"`torch.serialization.add_safe_globals`, or leave it out: `self.save_hyperparameters(ignore="
                f'["{name}"])` in your own `__init__`.'
            ) from error


def _plain(value: Any) -> Any:
    """Return a setting with Python's own numbers and lists in place of NumPy's and of ranges."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | range):
        return _plain(list(value))
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


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


def load_list(checkpoint: Mapping[str, Any], name: str) -> list[Any]:
    """Return a list of `save_settings`, such as `growth`; empty for a checkpoint without."""
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
        ValueError: The data has other items, or another context.
    """
    match_context(known, data)
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

    A model without an encoder, or without context, fits any data.
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
    check_inputs(module, data)
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
    stored = checkpoint.get(CHECKPOINT_KEY, {}).get("encoder")
    old_items = module.num_items if stored is None else len(stored["vocabulary"]["ids"])
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


def check_inputs(module: "SkipCLModule", data: SessionDataModule) -> None:
    """Raise unless a module that is about to be trained has exactly the inputs of its data.

    Args:
        module: The module.
        data: The data module.

    Raises:
        ValueError: The context differs, or the data has `item_features` and the module has not.
    """
    if data.item_features is not None and module.model.item_tower is None:
        raise ValueError(
            "`item_features` must be given to the module too where the data has them, got None. Build it "
            "with `SkipCLModule(..., item_features=datamodule.item_features)`."
        )
    given, context = module.model.context_sizes, data.encoder.context
    found = {} if context is None else context.sizes
    if list(given.items()) != list(found.items()):
        raise ValueError(
            f"`context_sizes` must be the data's {found or None}, got {given or None}. Build the module with "
            "`context_sizes=datamodule.context_sizes`, or leave `context` out of the data module."
        )
