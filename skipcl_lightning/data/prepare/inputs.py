"""What a log is prepared with: the context of plays as codes, and the vocabulary of a model or store."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning._files import named_in_errors, open_checkpoint
from skipcl_lightning.data.canonical_table import (
    CANONICAL_COLUMNS,
    check_names,
    count_within,
    describe_columns,
    run_lengths,
)
from skipcl_lightning.data.prepare.sessions import to_microseconds
from skipcl_lightning.data.store.folder import MANIFEST, Manifest, read_column, refuse_damage
from skipcl_lightning.data.vocabulary import ItemVocabulary

__all__ = [
    "BUILT_IN",
    "CHECKPOINT_KEY",
    "MOST_CATEGORIES",
    "ContextEncoder",
    "GivenVocabulary",
    "HasEncoder",
    "NewItems",
    "VocabularySource",
    "check_context",
    "choose_context",
    "context_columns",
    "resolve_vocabulary",
    "to_context",
]

# The number of codes of each input that is no column of the log.
BUILT_IN: Mapping[str, int] = {"gap": 40, "hour": 24, "weekday": 7, "place": 64}
MOST_CATEGORIES = 1000
_TIMED = ("gap", "hour", "weekday")
_HOUR = 3_600_000_000
_DAY = 24 * _HOUR
# 1970-01-01 was a Thursday.
_THURSDAY = 3
# In seconds, two for each doubling of 1 + seconds: 0, 0.4, 1, 1.8, 3, … up to 8.6 days.
_GAP_BOUNDS = 2.0 ** (np.arange(BUILT_IN["gap"]) / 2) - 1
_NAMES = ", ".join(BUILT_IN)

Category = str | int | bool


class ContextEncoder:
    """Turns the context of plays into integer codes; 0 is unknown.

    | input | code |
    |---|---|
    | `gap` | 1 to 40: the time since the session's last play, two codes for each doubling of 1 + seconds |
    | `hour` | 1 to 24: the hour of the day in UTC, from 0 to 23 |
    | `weekday` | 1 to 7: Monday to Sunday in UTC |
    | `place` | 1 to 64: the place in the session, counted from its first play; 64 also for later ones |
    | a column of the log | 1 to n: the categories of the training set in ascending order |

    The first play of a session has no gap. A value that the training set does not have is unknown.

    Args:
        categories: By input, the categories of a column of the log, at most 1,000 texts, integers or
            booleans; None for `gap`, `hour`, `weekday` and `place`.

    Raises:
        TypeError: The categories of an input have several types.
        ValueError: There are none, or too many.

    Examples:
        >>> context = ContextEncoder({"place": None, "gap": None, "shuffle": [False, True]})
        >>> plays = {"session_id": [1, 1, 2], "timestamp": [0, 7, 0], "shuffle": [True, None, False]}
        >>> context.encode(pl.DataFrame(plays)).tolist()
        [[1, 0, 2], [2, 7, 0], [1, 0, 1]]
    """

    def __init__(self, categories: Mapping[str, Sequence[Category] | None]) -> None:
        self.categories: Mapping[str, tuple[Category, ...] | None] = {
            name: _check_categories(name, values) for name, values in categories.items()
        }

    @classmethod
    def fit(cls, names: Sequence[str], tables: Iterable[pl.DataFrame]) -> "ContextEncoder":
        """Learn the categories from the rows of the training set.

        Args:
            names: The inputs.
            tables: Tables with the columns of the log, one after the other.

        Returns:
            The encoder.

        Raises:
            ValueError: A column has no value, too many different ones, or too large an integer.

        Examples:
            >>> ContextEncoder.fit(["device"], [pl.DataFrame({"device": ["tv", "phone", None]})]).sizes
            {'device': 2}
        """
        own = [name for name in names if name not in BUILT_IN]
        found: dict[str, pl.Series] = {}
        for table in tables if own else ():
            for name in own:
                values = _as_category(table[name])
                if values.null_count() > table[name].null_count():
                    raise ValueError(
                        "`context` must name columns whose integers fit into 64 bits with a sign, got "
                        f"{name!r} with {table[name].max()!r}. Cast it to pl.String."
                    )
                values = values.drop_nulls().unique()
                found[name] = values if name not in found else found[name].append(values).unique()
                if len(found[name]) > MOST_CATEGORIES:
                    _refuse_many(name, len(found[name]))
        return cls({name: found[name].sort().to_list() if name in own else None for name in names})

    @property
    def sizes(self) -> dict[str, int]:
        """The number of codes of each input, without 0, in the order of the codes."""
        return {
            name: BUILT_IN[name] if values is None else len(values)
            for name, values in self.categories.items()
        }

    @property
    def columns(self) -> list[str]:
        """The columns of the log from which the codes are made."""
        return context_columns(self.categories)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ContextEncoder) and list(self.categories.items()) == list(
            other.categories.items()
        )

    __hash__ = None  # type: ignore[assignment]  # it holds a dictionary

    def __repr__(self) -> str:
        return f"ContextEncoder({', '.join(f'{name}: {size}' for name, size in self.sizes.items())})"

    def encode(self, table: pl.DataFrame) -> NDArray[np.int16]:
        """Return the codes of plays.

        Args:
            table: The rows of each session together, in the order of listening: `session_id` and `columns`.

        Returns:
            [rows, C] int16 codes, 0 where a value is null or unknown.

        Raises:
            ValueError: A column has another type than in training.
        """
        codes = np.zeros((table.height, len(self.categories)), dtype=np.int16)
        place = count_within(run_lengths(table["session_id"]))
        known, moments = _read_times(table) if "timestamp" in self.columns else (place >= 0, place)
        for number, (name, values) in enumerate(self.categories.items()):
            if values is not None:
                codes[:, number] = _category_codes(table[name], values)
            elif name == "place":
                codes[:, number] = np.minimum(place + 1, BUILT_IN["place"])
            elif name == "hour":
                codes[:, number] = np.where(known, moments // _HOUR % 24 + 1, 0)
            elif name == "weekday":
                codes[:, number] = np.where(known, (moments // _DAY + _THURSDAY) % 7 + 1, 0)
            else:
                both = (place[1:] > 0) & known[1:] & known[:-1]
                codes[1:, number] = np.where(both, _gap_codes(np.diff(moments)), 0)
        return codes

    def state_dict(self) -> dict[str, Any]:
        """Return the categories by input as plain values."""
        return {name: None if values is None else list(values) for name, values in self.categories.items()}


def context_columns(names: Iterable[str]) -> list[str]:
    """Return the columns of a log that context inputs need."""
    names = list(names)
    timed = ["timestamp"] if any(name in _TIMED for name in names) else []
    return [*timed, *(name for name in names if name not in BUILT_IN)]


def check_context(context: Sequence[str] | ContextEncoder, schema: pl.Schema) -> None:
    """Raise unless a log with these columns has the inputs."""
    names = list(context.categories) if isinstance(context, ContextEncoder) else context
    check_names("context", names, kind="input")
    for name in names:
        if name not in BUILT_IN:
            _check_column(name, schema)
        elif name in _TIMED and "timestamp" not in schema:
            raise ValueError(
                f"`context` must not have {name!r} for a log without a column 'timestamp', got "
                f"{describe_columns(schema)}. Read the time of the plays, or leave {name!r} out. A column of "
                "your own needs another name."
            )


def _check_column(name: str, schema: pl.Schema) -> None:
    """Raise unless a log has a column that can be an input."""
    if name in CANONICAL_COLUMNS:
        raise ValueError(
            f"`context` must name {_NAMES} or other columns of the log, got {name!r}, which the log uses "
            "already. Copy the column under another name, if you mean its values."
        )
    dtype = schema.get(name)
    if dtype is None:
        raise ValueError(
            f"`context` must name {_NAMES} or columns of the log, got {name!r} for a log with "
            f"{describe_columns(schema)}. A reader keeps the columns that its `columns` name."
        )
    if not (dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum) or dtype.is_integer()):
        raise ValueError(
            f"`context` must name columns of texts, integers or booleans, got {name!r} of {dtype}. Put "
            f'numbers into ranges: `log.with_columns(pl.col("{name}").cut([...]))`.'
        )


def _check_categories(name: str, values: Sequence[Category] | None) -> tuple[Category, ...] | None:
    if values is None:
        if name not in BUILT_IN:
            raise ValueError(
                f"`categories` must list the values of {name!r}, got None. Only {_NAMES} have their own."
            )
        return None
    if not values:
        raise ValueError(
            f"`context` must name columns with a value in the training set, got {name!r}, which is null in "
            "every row. Leave it out."
        )
    if len(values) > MOST_CATEGORIES:
        _refuse_many(name, len(values))
    if len({type(value) for value in values}) > 1:
        raise TypeError(f"`categories` must have one type, got {list(values)[:5]} … of {name!r}.")
    return tuple(values)


def _refuse_many(name: str, count: int) -> None:
    raise ValueError(
        f"`context` must name columns of at most {MOST_CATEGORIES:,} categories in the training set, got "
        f"{count:,} or more of {name!r}. Group them, or leave the column out."
    )


def _as_category(values: pl.Series) -> pl.Series:
    """Return texts, Int64 or booleans."""
    if values.dtype.is_integer():
        return values.cast(pl.Int64, strict=False)
    return values if values.dtype in (pl.Boolean, pl.Null) else values.cast(pl.String)


def _category_codes(values: pl.Series, categories: tuple[Category, ...]) -> NDArray[np.int16]:
    known = pl.Series(categories)
    found = _as_category(values)
    if found.dtype not in (known.dtype, pl.Null):
        raise ValueError(
            f"`context` must have {known.dtype} in {values.name!r}, as in training, got {values.dtype}. "
            "Convert it."
        )
    codes = pl.int_range(1, len(known) + 1, dtype=pl.Int16, eager=True)
    return found.cast(known.dtype).replace_strict(known, codes, default=0, return_dtype=pl.Int16).to_numpy()


def _read_times(table: pl.DataFrame) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """[rows] which times are known, and the times in microseconds since 1970."""
    dtype = table.schema["timestamp"]
    if dtype == pl.Null:
        return np.zeros(table.height, dtype=np.bool_), np.zeros(table.height, dtype=np.int64)
    times = table.select(to_microseconds(pl.col("timestamp"), dtype)).to_series()
    return times.is_not_null().to_numpy(), times.fill_null(0).to_numpy()


def _gap_codes(microseconds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the codes of gaps; 0 for a negative one, of a log in another order than time."""
    return np.searchsorted(_GAP_BOUNDS, microseconds / 1e6, side="right")


# Of this package's values in a checkpoint of Lightning.
CHECKPOINT_KEY = "skipcl_lightning"
NewItems = Literal["drop", "append"]


class HasEncoder(Protocol):
    """Protocol of an object with the vocabulary of a model: a `SkipCLModule` or a `Recommender`."""

    encoder: Any


VocabularySource = ItemVocabulary | HasEncoder | str | Path


@dataclass(frozen=True)
class GivenVocabulary:
    """A vocabulary, its model's context, and the largest number of items of its training; 0 if unknown."""

    vocabulary: ItemVocabulary
    trained_length: int = 0
    context: ContextEncoder | None = None


def choose_context(
    given: Sequence[str] | ContextEncoder, known: GivenVocabulary | None
) -> Sequence[str] | ContextEncoder:
    """Return the inputs to prepare: those of a trained model, with its categories, unless others are given.

    Examples:
        >>> known = GivenVocabulary(ItemVocabulary(["song"]), context=ContextEncoder({"device": ["tv"]}))
        >>> choose_context([], known), choose_context(["device"], known), choose_context(["gap"], known)
        (ContextEncoder(device: 1), ContextEncoder(device: 1), ['gap'])
    """
    trained = None if known is None else known.context
    if trained is None or isinstance(given, ContextEncoder):
        return given
    return trained if list(given) in ([], list(trained.categories)) else given


def resolve_vocabulary(source: object) -> GivenVocabulary:
    """Return the vocabulary of a source.

    Args:
        source: An `ItemVocabulary`; an object with an `encoder`, such as a fitted `SkipCLModule` or a
            `Recommender`; the path of a checkpoint; or the folder of a store.

    Raises:
        TypeError: It is something else.
        ValueError: The module was not fitted with a `SessionDataModule`, or the path is no checkpoint with a
            vocabulary and no store.

    Examples:
        >>> resolve_vocabulary(ItemVocabulary(["song"])).vocabulary.ids
        ['song']
    """
    if isinstance(source, ItemVocabulary):
        return GivenVocabulary(source)
    if isinstance(source, str | Path):
        return _read(Path(source).expanduser())
    if not hasattr(source, "encoder"):
        raise TypeError(
            "`vocabulary` must be an ItemVocabulary, a SkipCLModule, the path of a checkpoint or the folder "
            f"of a store, got {type(source).__name__}. Make one with `ItemVocabulary(ids)`."
        )
    encoder = source.encoder
    if encoder is None:
        raise ValueError(
            f"`vocabulary` must have one, got a {type(source).__name__} without. Fit it with a "
            "`SessionDataModule`, or load its checkpoint."
        )
    return GivenVocabulary(encoder.vocabulary, encoder.max_length, encoder.context)


def _read(path: Path) -> GivenVocabulary:
    if (path / MANIFEST).is_file():
        manifest = Manifest.read(path)
        manifest.check_files(path, contents=False)
        with refuse_damage(path):
            vocabulary = ItemVocabulary(read_column(path / "item_id.arrow"))
            return GivenVocabulary(vocabulary, context=to_context(manifest.counts.get("context")))
    try:
        checkpoint = open_checkpoint(path, records="settings")
    except (OSError, ValueError) as error:
        why = "which does not exist" if not path.exists() else "which is neither"
        raise ValueError(
            f"`vocabulary` must be the path of a checkpoint or the folder of a store, got {str(path)!r}, "
            f"{why}. `skipcl fit` writes a checkpoint, and `skipcl prepare` a store."
        ) from error
    with named_in_errors(path, "`vocabulary` must be a checkpoint"):
        state = checkpoint.get(CHECKPOINT_KEY, {}).get("encoder")
        if state is None:
            raise ValueError(
                f"`vocabulary` must be a checkpoint with an item vocabulary, got {str(path)!r} without. Fit "
                "the model with a `SessionDataModule`, or pass `ItemVocabulary(ids)` in the trained order."
            )
        vocabulary = ItemVocabulary.from_state_dict(state["vocabulary"])
        return GivenVocabulary(vocabulary, state["max_length"], to_context(state.get("context")))


def to_context(state: Mapping[str, Any] | None) -> ContextEncoder | None:
    """Return the encoder of a `state_dict`, None for None."""
    return None if state is None else ContextEncoder(state)
