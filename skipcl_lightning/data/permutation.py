"""A shuffled order of any number of rows, without memory for the rows."""

import numpy as np
from numpy.typing import NDArray

from skipcl_lightning._checks import check_integer

__all__ = ["shuffled_rows"]

_ROUNDS = 6
_STORED = 1 << 16


def shuffled_rows(places: NDArray[np.int64], size: int, *, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the rows at some places, [n] int64 in 0..size - 1, of a shuffled order of `size` rows.

    Up to 65,536 rows it is a random permutation. For more rows it is computed place by place: a Feistel
    network over the least power of four that holds `size`, applied again to results outside. A stored
    permutation would need 8 bytes a row, 1.3 GB for 160 million sessions, in each process.

    Reference:
        Black, Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002 (cycle walking), doi
        10.1007/3-540-45760-7_9. The mixing function: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
        Generators", OOPSLA 2014, doi 10.1145/2660193.2660195.
    """
    check_integer("size", size)
    places = np.asarray(places, dtype=np.int64)
    if places.size and not (places.min() >= 0 and places.max() < size):
        raise ValueError(f"`places` must be in 0..{size - 1}, got {places}. Count them from 0.")
    if size <= _STORED:
        return np.random.default_rng(seed).permutation(size)[places]
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64).astype(np.uint64)
    rows = _encrypt(places.astype(np.uint64), half, keys)
    outside = np.flatnonzero(rows >= size)
    while outside.size:
        rows[outside] = _encrypt(rows[outside], half, keys)
        outside = outside[rows[outside] >= size]
    return rows.astype(np.int64)


def _encrypt(values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a permutation of the integers of twice `half` bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << half) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 bits, each of which depends on all of the input: SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
