"""The data sets of the study: simulated regimes by name, and real logs by name and path."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl

from skipcl_lightning.data import (
    SessionDataModule,
    read_movielens,
    read_mssd,
    read_streaming_history,
    simulate_sessions,
)

__all__ = ["RECIPES", "Recipe", "find_recipe", "make_data"]


@dataclass(frozen=True)
class Recipe:
    """The settings with which a data set is made and trained.

    Args:
        epochs: Epochs of a training.
        learning_rate: Learning rate of AdamW.
        max_length: The largest number of items that a model sees.
        batch_size: Sessions in a batch.
        min_session_length: Shorter sessions are left out.
        min_item_count: Rarer items are left out.
        simulation: The settings of `simulate_sessions`; None for a real log, which is read from a path.
    """

    epochs: int
    learning_rate: float
    max_length: int = 20
    batch_size: int = 128
    min_session_length: int = 3
    min_item_count: int = 1
    simulation: Mapping[str, Any] | None = None


def _simulated(**settings: Any) -> Recipe:
    simulation = {"num_sessions": 4000, "max_length": 20, **settings}
    return Recipe(epochs=8, learning_rate=4e-3, simulation=simulation)


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "dense": _simulated(num_items=1000),
        "sparse": _simulated(num_sessions=2500, num_items=5000, num_moods=50),
        "high_skip": _simulated(num_items=1000, skip_bias=1.5),
        "ml-100k": Recipe(
            epochs=40,
            learning_rate=3e-3,
            max_length=50,
            batch_size=64,
            min_session_length=5,
            min_item_count=5,
        ),
        "streaming": Recipe(epochs=15, learning_rate=3e-3, min_session_length=5),
        "mssd": Recipe(epochs=15, learning_rate=3e-3, min_session_length=5),
    }
)


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a data set.

    Args:
        name: A simulated regime, or a real data set with its path, such as `ml-100k=ratings.parquet`.

    Returns:
        The recipe.

    Raises:
        ValueError: There is no such data set, a real one has no existing path, or a simulated one has a path.

    Examples:
        >>> find_recipe("sparse").epochs
        8
        >>> find_recipe("mssd")
        Traceback (most recent call last):
            ...
        ValueError: `datasets` must give the path of 'mssd', got none. Write `mssd=PATH`.
    """
    title, separator, source = name.partition("=")
    if title not in RECIPES:
        known = ", ".join(key if recipe.simulation else f"{key}=PATH" for key, recipe in RECIPES.items())
        raise ValueError(f"`datasets` must be among {known}, got {name!r}.")
    recipe = RECIPES[title]
    if recipe.simulation:
        if separator:
            raise ValueError(f"`datasets` must give no path of {title!r}, got {name!r}. It is simulated.")
        return recipe
    if not source:
        raise ValueError(f"`datasets` must give the path of {title!r}, got none. Write `{title}=PATH`.")
    for path in _paths(source):
        if not path.exists():
            raise ValueError(f"`datasets` must give a path of {title!r} that exists, got {str(path)!r}.")
    return recipe


def make_data(
    name: str, seed: int, sessions: int | None = None, settings: Mapping[str, Any] | None = None
) -> SessionDataModule:
    """Return the data of a run.

    Args:
        name: As for `find_recipe`; several paths of one data set are separated as in `PATH`.
        seed: Seed of a simulated log; a real one is equal for all seeds.
        sessions: Sessions of a simulated log; None for the recipe's number.
        settings: Settings of the data module beside the recipe's.

    Returns:
        The data module.

    Raises:
        ValueError: There is no such data set or path.

    Examples:
        >>> make_data("dense", seed=0, sessions=30).num_items > 100
        True
    """
    recipe = find_recipe(name)
    if recipe.simulation:
        simulation = dict(recipe.simulation) | ({} if sessions is None else {"num_sessions": sessions})
        log = simulate_sessions(**simulation, seed=seed)
    else:
        title, _, source = name.partition("=")
        log = _READERS[title](_paths(source))
    return SessionDataModule(
        log,
        batch_size=recipe.batch_size,
        max_length=recipe.max_length,
        min_session_length=recipe.min_session_length,
        min_item_count=recipe.min_item_count,
        **(settings or {}),
    )


def _paths(source: str) -> list[Path]:
    return [Path(part) for part in source.split(os.pathsep)]


# Ratings of 1 and 2 count as skips, 3 as listened to.
_READERS: Mapping[str, Callable[[list[Path]], pl.LazyFrame]] = MappingProxyType(
    {"ml-100k": read_movielens, "streaming": read_streaming_history, "mssd": read_mssd}
)
