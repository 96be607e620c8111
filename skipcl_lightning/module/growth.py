"""New items of a trained model and their first embeddings, and the indices of retired ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import polars as pl
import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_shape
from skipcl_lightning.batch import PADDING_INDEX, TargetRule
from skipcl_lightning.data import ItemVocabulary, SessionDataModule, SessionEncoder
from skipcl_lightning.data.canonical_table import Table
from skipcl_lightning.data.vocabulary import to_ids
from skipcl_lightning.heads.session_head import extend_part
from skipcl_lightning.model import ItemTower

if TYPE_CHECKING:
    from skipcl_lightning.module.skipcl_module import SkipCLModule

__all__ = ["Ids", "NewRows", "extend_module", "first_rows", "mark_retired", "require_encoder"]

Ids = Sequence[str] | Sequence[int] | pl.Series
NewRows = Literal["mean", "nearest", "content"]


def require_encoder(module: "SkipCLModule") -> SessionEncoder:
    """Return the encoder of a module; a `ValueError` if it was not given its item vocabulary."""
    if module.encoder is None:
        raise ValueError(
            "`module` must have its item vocabulary, got one without. Load a checkpoint, fit the module "
            "with a `SessionDataModule`, or set `module.encoder`."
        )
    return module.encoder


def extend_module(
    module: "SkipCLModule",
    new_items: Ids,
    init: NewRows | Tensor,
    data: SessionDataModule | None,
    content: Table | str | Path | None,
) -> bool:
    """Append items to the vocabulary and the weights of a module, as `SkipCLModule.extend_items` says.

    Returns:
        Whether there were new ones.
    """
    encoder = require_encoder(module)
    vocabulary = _extend_vocabulary(encoder.vocabulary, new_items, one_each=isinstance(init, Tensor))
    features = module.item_features
    if features is None and (content is not None or (isinstance(init, str) and init == "content")):
        raise ValueError(
            "`content` must be None, and `init` another than 'content', for a module without "
            f"`item_features`, got {init!r}. Train it with `SkipCLModule(..., item_features=…)`."
        )
    features = None if features is None else features.extended(content, vocabulary)
    rows = _new_rows(module.model.item_embedding.weight, vocabulary, init, data, module.target_rule)
    if not len(rows):
        return False
    for part in (module.skip_head, module.next_item_loss):
        extend_part(part, len(rows))
    module.model.extend_items(rows)
    if features is not None and isinstance(module.model.item_tower, ItemTower):
        module.model.item_tower.set_rows(features.numbers, features.categories)
        module.item_columns = features.describe()
    module.encoder = encoder.replace(vocabulary=vocabulary)
    module.growth.append(module.num_items)
    return True


def mark_retired(module: "SkipCLModule", items: Ids, *, retired: bool) -> None:
    """Mark items of a module as retired, or as no longer retired.

    Raises:
        TypeError: An id has another type than the vocabulary's.
        ValueError: The module has no vocabulary, an id is unknown, or no item would be left.
    """
    indices = _known_indices(require_encoder(module).vocabulary, items).to(module.device)
    before = module.retired
    mask = torch.zeros(module.num_items + 1, dtype=torch.bool, device=module.device)
    mask = (mask if before is None else before).index_fill(0, indices, retired)
    if mask[PADDING_INDEX + 1 :].all():
        raise ValueError(
            f"`items` must leave an item to recommend, got all {module.num_items}. Retire fewer items."
        )
    module.model.retired = mask if mask.any() else None


def _extend_vocabulary(vocabulary: ItemVocabulary, new_items: Ids, *, one_each: bool) -> ItemVocabulary:
    """Return a vocabulary with the new items behind the known ones.

    Args:
        vocabulary: The V known items.
        new_items: Ids; known ones and repeats are ignored.
        one_each: Whether these are refused instead.

    Raises:
        TypeError: An id has another type than the vocabulary's.
        ValueError: An id is known or repeated, but each has a row.
    """
    ids = to_ids("new_items", new_items, vocabulary.dtype)
    extended = vocabulary.extended(ids)
    added = len(extended) - len(vocabulary)
    if one_each and added != len(ids):
        raise ValueError(
            f"`new_items` must be unknown and different where `init` has their rows, got {added} such ids of "
            f"{len(ids)}. Leave the others and their rows out."
        )
    return extended


def _known_indices(vocabulary: ItemVocabulary, items: Ids) -> Tensor:
    """Return the indices of items, [N] int64.

    Args:
        vocabulary: The items.
        items: N ids.

    Raises:
        TypeError: An id has another type than the vocabulary's.
        ValueError: An id is unknown.
    """
    ids = to_ids("items", items, vocabulary.dtype)
    indices = torch.tensor(vocabulary.encode(ids, unknown="ignore"))
    unknown = (indices == PADDING_INDEX).nonzero().flatten().tolist()
    if unknown:
        raise ValueError(
            f"`items` must be in the module's vocabulary, got {ids[unknown[0]]!r} ({len(unknown)} unknown in "
            "all). Leave unknown items out."
        )
    return indices


@torch.no_grad()
def _new_rows(
    table: Tensor,
    vocabulary: ItemVocabulary,
    init: NewRows | Tensor,
    data: SessionDataModule | None,
    rule: TargetRule,
) -> Tensor:
    """Return the first embeddings of new items.

    Args:
        table: [V + 1, D] the embeddings of the known items.
        vocabulary: The V known items and the N new ones behind them.
        init: The argument of `SkipCLModule.extend_items`.
        data: The sessions for `nearest`.
        rule: Which item follows another one.

    Returns:
        [N, D], of the table's dtype and device.

    Raises:
        TypeError: The tensor has no floating-point dtype, or `data` is no data module.
        ValueError: The tensor has another shape or is not finite, `init` is unknown, or `data` is given
            without `nearest` or missing beside it.
    """
    added = len(vocabulary) + 1 - len(table)
    if isinstance(init, Tensor):
        check_shape("init", init, "N D", {"N": added, "D": table.shape[1]}, floating=True)
        if not init.isfinite().all():
            raise ValueError("`init` must be finite, got NaN or infinity. Give each new track a finite row.")
    else:
        check_choice("init", init, get_args(NewRows))
    if (data is None) == (isinstance(init, str) and init == "nearest"):
        raise ValueError(
            "`data` must be given for `init='nearest'` and for nothing else, got "
            f"{'none' if data is None else 'a data module'}. It holds the sessions with the new tracks."
        )
    if isinstance(init, Tensor):
        return init.to(table)
    if init == "content":
        return table.new_zeros(added, table.shape[1])
    mean = table[PADDING_INDEX + 1 :].mean(dim=0).expand(added, -1)
    if data is None:
        return mean.clone()
    if not isinstance(data, SessionDataModule):
        raise TypeError(
            f"`data` must be a SessionDataModule, got {type(data).__name__}. Wrap the log in one."
        )
    return _mean_of_neighbours(table, mean, *_neighbours(data, vocabulary, rule, len(table)))


def first_rows(table: Tensor, encoder: SessionEncoder | None, data: object, rule: TargetRule) -> Tensor:
    """Return the rows of new items for a checkpoint's table: `nearest`, or `mean` without a data module."""
    assert encoder is not None  # noqa: S101 - there are new items
    if isinstance(data, SessionDataModule):
        return _new_rows(table, encoder.vocabulary, "nearest", data, rule)
    return _new_rows(table, encoder.vocabulary, "mean", None, rule)


def _neighbours(
    data: SessionDataModule, vocabulary: ItemVocabulary, rule: TargetRule, first_new: int
) -> tuple[Tensor, Tensor, Tensor]:
    """[P] each: a new item, a known one that it follows or precedes, and how often."""
    indices = torch.tensor(vocabulary.encode(data.vocabulary.to_series(), unknown="ignore"))
    indices = torch.cat([indices.new_zeros(1), indices])
    contexts, followers, counts = data.transition_counts(rule)
    one, other = indices[contexts], indices[followers]
    items, beside = torch.cat([one, other]), torch.cat([other, one])
    wanted = (items >= first_new) & (beside < first_new) & (beside != PADDING_INDEX)
    return items[wanted] - first_new, beside[wanted], counts.repeat(2)[wanted]


def _mean_of_neighbours(
    table: Tensor, otherwise: Tensor, items: Tensor, beside: Tensor, counts: Tensor
) -> Tensor:
    """[N, D] the weighted mean of the rows beside each item; `otherwise` [N, D] without one."""
    items, beside, counts = (values.to(table.device) for values in (items, beside, counts))
    weights = counts.to(table.dtype)
    total = torch.zeros_like(otherwise[:, 0]).index_add_(0, items, weights)
    sums = torch.zeros_like(otherwise).index_add_(0, items, weights[:, None] * table[beside])
    return torch.where(total[:, None] > 0, sums / total.clamp(min=1)[:, None], otherwise)
