"""The content of items as tensors: types of columns, missing values, and what is learned from training."""

import math
import statistics

import pandas as pd
import polars as pl
import pytest
import torch

from skipcl_lightning.data import ItemFeatures, ItemVocabulary

VOCABULARY = ItemVocabulary(["a", "b", "c", "d"])
# Items c and d have no plays.
COUNTS = torch.tensor([0, 3, 2, 0, 0])
TABLE = pl.DataFrame(
    {
        "item_id": ["d", "a", "zz", "b"],
        "tempo": [100.0, 80.0, 999.0, 90.0],
        "audio": [[9.0, 9.0], [1.0, 5.0], [0.0, 0.0], [3.0, 5.0]],
        "artist": ["new", "x", "zz", "y"],
        "genres": [["pop", "new"], ["rock", "pop", "pop"], ["zz"], []],
    }
)


def features(table=TABLE, **settings):
    return ItemFeatures.from_table(table, VOCABULARY, **{"item_counts": COUNTS, **settings})


def test_numbers_are_standardised_over_the_training_set_alone():
    found = features(TABLE.select("item_id", "tempo", "audio"))
    for place, values in enumerate(([80.0, 90.0], [1.0, 3.0])):
        mean, scale = statistics.mean(values), statistics.pstdev(values)
        new = 100.0 if place == 0 else 9.0
        expected = [0.0, *((value - mean) / scale for value in values), 0.0, (new - mean) / scale]
        assert found.numbers[:, place].tolist() == pytest.approx(expected)
    # A number that is equal for all of them is only centred.
    assert found.numbers[:, 2].tolist() == [0, 0, 0, 0, 4]


def test_what_only_other_items_have_changes_nothing_for_those_of_the_training_set():
    changed = TABLE.with_columns(
        tempo=pl.when(pl.col("item_id") == "d").then(-1e6).otherwise("tempo"),
        artist=pl.when(pl.col("item_id") == "d").then(pl.lit("aaa")).otherwise("artist"),
    )
    one, other = features(), features(changed)
    assert one.describe() == other.describe()
    assert torch.equal(one.numbers[:3], other.numbers[:3])
    assert "new" not in str(one.describe())


def test_categories_and_sets_have_codes_of_the_training_set():
    found = features()
    assert found.num_categories == {"artist": 2, "genres": 2}
    assert found.categories["artist"].tolist() == [[0], [1], [2], [0], [0]]
    assert found.categories["genres"].tolist() == [[0, 0], [1, 2], [0, 0], [0, 0], [1, 0]]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pl.Series([1, 2, 3, 4]), "number"),
        (pl.Series([[1, 2]] * 4, dtype=pl.Array(pl.Int64, 2)), "number"),
        (pl.Series([[0.5]] * 4, dtype=pl.List(pl.Float32)), "number"),
        (pl.Series([True, False, True, True]), "category"),
        (pl.Series(["u", "v", "w", "u"], dtype=pl.Categorical), "category"),
        (pl.Series(["u", "v", "u", "v"], dtype=pl.Enum(["u", "v"])), "category"),
        (pl.Series([[1, 2], [2], [], [3]]), "category"),
        (pl.Series([["u", "v"]] * 4, dtype=pl.Array(pl.String, 2)), "category"),
    ],
)
def test_the_type_says_what_a_column_is(column, kind):
    found = features(TABLE.select("item_id", column.alias("x")))
    assert bool(found.categories) == (kind == "category")
    assert (found.numbers.shape[1] > 0) == (kind == "number")


def test_a_single_category_of_the_training_set_is_one():
    found = features(pl.DataFrame({"item_id": ["a", "c"], "artist": ["x", "x"]}))
    assert found.categories["artist"].tolist() == [[0], [1], [0], [1], [0]]


def test_a_missing_number_is_the_mean_with_a_flag_if_training_lacks_some():
    holes = TABLE.with_columns(tempo=pl.when(pl.col("item_id") == "b").then(None).otherwise("tempo"))
    found = features(holes.select("item_id", "tempo"))
    assert found.numbers.tolist() == [[0, 0], [0, 0], [0, 1], [0, 1], [20, 0]]
    # Without a hole in the training set no weight could be learned for a flag.
    assert features(TABLE.select("item_id", "tempo")).numbers.shape == (5, 1)
    assert found.num_missing == {"tempo": 2}
    assert "Missing values: 2 of tempo. Rows of unknown items: 1." in str(found)


def test_pandas_and_parquet_are_read_alike(tmp_path):
    TABLE.write_parquet(tmp_path / "features.parquet")
    frame = pd.DataFrame({"item_id": ["a", "b"], "tempo": [80.0, math.nan]})
    assert features(frame).numbers.tolist() == [[0, 0], [0, 0], [0, 1], [0, 1], [0, 1]]
    for path in (tmp_path / "features.parquet", str(tmp_path / "features.parquet")):
        assert torch.equal(features(path).numbers, features().numbers)


def test_new_items_are_encoded_as_training_was():
    more = pl.DataFrame(
        {"item_id": ["e", "a"], "tempo": [100, 1], "genres": [["rock", "pop", "else"], ["pop"]]},
    )
    vocabulary = VOCABULARY.extended(["e", "f"])
    found, before = features().extended(more, vocabulary), features()
    assert torch.equal(found.numbers[:5], before.numbers)
    assert found.numbers[5, 0] == pytest.approx((100 - 85) / 5)
    assert found.numbers[5, 1:].tolist() == [0, 0]
    assert found.categories["genres"][5].tolist() == [1, 2]
    assert found.categories["artist"][5:].tolist() == [[0], [0]]
    assert found.numbers[6].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="`vocabulary` must hold the 4 items of the features, got 2"):
        features().extended(more, ItemVocabulary(["a", "b"]))
    with pytest.raises(TypeError, match="type of the training in column 'tempo', got String"):
        features().extended([{"item_id": "e", "tempo": "fast"}], vocabulary)


def test_a_set_may_grow_beyond_those_of_training():
    narrow = features(TABLE.select("item_id", genres=pl.Series([["pop"], ["rock"], [], ["pop"]])))
    wide = narrow.extended([{"item_id": "e", "genres": ["rock", "pop"]}], VOCABULARY.extended(["e"]))
    assert wide.categories["genres"].tolist() == [[0, 0], [2, 0], [1, 0], [0, 0], [1, 0], [1, 2]]
    assert wide.describe()[0]["width"] == 2


def test_a_description_gives_the_sizes_back():
    found = features()
    empty = ItemFeatures.from_description(found.describe(), 4)
    assert empty.describe() == found.describe()
    assert empty.numbers.shape == found.numbers.shape
    assert {n: c.shape for n, c in empty.categories.items()} == {
        n: c.shape for n, c in found.categories.items()
    }


@pytest.mark.parametrize(
    ("table", "settings", "error", "message"),
    [
        (TABLE.drop("item_id"), {}, ValueError, "must have the column 'item_id' and others"),
        (TABLE.select("item_id"), {}, ValueError, "must have the column 'item_id' and others"),
        (TABLE, {"unknown": "error"}, ValueError, "in column 'item_id', got 'zz' and 0 others"),
        (TABLE, {"missing": "error"}, ValueError, "in column 'tempo', got none for 'c' and 0 others"),
        (
            pl.concat([TABLE, TABLE[:1]]),
            {},
            ValueError,
            "one row for each item in column 'item_id', got 'd' twice",
        ),
        (TABLE.with_columns(item_id=1), {}, TypeError, "`item_features` must be String as in the vocabulary"),
        (
            TABLE.with_columns(audio=pl.Series([[1.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])),
            {},
            ValueError,
            "vectors of 2 numbers in column 'audio', got 1 for 'd'",
        ),
        (
            TABLE.with_columns(tempo=math.inf),
            {},
            ValueError,
            "finite numbers in column 'tempo', got another for 'a'",
        ),
        (TABLE[:1], {}, ValueError, "training set in column 'tempo', got none"),
        (
            TABLE.with_columns(genres=pl.Series([[""], [], [], []])),
            {},
            ValueError,
            "in column 'genres', got none",
        ),
        (
            TABLE.with_columns(day=pl.date(2020, 1, 1)),
            {},
            TypeError,
            "must have numbers, strings, booleans, or lists of one of them in column 'day', got Date",
        ),
        (TABLE, {"item_counts": torch.ones(3)}, ValueError, "`item_counts` must have shape"),
        (TABLE, {"missing": "fill"}, ValueError, "`missing` must be one of"),
        (TABLE, {"unknown": "drop"}, ValueError, "`unknown` must be one of"),
        ("no/such.parquet", {}, ValueError, "`item_features` must be a table whose columns can be read"),
    ],
)
def test_bad_tables_are_named(table, settings, error, message):
    with pytest.raises(error, match=message):
        features(table, **settings)
