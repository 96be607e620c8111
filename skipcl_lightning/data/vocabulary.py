"""The numbering of items: external ids and indices 1 to V."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from skipcl_lightning._checks import check_choice, is_ordered
from skipcl_lightning.batch import PADDING_INDEX

__all__ = ["UNKNOWN_CHOICES", "ItemVocabulary", "fingerprint_vocabulary", "plain", "to_ids"]

UNKNOWN_CHOICES = ("error", "ignore")
_MOST_ITEMS = 2**31 - 1
_MOST_NAMED = 5
_FEW = 8
_LARGE = "`{}` must fit into 64 bits, got larger integers. Use strings instead."


class ItemVocabulary:
    """External item ids and their indices 1 to V, in a fixed order; 0 is padding.

    Args:
        ids: The ids, all strings or all integers (64 bit), without repeats; the first gets index 1.

    Raises:
        TypeError: Ids are neither strings nor integers, or of both types.
        ValueError: There are none, one is null or repeated, or there are 2^31 or more.

    Examples:
        >>> vocabulary = ItemVocabulary(["song", "tune"])
        >>> vocabulary.encode(["tune", "song", "tune"])
        array([2, 1, 2])
        >>> vocabulary.decode([1])
        ['song']
    """

    def __init__(self, ids: Sequence[str] | Sequence[int] | pl.Series) -> None:
        series = to_ids("ids", ids)
        if not len(series):
            raise ValueError("`ids` must hold at least one item, got none. Check what was filtered out.")
        if len(series) >= _MOST_ITEMS:
            raise ValueError(
                f"`ids` must hold fewer than 2^31 items, got {len(series)}. `min_item_count` drops rare ones."
            )
        repeated = series.filter(series.is_duplicated())
        if len(repeated):
            raise ValueError(
                f"`ids` must hold each item once, got {repeated[0]!r} twice. Drop the duplicates."
            )
        index = pl.int_range(1, len(series) + 1, eager=True).alias("index")
        self._table = pl.DataFrame([series.alias("id"), index])

    @classmethod
    def from_log(cls, items: pl.Series, *, in_training: pl.Series | None = None) -> "ItemVocabulary":
        """Number the items of a log by their counts in its training set, the most frequent first.

        The index is then the popularity rank, which log-uniform negative sampling needs. It depends only on
        the rows: equal counts are ordered by id, and items outside the training set come last.

        Args:
            items: The item of each row, strings or integers.
            in_training: Bool, the rows of the training set; None for all.

        Raises:
            TypeError: As for the class.
            ValueError: As for the class, or the two lengths differ.

        Examples:
            >>> ItemVocabulary.from_log(pl.Series(["b", "a", "b", "c"])).ids
            ['b', 'a', 'c']
        """
        training = pl.repeat(True, len(items), eager=True) if in_training is None else in_training
        if len(training) != len(items):
            raise ValueError(
                f"`in_training` must have one value an item row, got {len(training)} for {len(items)}. "
                "Take both from the same table."
            )
        rows = pl.DataFrame([to_ids("items", items).alias("id"), training.alias("in_training")])
        counts = rows.group_by("id").agg(pl.col("in_training").sum())
        return cls.from_counts(counts["id"], counts["in_training"])

    @classmethod
    def from_counts(cls, items: pl.Series, counts: pl.Series) -> "ItemVocabulary":
        """Number different items by their counts, integers; the highest first and equal ones by id.

        Examples:
            >>> ItemVocabulary.from_counts(pl.Series(["c", "b", "a"]), pl.Series([0, 2, 2])).ids
            ['a', 'b', 'c']
        """
        table = pl.DataFrame([items.alias("id"), counts.alias("count")])
        return cls(table.sort("count", "id", descending=[True, False])["id"])

    @property
    def ids(self) -> list[str] | list[int]:
        """The external ids in the order of their indices; `ids[0]` has index 1."""
        return self._table["id"].to_list()

    def to_series(self) -> pl.Series:
        """Return the external ids as a column, [V] String or Int64, in the order of their indices.

        Examples:
            >>> ItemVocabulary([30, 10]).to_series().to_list()
            [30, 10]
        """
        return self._table["id"]

    @property
    def dtype(self) -> pl.DataType:
        """The type of the ids, String or Int64."""
        return self._table["id"].dtype

    def encode(
        self, items: Sequence[str] | Sequence[int] | pl.Series, *, unknown: str = "error"
    ) -> NDArray[np.int64]:
        """Return the indices of external ids.

        Args:
            items: N ids of the vocabulary's type.
            unknown: What to do with an id that is not in the vocabulary: raise an `error`, or `ignore` it,
                which gives index 0.

        Returns:
            [N] int64 indices in 1..V, or 0 for ignored ones.

        Raises:
            TypeError: An id has another type than the vocabulary's.
            ValueError: An id is unknown and `unknown` is `error`, or null.

        Examples:
            >>> ItemVocabulary([30, 10]).encode([10, 99], unknown="ignore")
            array([2, 0])
        """
        check_choice("unknown", unknown, UNKNOWN_CHOICES)
        series = to_ids("items", items, self._table["id"].dtype)
        table = self._table
        if len(series) < len(self) // _FEW:  # A join with all items would build a hash table of them.
            table = table.filter(table["id"].is_in(series.implode()))
        found = series.alias("id").to_frame().join(table, on="id", how="left", maintain_order="left")["index"]
        if unknown == "error" and found.null_count():
            missing = series.filter(found.is_null()).unique(maintain_order=True)
            named = ", ".join(repr(item) for item in missing.head(_MOST_NAMED))
            more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
            raise ValueError(
                f"`items` must be in the vocabulary, got {named}{more}. "
                "Pass `unknown='ignore'` to leave such items out, or train on data that has them."
            )
        return cast("NDArray[np.int64]", found.fill_null(PADDING_INDEX).to_numpy())

    def decode(self, indices: Tensor | NDArray[Any] | Sequence[int]) -> list[str] | list[int]:
        """Return the N external ids of indices, [N] integers in 1..V.

        Raises:
            TypeError: The indices are no integers.
            ValueError: They are not one-dimensional, or one is outside 1..V (0 is padding and has no id).

        Examples:
            >>> ItemVocabulary([30, 10]).decode([2, 2, 1])
            [10, 10, 30]
        """
        array = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
        if array.size == 0:
            return []
        if array.ndim != 1:
            raise ValueError(f"`indices` must have one dimension, got shape {list(array.shape)}. Flatten it.")
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"`indices` must be integers, got {array.dtype}. Convert them first.")
        if array.min() < 1 or array.max() > len(self):
            wrong = array[(array < 1) | (array > len(self))][0]
            raise ValueError(f"`indices` must be in 1..{len(self)}, got {wrong}. 0 is padding: mask it out.")
        return self._table["id"].gather(array.astype(np.int64) - 1).to_list()

    def state_dict(self) -> dict[str, Any]:
        """Return the values for `from_state_dict`, which `torch.load(weights_only=True)` accepts.

        Examples:
            >>> ItemVocabulary(["song"]).state_dict()
            {'ids': ['song']}
        """
        return {"ids": self.ids}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "ItemVocabulary":
        """Rebuild a vocabulary with the same ids in the same order from the result of `state_dict`.

        Examples:
            >>> vocabulary = ItemVocabulary([3, 1])
            >>> ItemVocabulary.from_state_dict(vocabulary.state_dict()) == vocabulary
            True
        """
        return cls(state["ids"])

    def extended(self, items: Sequence[str] | Sequence[int] | pl.Series) -> "ItemVocabulary":
        """Return a vocabulary with more items, in which the known ones keep their indices.

        Args:
            items: More ids of the vocabulary's type, in the order of their new indices. Known ids and
                repeats are ignored.

        Raises:
            TypeError: An id has another type than the vocabulary's.
            ValueError: An id is null, or there are 2^31 items or more.

        Examples:
            >>> ItemVocabulary(["song"]).extended(["tune", "song", "air"]).ids
            ['song', 'tune', 'air']
        """
        ids = self._table["id"]
        new = to_ids("items", items, ids.dtype).rename("id").unique(maintain_order=True)
        new = new.filter(~new.is_in(ids.implode()))
        return type(self)(pl.concat([ids, new])) if len(new) else self

    def __len__(self) -> int:
        return self._table.height

    def __contains__(self, item: object) -> bool:
        of_type = str if self._table["id"].dtype == pl.String else int
        if type(item) is not of_type:
            return False
        try:
            return bool((self._table["id"] == item).any())
        except (UnicodeEncodeError, OverflowError):  # Neither valid text nor a 64-bit integer, so no id.
            return False

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ItemVocabulary):
            return NotImplemented
        return self._table.equals(other._table)

    def __hash__(self) -> int:
        return hash((len(self), self._table["id"][0]))

    def __repr__(self) -> str:
        shown = ", ".join(repr(item) for item in self._table["id"].head(_MOST_NAMED))
        return (
            f"{type(self).__name__}({len(self)} items: {shown}{', ...' if len(self) > _MOST_NAMED else ''})"
        )


def plain(values: Any) -> Any:
    """Return a tensor as a list of Python numbers, and any other value as it is."""
    return values.tolist() if isinstance(values, Tensor) else values


def to_ids(
    name: str, values: Sequence[str] | Sequence[int] | pl.Series, dtype: pl.DataType | None = None
) -> pl.Series:
    """Return external ids as a String or Int64 column without nulls, of `dtype` if it is given.

    Errors name the caller's argument `name`.
    """
    if not isinstance(values, pl.Series):
        values = _sequence_to_series(name, plain(values), dtype)
    if not (values.dtype == pl.String or values.dtype.is_integer()):
        raise TypeError(f"`{name}` must be strings or integers, got {values.dtype}. Cast them first.")
    if values.null_count():
        raise ValueError(f"`{name}` must not hold nulls, got {values.null_count()} of them. Drop them first.")
    if values.dtype != pl.String:
        try:
            values = values.cast(pl.Int64)
        except pl.exceptions.PolarsError as error:
            raise ValueError(_LARGE.format(name)) from error
    if dtype is None or values.dtype == dtype:
        return values
    if len(values):
        raise TypeError(
            f"`{name}` must be {dtype} as in the vocabulary, got {values.dtype}. Cast them first."
        )
    return values.cast(dtype)


def _sequence_to_series(
    name: str, values: Sequence[str] | Sequence[int], dtype: pl.DataType | None
) -> pl.Series:
    """Return a Python sequence of one accepted type as a series."""
    if not is_ordered(values):
        raise TypeError(
            f"`{name}` must be a sequence of ids, got {values!r} of type {type(values).__name__}. Put it "
            "into a list."
        )
    kinds = set(map(type, values))
    if not kinds:
        return pl.Series([], dtype=dtype or pl.String)
    are_texts = all(issubclass(kind, str) for kind in kinds)
    # bool is a subclass of int, but no id.
    if not are_texts and any(not issubclass(kind, int | np.integer) or kind is bool for kind in kinds):
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(
            f"`{name}` must be all strings or all integers, got {names}. Convert them with `str(...)` or "
            "`int(...)`, and leave missing ones (None, NaN) out."
        )
    try:
        if are_texts:
            return pl.Series(list(values), dtype=pl.String)
        return pl.Series([int(value) for value in values], dtype=pl.Int64)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"`{name}` must be valid Unicode text, got {error.object!r} with a lone surrogate. It was "
            "decoded with the wrong encoding: read it as UTF-8, or with `errors='replace'`."
        ) from error
    except (OverflowError, TypeError) as error:
        raise ValueError(_LARGE.format(name)) from error


def fingerprint_vocabulary(vocabulary: ItemVocabulary) -> str:
    """Return a digest of the items and their order, equal for vocabularies with the same numbering."""
    digest = hashlib.sha256(repr(vocabulary.dtype).encode())
    for item in vocabulary.to_series():
        # The length comes first, so that different lists have different digests.
        digest.update(f"\n{len(str(item))} {item}".encode())
    return digest.hexdigest()
