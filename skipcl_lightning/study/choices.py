"""What a study may compare, by name: data sets, backbones, and heads with their settings."""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import polars as pl
from torch import nn

from skipcl_lightning._settings import PartSettings, build_part
from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.data import (
    SessionDataModule,
    read_lfm1k,
    read_lfm2b,
    read_movielens,
    read_mssd,
    read_streaming_history,
    simulate_sessions,
)
from skipcl_lightning.evaluation import Baseline, LastItemMarkov, SessionKNN
from skipcl_lightning.heads import SKIP_HEADS

__all__ = [
    "BASELINES",
    "EMBEDDING_SIZE",
    "INPUT_SUFFIX",
    "PLAIN",
    "VARIANTS",
    "Choice",
    "Recipe",
    "Variant",
    "backbone_names",
    "build_backbone",
    "find_recipe",
    "find_variant",
    "make_data",
]

EMBEDDING_SIZE = 64
# Small, so that many seeds take a day; the others have their own defaults.
_SMALL: Mapping[str, Any] = MappingProxyType({"num_layers": 1, "dropout": 0.1})
_SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType({"SASRec": _SMALL, "BERT4Rec": _SMALL})
Choice = Literal["transition_weight", "skip_penalty"]
PLAIN = "none"
INPUT_SUFFIX = "+input"


@dataclass(frozen=True)
class Recipe:
    """The settings with which a data set is made and trained.

    `simulation` holds the settings of `simulate_sessions`; None for a real log, which is read from a path.
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


# The filters and the length of the ready configurations; learning rate and epochs are not tuned.
_LASTFM = Recipe(epochs=20, learning_rate=3e-3, max_length=50, min_session_length=5, min_item_count=5)
_RECIPES: Mapping[str, Recipe] = MappingProxyType(
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
        "mssd": Recipe(epochs=15, learning_rate=3e-3, min_session_length=5, min_item_count=5),
        "lfm2b": _LASTFM,
        "lfm1k": _LASTFM,
    }
)
# Ratings of 1 and 2 count as skips, 3 as listened to.
_READERS: Mapping[str, Callable[[list[Path]], pl.LazyFrame]] = MappingProxyType(
    {
        "ml-100k": read_movielens,
        "streaming": read_streaming_history,
        "mssd": read_mssd,
        "lfm2b": read_lfm2b,
        "lfm1k": read_lfm1k,
    }
)


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a simulated data set, or of a real one with its path (`ml-100k=FILE`)."""
    title, separator, source = name.partition("=")
    if title not in _RECIPES:
        known = ", ".join(key if recipe.simulation else f"{key}=PATH" for key, recipe in _RECIPES.items())
        raise ValueError(f"`datasets` must be among {known}, got {name!r}.")
    recipe = _RECIPES[title]
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

    Raises:
        ValueError: The name is unknown, or the recipe's filters leave fewer than two items.
    """
    recipe = find_recipe(name)
    if recipe.simulation:
        simulation = dict(recipe.simulation) | ({} if sessions is None else {"num_sessions": sessions})
        log = simulate_sessions(**simulation, seed=seed)
    else:
        title, _, source = name.partition("=")
        log = _READERS[title](_paths(source))
    data = SessionDataModule(
        log,
        batch_size=recipe.batch_size,
        max_length=recipe.max_length,
        min_session_length=recipe.min_session_length,
        min_item_count=recipe.min_item_count,
        **(settings or {}),
    )
    if data.num_items < 2:
        raise ValueError(
            f"`datasets` must hold logs with at least 2 items of {recipe.min_item_count} or more plays, in "
            f"sessions of {recipe.min_session_length} or more, got {data.num_items} in {name!r}. Give a "
            "larger part of the log."
        )
    return data


def _paths(source: str) -> list[Path]:
    return [Path(part) for part in source.split(os.pathsep)]


def backbone_names() -> list[str]:
    """Return the backbones of the study, which are built from a size and perhaps a length."""
    # A wrapper of another library's model has `causal` as an argument.
    return [name for name, kind in BACKBONES.items() if isinstance(getattr(kind, "causal", None), bool)]


def build_backbone(name: str, max_length: int) -> nn.Module:
    """Return a backbone that sees at most `max_length` items."""
    if name not in backbone_names():
        raise ValueError(
            f"`backbones` must be among {', '.join(backbone_names())}, got {name!r}. Others need settings "
            "that the study does not have."
        )
    kind = BACKBONES[name]
    settings = {"embedding_size": EMBEDDING_SIZE, **_SETTINGS.get(name, {})}
    if "max_length" in inspect.signature(kind).parameters:
        # A bidirectional backbone also has a place for the mask token.
        settings["max_length"] = max_length + (0 if getattr(kind, "causal", True) else 1)
    return build_part("backbone", {"name": name, "settings": settings}, BACKBONES)


@dataclass(frozen=True)
class Variant:
    """A change of the plain model.

    Args:
        parts: The heads, each with `name` and `settings` except the weight; none for the plain model.
        feedback_input: Whether the backbone sees the feedback of past items.
        data_settings: Additional settings of the data module, for mined items.
        chosen: The module's settings that are chosen on the validation set after the training, in this order.
            Variants that differ in nothing else share one training.
        baseline: A baseline that takes the model's place; None for a model.
    """

    parts: tuple[Mapping[str, Any], ...] = ()
    feedback_input: bool = False
    data_settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    chosen: tuple[Choice, ...] = ()
    baseline: Callable[[SessionDataModule], Baseline] | None = None

    def build_head(self, weight: float) -> nn.Module | None:
        """Return the head, or the sum of several, each with the weight λ; None without parts."""
        weighted: list[PartSettings] = [
            {"name": part["name"], "settings": {**part["settings"], "weight": weight}} for part in self.parts
        ]
        if not weighted:
            return None
        if len(weighted) == 1:
            return build_part("head", weighted[0], SKIP_HEADS)
        return build_part("head", {"name": "CombinedHead", "settings": {"heads": weighted}}, SKIP_HEADS)


def _part(name: str, **settings: Any) -> Mapping[str, Any]:
    return MappingProxyType({"name": name, "settings": MappingProxyType(settings)})


_SESSION, _PAST, _BATCH = (
    _part("SkipInfoNCE", negatives=negatives) for negatives in ("session", "past", "batch")
)
_PREDICTION = _part("SkipPrediction")

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        PLAIN: Variant(),
        "session": Variant((_SESSION,)),
        "past": Variant((_PAST,)),
        "batch": Variant((_BATCH,)),
        "session+batch": Variant((_SESSION, _BATCH)),
        "mined": Variant(
            (_SESSION,), data_settings=MappingProxyType({"mined_negatives": 4, "mined_positives": 2})
        ),
        "unlikelihood": Variant((_part("SkipUnlikelihood"),)),
        "softmax": Variant((_part("SkipSoftmax"),)),
        "bpr": Variant((_part("SkipMargin", loss="bpr"),)),
        "hinge": Variant((_part("SkipMargin", loss="hinge"),)),
        "opposing": Variant((_part("OpposingSequences"),)),
        "prediction": Variant((_PREDICTION,)),
        "prediction+penalty": Variant((_PREDICTION,), chosen=("skip_penalty",)),
        "prediction+counts+penalty": Variant((_PREDICTION,), chosen=("transition_weight", "skip_penalty")),
    }
)


# Their figures stand beside those of each backbone.
BASELINES: Mapping[str, Variant] = MappingProxyType(
    {"LastItemMarkov": Variant(baseline=LastItemMarkov), "SessionKNN": Variant(baseline=SessionKNN)}
)


def find_variant(name: str) -> Variant:
    """Return a variant or a baseline by its name; `+input` after a variant adds past feedback as an input."""
    if name in BASELINES:
        return BASELINES[name]
    head = name.removesuffix(INPUT_SUFFIX)
    if head not in VARIANTS:
        raise ValueError(
            f"`variants` must be among {', '.join(VARIANTS)}, each also with {INPUT_SUFFIX!r}, or "
            f"{', '.join(BASELINES)}, got {name!r}."
        )
    return replace(VARIANTS[head], feedback_input=name.endswith(INPUT_SUFFIX))
