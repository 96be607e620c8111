"""How a module and a checkpoint are fitted to each other: items, content and transitions."""

from collections.abc import Iterable, Mapping
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from skipcl_lightning._files import check_weights, named_in_errors, open_checkpoint
from skipcl_lightning.data import ItemFeatures, SessionDataModule, SessionEncoder
from skipcl_lightning.model import ItemTower, Transitions, read_transitions
from skipcl_lightning.module.checkpoint import (
    fingerprint_counts,
    grow_state,
    load_encoder,
    load_list,
    match_encoder,
    num_stored_items,
)
from skipcl_lightning.module.growth import first_rows

if TYPE_CHECKING:
    from skipcl_lightning.module.skipcl_module import SkipCLModule

__all__ = [
    "build_tower",
    "check_context_sizes",
    "check_training_state",
    "count_transitions",
    "read_for_training",
    "restore",
]


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


def check_training_state(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Raise if a checkpoint lacks what Lightning restores next, or has something else in its place.

    Args:
        trainer: The trainer that runs.
        checkpoint: What it has read.

    Raises:
        ValueError: The state of the optimizers, schedules, callbacks or loops is missing or no such state.
    """
    fits = trainer.state.fn == TrainerFn.FITTING
    for name in ("optimizer_states", "lr_schedulers") if fits else ():
        if name not in checkpoint:
            raise ValueError(
                f"`{name}` must be in a checkpoint from which a run goes on, got the weights alone. Begin "
                "another run with them: `SkipCLModule.init_from`, or `skipcl fit --init_from`."
            )
        if any(not isinstance(one, dict) for one in checkpoint[name]):
            raise ValueError(
                f"`{name}` must be dictionaries, got others. Take another checkpoint of the run."
            )
    for state in checkpoint["lr_schedulers"] if fits else ():
        _check_schedule(state)
    if not all(isinstance(one, dict) for one in checkpoint.get("callbacks", {}).values()):
        raise ValueError("`callbacks` must be dictionaries, got others. Take another checkpoint of the run.")
    if trainer.state.fn is not None and "loops" in checkpoint:
        name = f"{trainer.state.fn.value}_loop"
        loop = getattr(trainer, name)
        before = loop.state_dict()
        # Lightning loads it again, but with errors that do not name the file.
        loop.load_state_dict(checkpoint["loops"][name])
        _check_numbers(before, loop.state_dict())


def _check_schedule(state: Mapping[str, Any]) -> None:
    numbers = [state.get(name, 0) for name in ("last_epoch", "_step_count")]
    numbers += [*state.get("base_lrs", ()), *state.get("_last_lr", ())]
    if not all(isinstance(one, int | float) for one in numbers):
        raise ValueError(
            f"`lr_schedulers` must hold numbers, got {numbers!r}. Take another checkpoint of the run."
        )


def _check_numbers(known: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for name, value in known.items():
        if isinstance(value, dict):
            _check_numbers(value, found[name])
        elif isinstance(value, int) and not isinstance(found[name], int):
            raise ValueError(  # noqa: TRY004 - the argument is a file
                f"`{name}` must be an integer in the state of a loop, got {found[name]!r}. Take another "
                "checkpoint of the run."
            )


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
    module.encoder = load_encoder(checkpoint, module.encoder, module.num_items, may_grow=fits)
    old_items = num_stored_items(checkpoint) or module.num_items
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
    grow_state(state, module.state_dict(), old_items, module.num_items)


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
