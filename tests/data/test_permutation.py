import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import splits
from skipcl_lightning.data.splits import shuffled_rows


@given(
    size=st.integers(1, 3000) | st.integers(65_537, 70_000),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 50),
)
def test_every_row_comes_once_and_each_place_can_be_asked_alone(size, seed, epoch):
    rows = shuffled_rows(np.arange(size), size, seed=(seed, epoch))
    assert sorted(rows.tolist()) == list(range(size))
    place = (seed + epoch) % size
    assert shuffled_rows(np.array([place]), size, seed=(seed, epoch))[0] == rows[place]


def test_another_seed_or_epoch_gives_another_order_and_the_same_one_the_same():
    def order(*seed):
        return shuffled_rows(np.arange(1000), 1000, seed=seed).tolist()

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert len({tuple(one) for one in orders}) == 4
    assert order(0, 1) == orders[1]


@pytest.mark.parametrize(
    "stored", [1 << 16, pytest.param(0, marks=pytest.mark.slow)], ids=["drawn", "computed"]
)
def test_rows_land_anywhere_with_about_the_same_chance(monkeypatch, stored):
    monkeypatch.setattr(splits, "_STORED", stored)
    counts = np.zeros((20, 20))
    for seed in range(4000):
        counts[np.arange(20), shuffled_rows(np.arange(20), 20, seed=(seed,))] += 1
    # Each cell expects 200; the sum of squared deviations over 200 is near chi-squared with 361 degrees of
    # freedom, whose 99.99 % quantile is 468.
    assert ((counts - 200) ** 2 / 200).sum() < 468


def test_a_size_beyond_memory_needs_none():
    rows = shuffled_rows(np.array([0, 10**12 - 1]), 10**12, seed=(3,))
    assert ((rows >= 0) & (rows < 10**12)).all()


@pytest.mark.parametrize("places", [[-1], [5]])
def test_places_outside_are_errors(places):
    with pytest.raises(ValueError, match=r"`places` must be in 0\.\.4"):
        shuffled_rows(np.array(places), 5, seed=(0,))
