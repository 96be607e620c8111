import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from skipcl_lightning.functional import alignment, effective_rank, uniformity
from skipcl_lightning.functional.ranking import diversity


def unit(row):
    length = math.sqrt(sum(value * value for value in row))
    return [value / length for value in row]


def squared_distance(left, right):
    return sum((a - b) ** 2 for a, b in zip(left, right, strict=True))


def drawn(seed, rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 5))
def test_alignment_is_the_squared_distance_of_each_pair_of_directions(seed, rows, columns):
    left, right = drawn(seed, rows, columns), drawn(seed + 100, rows, columns)
    expected = [
        squared_distance(unit(a), unit(b)) for a, b in zip(left.tolist(), right.tolist(), strict=True)
    ]
    assert alignment(left, right).tolist() == pytest.approx(expected, abs=1e-5)


@given(st.integers(0, 99), st.integers(2, 7), st.integers(2, 5))
def test_uniformity_is_the_logarithm_of_the_mean_potential_of_all_pairs(seed, rows, columns):
    points = [unit(row) for row in drawn(seed, rows, columns).tolist()]
    potentials = [
        math.exp(-2 * squared_distance(points[n], points[m])) for n in range(rows) for m in range(n)
    ]
    expected = math.log(sum(potentials) / len(potentials))
    assert float(uniformity(drawn(seed, rows, columns))) == pytest.approx(expected, abs=1e-4)


def test_uniformity_does_not_depend_on_how_many_pairs_are_held_at_once(monkeypatch):
    points = drawn(0, 50, 4)
    whole = uniformity(points)
    monkeypatch.setattr(diversity, "_MOST_PAIRS", 60)
    assert float(uniformity(points)) == pytest.approx(float(whole), abs=1e-6)


@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 5))
def test_the_effective_rank_is_the_entropy_of_the_singular_values(seed, rows, columns):
    points = drawn(seed, rows, columns)
    gram = points.double().T @ points.double()
    values = [math.sqrt(max(value, 0.0)) for value in torch.linalg.eigvalsh(gram).tolist()]
    share = [value / sum(values) for value in values]
    expected = math.exp(-sum(p * math.log(p) for p in share if p > 0))
    assert float(effective_rank(points)) == pytest.approx(expected, rel=1e-3)
    assert 1 - 1e-5 <= float(effective_rank(points)) <= min(rows, columns) + 1e-4


@given(st.integers(0, 99))
def test_none_of_them_depends_on_lengths_that_all_points_share_nor_on_a_rotation(seed):
    points = drawn(seed, 6, 3)
    rotation = torch.linalg.qr(drawn(seed + 1, 3, 3)).Q
    turned = 3 * points @ rotation
    assert float(uniformity(turned)) == pytest.approx(float(uniformity(points)), abs=1e-4)
    assert float(effective_rank(turned)) == pytest.approx(float(effective_rank(points)), rel=1e-4)
    assert alignment(turned, points @ rotation).tolist() == pytest.approx([0.0] * 6, abs=1e-5)


def test_what_has_no_value_is_not_a_number():
    assert uniformity(torch.ones(1, 2)).isnan()
    assert uniformity(torch.ones(0, 2)).isnan()
    assert effective_rank(torch.zeros(3, 2)).isnan()


def test_a_collapsed_table_has_the_worst_values():
    points = torch.ones(5, 4)
    assert float(uniformity(points)) == pytest.approx(0.0, abs=1e-6)
    assert float(effective_rank(points)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_full(dtype):
    points = drawn(0, 8, 4).to(dtype)
    assert uniformity(points).dtype == torch.float32
    assert float(uniformity(points)) == pytest.approx(float(uniformity(points.float())), abs=1e-6)
    assert effective_rank(points).dtype == torch.float32


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"`right` must have shape \[N=2, D=3\], got \[3, 3\]"):
        alignment(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(TypeError, match="`points` must be of a floating-point dtype"):
        effective_rank(torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="`points` must be of a floating-point dtype"):
        uniformity(torch.zeros(2, 3, dtype=torch.int64))
