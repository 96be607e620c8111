import io
import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import ItemVocabulary

IDS = st.one_of(
    st.lists(st.text(max_size=5), min_size=1, max_size=20, unique=True),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20, unique=True),
)


@given(ids=IDS, data=st.data())
def test_ids_come_back_from_their_indices_and_from_a_checkpoint(ids, data):
    vocabulary = ItemVocabulary(ids)
    some = data.draw(st.lists(st.sampled_from(ids)))
    encoded = vocabulary.encode(some)
    assert encoded.dtype == np.int64
    assert encoded.tolist() == [ids.index(item) + 1 for item in some]
    assert vocabulary.decode(torch.from_numpy(encoded.copy())) == some
    buffer = io.BytesIO()
    torch.save(vocabulary.state_dict(), buffer)
    buffer.seek(0)
    loaded = ItemVocabulary.from_state_dict(torch.load(buffer, weights_only=True))
    assert loaded == vocabulary
    assert hash(loaded) == hash(vocabulary)
    assert loaded.ids == ids


@given(rows=st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40))
def test_items_are_numbered_by_their_count_in_training_and_then_by_id(rows):
    items, training = zip(*rows, strict=True)
    counts = Counter(item for item, told in rows if told)
    expected = sorted(set(items), key=lambda item: (-counts[item], item))
    assert ItemVocabulary.from_log(pl.Series(items), in_training=pl.Series(training)).ids == expected


def test_another_order_of_the_rows_gives_the_same_numbers():
    items = pl.Series([f"item-{n % 37}" for n in range(500)])
    numbered = ItemVocabulary.from_log(items)
    assert ItemVocabulary.from_log(items.shuffle(seed=1)) == numbered


def test_an_extended_vocabulary_keeps_its_indices_and_adds_each_new_item_once():
    first = ItemVocabulary([30, 10])
    second = first.extended([7, 30, 8, 7])
    assert second.ids == [30, 10, 7, 8]
    assert first.ids == [30, 10]
    assert first.extended([]) == first
    assert first.extended([10]) == first
    with pytest.raises(TypeError, match="`items` must be Int64 as in the vocabulary, got String"):
        first.extended(["7"])


def test_unknown_ids_are_an_error_that_names_five_and_the_way_out():
    vocabulary = ItemVocabulary(["a"])
    with pytest.raises(
        ValueError, match=r"got 'u0', 'u1', 'u2', 'u3', 'u4' and 2 more. Pass `unknown='ignore'`"
    ):
        vocabulary.encode(["a", *(f"u{n}" for n in range(7)), "u0"])
    assert vocabulary.encode(["u", "a"], unknown="ignore").tolist() == [0, 1]
    assert vocabulary.encode([]).tolist() == []


def test_membership_asks_for_the_id_in_its_own_type():
    assert "1" in ItemVocabulary(["1"])
    assert 1 not in ItemVocabulary(["1"])
    assert 1 in ItemVocabulary([1])
    assert "1" not in ItemVocabulary([1])
    assert True not in ItemVocabulary([1])


def test_vocabularies_differ_in_their_order_and_their_type():
    assert ItemVocabulary([1, 2]) != ItemVocabulary([2, 1])
    assert ItemVocabulary([1]) != ItemVocabulary(["1"])
    assert ItemVocabulary([1]) != [1]


def test_ids_of_any_integer_width_and_numpy_integers_are_the_same_ids():
    assert ItemVocabulary(pl.Series([3, 1], dtype=pl.UInt8)) == ItemVocabulary([np.int32(3), np.int64(1)])


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([], ValueError, "at least one item"),
        (["a", "a"], ValueError, "got 'a' twice"),
        (["a", 1], TypeError, "all strings or all integers, got int, str"),
        ([True, False], TypeError, "got bool"),
        ([1.0], TypeError, "got float"),
        (["a", None], TypeError, "got NoneType, str"),
        ("abc", TypeError, "got 'abc' of type str"),
        ({"a"}, TypeError, "a sequence of ids, got {'a'} of type set"),
        (5, TypeError, "a sequence of ids, got 5 of type int"),
        ([2**63], ValueError, "64 bits"),
        (pl.Series([2**63], dtype=pl.UInt64), ValueError, "64 bits"),
        (pl.Series(["a", None]), ValueError, "must not hold nulls"),
        (pl.Series([0.5]), TypeError, "got Float64"),
    ],
)
def test_ids_that_cannot_be_numbered_are_errors(ids, error, message):
    with pytest.raises(error, match=message):
        ItemVocabulary(ids)


def test_ids_of_the_other_type_are_errors_even_where_unknown_ones_are_ignored():
    with pytest.raises(TypeError, match="String as in the vocabulary, got Int64"):
        ItemVocabulary(["1"]).encode([1], unknown="ignore")
    with pytest.raises(ValueError, match="`unknown` must be one of"):
        ItemVocabulary(["1"]).encode(["1"], unknown="drop")


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0], ValueError, r"in 1..2, got 0. 0 is padding"),
        ([3], ValueError, "got 3"),
        ([[1]], ValueError, "one dimension"),
        ([1.0], TypeError, "integers"),
    ],
)
def test_indices_that_are_no_items_are_errors(indices, error, message):
    with pytest.raises(error, match=message):
        ItemVocabulary(["a", "b"]).decode(indices)


def test_a_training_mark_for_other_rows_is_an_error():
    with pytest.raises(ValueError, match="got 1 for 2"):
        ItemVocabulary.from_log(pl.Series([1, 2]), in_training=pl.Series([True]))


def test_a_long_vocabulary_is_shown_by_its_first_items():
    assert repr(ItemVocabulary(range(9))) == "ItemVocabulary(9 items: 0, 1, 2, 3, 4, ...)"


def test_text_with_a_lone_surrogate_is_our_own_error_and_no_member():
    with pytest.raises(
        ValueError, match=r"`ids` must be valid Unicode text, got 'a\\ud800' with a lone surrogate"
    ):
        ItemVocabulary(["b", "a\ud800"])
    assert "a\ud800" not in ItemVocabulary(["b"])
    assert 2**70 not in ItemVocabulary([1])


@pytest.mark.parametrize("ids", [[1.0], [math.nan, "a"], [math.inf], [None, 1], [True]])
def test_ids_that_are_neither_text_nor_integers_are_refused_with_the_cure(ids):
    with pytest.raises(TypeError, match=r"Convert them with `str\(\.\.\.\)` or `int\(\.\.\.\)`"):
        ItemVocabulary(ids)
