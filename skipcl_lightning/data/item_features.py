"""The content of items, from a table: numbers, vectors and categories as tensors for an item tower."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from polars import selectors
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_shape
from skipcl_lightning.data.canonical_table import (
    Table,
    describe_columns,
    name_unreadable,
    resolve_schema,
    to_frame,
)
from skipcl_lightning.data.vocabulary import ItemVocabulary, to_ids

__all__ = ["ItemFeatures"]

Missing = Literal["allow", "error"]
Unknown = Literal["ignore", "error"]
_ID = "item_id"


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers, or of vectors with a number for each of `mean`."""

    name: str
    mean: list[float]
    scale: list[float]
    has_flag: bool  # one more number, 1 where the value is missing

    @property
    def size(self) -> int:
        """The number of numbers of an item."""
        return len(self.mean) + self.has_flag


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories, or of sets of at most `width` of them; `values[0]` has the code 1."""

    name: str
    values: list[str]
    width: int


Columns = tuple[NumberColumn | CategoryColumn, ...]


@dataclass(frozen=True, eq=False)
class ItemFeatures:
    """The content of the items of a vocabulary, for `SkipCLModule(item_features=…)`.

    `from_table` makes it. What a column is follows from its type:

    - Numbers, and vectors (lists of floats, or arrays of numbers), are standardised by the mean and the
      standard deviation of the items in the training set. A missing number or vector is the mean; if an item
      of the training set lacks it, one more number is 1 where it is missing.
    - Strings, categoricals and booleans are categories; lists of strings or integers are sets of categories,
      whose embeddings are averaged. Only the categories of the training set have embeddings; an item with
      none of them gets zero. Cast integers that are codes to strings.

    Args:
        columns: How each column is encoded.
        numbers: [V + 1, F] float32, the numbers of all columns; row 0 is padding and zero.
        categories: By column, [V + 1, M] int32, the codes of each item's categories; 0 is none.
        num_unknown: Rows of the table whose item is not in the vocabulary.
        num_missing: By column, the items of the vocabulary without a value.
    """

    columns: Columns
    numbers: Tensor
    categories: Mapping[str, Tensor]
    num_unknown: int = 0
    num_missing: Mapping[str, int] | None = None

    @classmethod
    def from_table(
        cls,
        table: Table | str | Path,
        vocabulary: ItemVocabulary,
        *,
        item_counts: Tensor | None = None,
        missing: Missing = "allow",
        unknown: Unknown = "ignore",
    ) -> "ItemFeatures":
        """Encode a table with a row for each item.

        Args:
            table: A polars, pandas or Arrow table, a list of dictionaries, or the path of a Parquet file,
                with `item_id` and one or more columns of features.
            vocabulary: The items, as `SessionDataModule.vocabulary`.
            item_counts: [V + 1] int64, as `SessionDataModule.item_counts`: items with a count are in the
                training set. None for all items.
            missing: Whether an item of the vocabulary may lack values, or is an `error`.
            unknown: Whether a row of an item that is not in the vocabulary is left out and counted, or is an
                `error`.

        Returns:
            The features.

        Raises:
            TypeError: A column has another type, or the ids are of another type than the vocabulary's.
            ValueError: A column or a value is missing, an id repeats or is unknown, vectors differ in length,
                a number is infinite, or no item of the training set has a value.

        Examples:
            >>> table = pl.DataFrame({"item_id": ["a", "b"], "tempo": [90, 120], "genre": [["pop"], []]})
            >>> features = ItemFeatures.from_table(table, ItemVocabulary(["a", "b", "c"]))
            >>> features.numbers.tolist(), features.categories["genre"].tolist()
            ([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0], [1], [0], [0]])
        """
        check_choice("missing", missing, get_args(Missing))
        check_choice("unknown", unknown, get_args(Unknown))
        rows, num_unknown = _align(table, vocabulary, unknown)
        num_missing = {name: rows[name].null_count() for name in rows.columns if name != _ID}
        if missing == "error":
            _require_all(rows)
        trained = np.ones(len(vocabulary), dtype=np.bool_)
        if item_counts is not None:
            check_shape("item_counts", item_counts, "V+1", {"V+1": len(vocabulary) + 1})
            trained = item_counts[1:].cpu().numpy() > 0
        columns = tuple(_fit(rows, name, trained) for name in num_missing)
        return cls._encode(columns, rows, num_unknown, num_missing)

    @classmethod
    def from_description(cls, description: Sequence[Mapping[str, Any]], num_items: int) -> "ItemFeatures":
        """Return features of the same sizes with all values zero, for a checkpoint to load into.

        Args:
            description: The result of `describe`.
            num_items: V.
        """
        columns = tuple(
            CategoryColumn(**one) if "values" in one else NumberColumn(**one) for one in description
        )
        size = sum(column.size for column in columns if isinstance(column, NumberColumn))
        categories = {
            column.name: torch.zeros(num_items + 1, column.width, dtype=torch.int32)
            for column in columns
            if isinstance(column, CategoryColumn)
        }
        return cls(columns, torch.zeros(num_items + 1, size), categories)

    @classmethod
    def from_rows(
        cls, description: Sequence[Mapping[str, Any]], numbers: Tensor, categories: Mapping[str, Tensor]
    ) -> "ItemFeatures":
        """Return features of a description and of tensors on any device."""
        columns = cls.from_description(description, len(numbers) - 1).columns
        return cls(columns, numbers.cpu(), {name: codes.cpu() for name, codes in categories.items()})

    @property
    def num_categories(self) -> dict[str, int]:
        """By column, the number of different categories."""
        return {
            column.name: len(column.values) for column in self.columns if isinstance(column, CategoryColumn)
        }

    def describe(self) -> list[dict[str, Any]]:
        """Return how each column is encoded, as plain values for a checkpoint."""
        return [asdict(column) for column in self.columns]

    def extended(self, table: Table | str | Path | None, vocabulary: ItemVocabulary) -> "ItemFeatures":
        """Return the features of an extended vocabulary, in which the known items keep their rows.

        The new items are encoded as the table of the training was: by its means and its categories. A column
        that the table lacks is missing for all of them.

        Args:
            table: A table with the new items, as for `from_table`; rows of other items are ignored. None if
                nothing is known of them.
            vocabulary: The result of `ItemVocabulary.extended`.

        Raises:
            TypeError: As for `from_table`.
            ValueError: As for `from_table`, or the vocabulary has fewer items than the features.

        Examples:
            >>> vocabulary = ItemVocabulary(["a", "b"])
            >>> table = [{"item_id": "a", "x": 1}, {"item_id": "b", "x": 3}]
            >>> features = ItemFeatures.from_table(table, vocabulary)
            >>> features.extended([{"item_id": "c", "x": 5}], vocabulary.extended(["c"])).numbers[:, 0]
            tensor([ 0., -1.,  1.,  3.])
        """
        known = len(self.numbers) - 1
        if len(vocabulary) < known:
            raise ValueError(
                f"`vocabulary` must hold the {known} items of the features, got {len(vocabulary)}. Pass the "
                "result of `ItemVocabulary.extended`."
            )
        rows = vocabulary.to_series().alias(_ID).to_frame()
        if table is not None:
            rows, _ = _align(table, vocabulary, "ignore")
        absent = [column.name for column in self.columns if column.name not in rows.columns]
        for column in self.columns:
            if column.name in absent or rows[column.name].dtype == pl.Null:
                continue
            if _holds_categories(rows[column.name]) != isinstance(column, CategoryColumn):
                raise TypeError(
                    f"`item_features` must have the type of the training in column {column.name!r}, got "
                    f"{rows[column.name].dtype}. Cast it."
                )
        new = self._encode(self.columns, rows[known:].with_columns(pl.lit(None).alias(one) for one in absent))
        categories = {}
        for name, codes in self.categories.items():
            others = new.categories[name][1:]
            width = max(codes.shape[1], others.shape[1])
            categories[name] = torch.cat([_widen(codes, width), _widen(others, width)])
        columns = _with_widths(self.columns, categories)
        return type(self)(columns, torch.cat([self.numbers, new.numbers[1:]]), categories)

    @classmethod
    def _encode(
        cls,
        columns: Columns,
        rows: pl.DataFrame,
        num_unknown: int = 0,
        num_missing: Mapping[str, int] | None = None,
    ) -> "ItemFeatures":
        numbers, categories = [np.zeros((rows.height, 0))], {}
        for column in columns:
            if isinstance(column, NumberColumn):
                numbers.append(_standardise(_to_numbers(rows, column.name, len(column.mean)), column))
            else:
                codes = _to_codes(_to_sets(rows[column.name]), column.values)
                categories[column.name] = torch.from_numpy(np.pad(codes, ((1, 0), (0, 0))))
        matrix = np.pad(np.concatenate(numbers, axis=1), ((1, 0), (0, 0))).astype(np.float32)
        widened = _with_widths(columns, categories)
        return cls(widened, torch.from_numpy(matrix), categories, num_unknown, num_missing)

    def __str__(self) -> str:
        kinds = ", ".join(
            f"{column.name} ({len(column.mean)} numbers)"
            if isinstance(column, NumberColumn)
            else f"{column.name} ({len(column.values):,} categories)"
            for column in self.columns
        )
        missing = ", ".join(
            f"{count:,} of {name}" for name, count in (self.num_missing or {}).items() if count
        )
        return (
            f"Features of {len(self.numbers) - 1:,} items: {kinds}. Missing values: {missing or 'none'}. Rows"
            f" of unknown items: {self.num_unknown:,}."
        )


def _align(
    table: Table | str | Path, vocabulary: ItemVocabulary, unknown: Unknown
) -> tuple[pl.DataFrame, int]:
    """Return a row for each item in the order of the vocabulary, and the number of rows of other items."""
    frame = (
        pl.scan_parquet(table, glob=False)
        if isinstance(table, str | Path)
        else to_frame("item_features", table)
    )
    schema = resolve_schema("item_features", frame)
    if _ID not in schema or len(schema) == 1:
        raise ValueError(
            f"`item_features` must have the column {_ID!r} and others, got {describe_columns(schema)}. "
            "Rename the column of the ids, and add a column for each feature."
        )
    with name_unreadable("item_features"):
        rows = frame.lazy().collect()
    ids = to_ids("item_features", rows[_ID], vocabulary.dtype)
    index = vocabulary.encode(ids, unknown="ignore")
    if unknown == "error" and (index == 0).any():
        wrong = ids.filter(pl.Series(index == 0))
        raise ValueError(
            f"`item_features` must have items of the vocabulary in column {_ID!r}, got {wrong[0]!r} and "
            f"{len(wrong) - 1} others. Leave `unknown` at 'ignore' to leave such rows out."
        )
    repeated = ids.filter(ids.is_duplicated())
    if len(repeated):
        raise ValueError(
            f"`item_features` must have one row for each item in column {_ID!r}, got {repeated[0]!r} twice. "
            "Aggregate the rows of an item first."
        )
    # NaN marks missing numbers in pandas.
    rows = rows.with_columns(ids.alias(_ID), selectors.float().fill_nan(None))
    known = vocabulary.to_series().to_frame(_ID)
    return known.join(rows, on=_ID, how="left", maintain_order="left"), int((index == 0).sum())


def _require_all(rows: pl.DataFrame) -> None:
    for name in rows.columns:
        without = rows.filter(pl.col(name).is_null())
        if without.height:
            raise ValueError(
                f"`item_features` must have a value for each item in column {name!r}, got none for "
                f"{without[_ID][0]!r} and {without.height - 1} others. Fill them, or leave `missing` alone."
            )


def _fit(rows: pl.DataFrame, name: str, trained: NDArray[np.bool_]) -> NumberColumn | CategoryColumn:
    """Return how a column is encoded, from the items of the training set alone."""
    series = rows[name].filter(pl.Series(trained)).drop_nulls()
    has_categories = len(series) > 0 and _holds_categories(series)
    if has_categories:
        series = _to_sets(series).explode(empty_as_null=False).drop_nulls().unique().sort()
    if not len(series):
        raise ValueError(
            f"`item_features` must have a value for an item of the training set in column {name!r}, got none."
            " Check the ids, or drop the column."
        )
    if has_categories:
        return CategoryColumn(name, series.to_list(), 0)
    values = _to_numbers(rows, name, None)[trained]
    missing = np.isnan(values[:, 0])
    deviation = values[~missing].std(axis=0)
    scale = np.where(deviation > 0, deviation, 1.0)
    return NumberColumn(name, values[~missing].mean(axis=0).tolist(), scale.tolist(), bool(missing.any()))


def _holds_categories(series: pl.Series) -> bool:
    """Return whether a column has categories or sets of them, and no numbers or vectors."""
    dtype = series.dtype
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else dtype
    if isinstance(inner, pl.String | pl.Categorical | pl.Enum | pl.Boolean):
        return True
    if not inner.is_numeric():
        raise TypeError(
            f"`item_features` must have numbers, strings, booleans, or lists of one of them in column "
            f"{series.name!r}, got {dtype}. Cast or drop the column."
        )
    return isinstance(dtype, pl.List) and inner.is_integer()


def _to_numbers(rows: pl.DataFrame, name: str, size: int | None) -> NDArray[np.float64]:
    """Return [rows, size] numbers, NaN in rows without a value."""
    series = rows[name]
    if isinstance(series.dtype, pl.Array):
        series = series.arr.to_list()
    if series.dtype == pl.Null or not isinstance(series.dtype, pl.List):
        series = series.cast(pl.Float64)
        series = pl.select(pl.when(series.is_not_null()).then(pl.concat_list(series))).to_series()
    lengths = series.list.len()
    present = series.is_not_null()
    size = int(lengths.drop_nulls()[0]) if size is None else size
    if size == 0:
        raise ValueError(
            f"`item_features` must have vectors of some numbers in column {name!r}, got an empty one. Use "
            "null for a missing value, or drop the column."
        )
    wrong = (lengths != size).fill_null(value=False)
    if wrong.any():
        raise ValueError(
            f"`item_features` must have vectors of {size} numbers in column {name!r}, got "
            f"{lengths.filter(wrong)[0]} for {rows[_ID].filter(wrong)[0]!r}. Give each item as many, or null."
        )
    values = np.full((rows.height, size), np.nan)
    given = series.drop_nulls().explode(empty_as_null=False).cast(pl.Float64).to_numpy().reshape(-1, size)
    finite = np.isfinite(given).all(axis=1)
    if not finite.all():
        item = rows[_ID].filter(present).filter(pl.Series(~finite))[0]
        raise ValueError(
            f"`item_features` must have finite numbers in column {name!r}, got another for {item!r}. Use "
            "null for a missing value."
        )
    values[present.to_numpy()] = given
    return values


def _standardise(values: NDArray[np.float64], column: NumberColumn) -> NDArray[np.float64]:
    missing = np.isnan(values[:, :1])
    standard = np.where(missing, 0.0, (values - column.mean) / column.scale)
    return np.concatenate([standard, missing], axis=1) if column.has_flag else standard


def _to_sets(series: pl.Series) -> pl.Series:
    """Return categories as lists of strings, null without any."""
    if isinstance(series.dtype, pl.Array):
        series = series.arr.to_list()
    if isinstance(series.dtype, pl.List):
        return series.cast(pl.List(pl.String))
    return pl.select(pl.concat_list(series.cast(pl.String))).to_series()


def _to_codes(sets: pl.Series, values: Sequence[str]) -> NDArray[np.int32]:
    """Return [rows, largest set] codes of the known values, ascending, then 0."""
    codes = pl.DataFrame({"value": values, "code": range(1, len(values) + 1)})
    pairs = (
        pl.DataFrame({"row": pl.int_range(len(sets), eager=True), "value": sets})
        .explode("value", empty_as_null=False)
        .join(codes, on="value")
        .unique(["row", "code"])
        .sort("row", "code")
        .with_columns(place=pl.int_range(pl.len()).over("row"))
    )
    width = 1 if pairs.is_empty() else 1 + int(pairs["place"].to_numpy().max())
    matrix = np.zeros((len(sets), width), dtype=np.int32)
    matrix[pairs["row"].to_numpy(), pairs["place"].to_numpy()] = pairs["code"].to_numpy()
    return matrix


def _with_widths(columns: Columns, categories: Mapping[str, Tensor]) -> Columns:
    return tuple(
        replace(column, width=categories[column.name].shape[1])
        if isinstance(column, CategoryColumn)
        else column
        for column in columns
    )


def _widen(codes: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(codes, (0, width - codes.shape[1]))
