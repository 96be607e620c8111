"""Mined negatives and positives: items that often follow an item in the training set."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer, check_number, check_shape
from skipcl_lightning.batch import is_rejected
from skipcl_lightning.data.canonical_table import count_within
from skipcl_lightning.data.store.session_store import SessionView

__all__ = ["MinedItems", "MiningScore", "mine_transitions", "sample_mined"]

MiningScore = Literal["count", "pmi", "wilson"]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]

# Sessions whose pairs are counted at once, and blocks of them that are counted before they are added up.
_BLOCK = 1 << 16
_MOST_BLOCKS = 8

# The quantile of the normal distribution for a two-sided interval at 95 %.
_NORMAL_QUANTILE = 1.959963984540054


@dataclass(frozen=True, eq=False)
class MinedItems:
    """For each item, the items most often skipped right after it and most often listened to after it.

    An item may be in both tables of another one.

    Args:
        skipped_after: [V + 1, depth] int32 in 0..V, the best first; 0 fills the rows. Row 0, padding, is 0.
        listened_after: [V + 1, depth] int32, likewise.

    Examples:
        >>> table = np.array([[0], [2], [0]], dtype=np.int32)
        >>> MinedItems(skipped_after=table, listened_after=np.zeros_like(table)).skipped_after[1]
        array([2], dtype=int32)
    """

    skipped_after: NDArray[np.int32]
    listened_after: NDArray[np.int32]


def mine_transitions(
    view: SessionView,
    num_items: int,
    *,
    depth: int = 20,
    score: MiningScore = "count",
    min_count: int = 2,
    skip_threshold: float = 0.0,
) -> MinedItems:
    """Find, for each item, the items most often skipped right after it and most often listened to after it.

    Only the input of each session in the view is read, its first `ends[n]` items; held-out and later items
    are not. With f_t the feedback on item i_t:

    - j = i_{t+1} is skipped right after i = i_t if it was rejected: f_{t+1} < `skip_threshold` or disliked,
    and not liked;
    - j = i_{p(t)} is listened to after i = i_t, with p(t) = min {s > t : f_s ≥ `skip_threshold`, and i_s was
    not disliked}.

    Pairs with i = j are ignored. Let n(i, j) be the count of a pair of one kind, n(i, ·) and n(·, j) its sums
    over all j and all i, and N the sum over both. Pairs with n(i, j) < `min_count` are dropped after the sums
    are taken. The others are ordered by

    - `count`: n(i, j);
    - `pmi`: log(n(i, j) · N / (n(i, ·) · n(·, j)));
    - `wilson`: the lower end of the 95 % Wilson interval of the share p = k / n with k = n(i, j),

          (p + z² / 2n - z · √(p (1 - p) / n + z² / 4n²)) / (1 + z² / n),  z = 1.96,

      where n is the number of times that j came right after i, skipped or not, for skipped items, and n(i, ·)
      for items listened to. The latter is equal for all j of a row, so its order is that of `count`.

    Equal scores are ordered by n(i, j), the higher first, then by index. The order of the sessions has no
    effect.

    Nothing of size V by V is built. Memory holds 65,536 sessions, the distinct pairs of one kind, and the two
    tables: 160 MB at a million items and a depth of 20.

    Args:
        view: The `train` view of a split; a session counts once for each of its rows.
        num_items: V, at least the largest item of the input.
        depth: The largest number of items kept of each kind for each item.
        score: The score: `count`, `pmi` or `wilson`.
        min_count: The least count of a pair.
        skip_threshold: Feedback below it is a skip, in (-1, 1].

    Returns:
        The two tables, [V + 1, depth] int32; a row without mined items is all 0.

    Raises:
        TypeError: A setting is no number.
        ValueError: One is out of range, or the input has an item above `num_items`.

    Reference:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", Journal of the
        American Statistical Association 22, 1927, 209-212, doi 10.1080/01621459.1927.10502953. Church, Hanks,
        "Word Association Norms, Mutual Information, and Lexicography", Computational Linguistics 16(1), 1990.

    Examples:
        >>> from skipcl_lightning.data import SessionStore
        >>> store = SessionStore(
        ...     items=np.array([1, 2, 3, 9], dtype=np.int32),
        ...     feedback=np.array([1, -1, 1, -1], dtype=np.float32),
        ...     offsets=np.array([0, 4]), session_ids=pl.Series(["a"]),
        ... )
        >>> train = SessionView(store, np.array([0]), np.array([3]), with_target=True)
        >>> mined = mine_transitions(train, 3, depth=2, min_count=1)
        >>> mined.skipped_after.tolist()
        [[0, 0], [2, 0], [0, 0], [0, 0]]
        >>> mined.listened_after.tolist()
        [[0, 0], [3, 0], [3, 0], [0, 0]]
    """
    check_integer("num_items", num_items)
    check_integer("depth", depth)
    check_choice("score", score, get_args(MiningScore))
    check_integer("min_count", min_count)
    check_number("skip_threshold", skip_threshold, minimum=-1, maximum=1, open_minimum=True)
    tables = (
        _best_rows(_scored(pairs, score, min_count), num_items, depth)
        for pairs in (
            _right_after(view, num_items, skip_threshold),
            _listened_after(view, num_items, skip_threshold),
        )
    )
    return MinedItems(*tables)


def sample_mined(
    table: Tensor, items: Tensor, num_samples: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw from the mined items of each item, uniformly and with replacement.

    Args:
        table: [V + 1, depth] int32 or int64, a table of `MinedItems` as a tensor on the device of `items`.
        items: [B, L] int64 in 0..V; 0 is padding.
        num_samples: The number of draws for each position.
        generator: The source of randomness; None for torch's global generator.

    Returns:
        [B, L, num_samples] int64 in 0..V; 0 at padding and for items without mined ones.

    Raises:
        TypeError: A tensor has the wrong dtype or `num_samples` is no integer.
        ValueError: A shape is wrong or `num_samples` is below 1.

    Examples:
        >>> sample_mined(torch.tensor([[0, 0], [2, 0], [0, 0]]), torch.tensor([[1, 2, 0]]), num_samples=2)
        tensor([[[2, 2],
                 [0, 0],
                 [0, 0]]])
    """
    check_shape("table", table, "V+1 depth")
    if table.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"`table` must be of dtype torch.int32 or torch.int64, got {table.dtype}.")
    check_shape("items", items, "B L", dtype=torch.int64)
    check_integer("num_samples", num_samples)
    mined = table[items]  # [B, L, depth]
    counts = (mined != 0).sum(dim=-1, keepdim=True)  # [B, L, 1]
    # The remainder of a large integer: its bias is below depth / 2^62, and it never equals the count, unlike
    # a rounded product of floats.
    numbers = torch.randint(2**62, (*items.shape, num_samples), device=items.device, generator=generator)
    # An item without entries draws column 0 of its row, which is 0.
    columns = numbers % counts.clamp(min=1)  # [B, L, num_samples]
    return mined.gather(-1, columns).long()


class _VisibleTracks(NamedTuple):
    """The inputs of some rows of a view, one after the other: [items] arrays.

    `rejected` is skipped or disliked, and not liked; `listened` is neither skipped nor disliked; `last` is
    the position of the last visible item of each one's session.
    """

    items: NDArray[np.int32]
    rejected: NDArray[np.bool_]
    listened: NDArray[np.bool_]
    last: NDArray[np.int64]


def _visible_tracks(
    view: SessionView, rows: NDArray[np.int64], ends: NDArray[np.int64], skip_threshold: float
) -> _VisibleTracks:
    places = np.repeat(view.store.offsets[rows], ends) + count_within(ends)
    # numpy, like torch and unlike polars, rounds the threshold to float32 first.
    feedback = view.store.feedback[places]
    listened, explicit = feedback >= skip_threshold, None
    if view.store.explicit_feedback is not None:
        explicit = view.store.explicit_feedback[places]
        listened &= explicit >= 0
    return _VisibleTracks(
        view.store.items[places],
        is_rejected(feedback, explicit, skip_threshold),
        listened,
        np.repeat(np.cumsum(ends) - 1, ends),
    )


def _right_after(view: SessionView, num_items: int, skip_threshold: float) -> pl.LazyFrame:
    """Return `count`, how often a follower was skipped right after an item, and `chances`, its count."""

    def find(tracks: _VisibleTracks) -> Pairs:
        first = np.flatnonzero(np.arange(len(tracks.last)) < tracks.last)
        return first, first + 1

    return _count_pairs(view, num_items, skip_threshold, find).with_columns(pl.col("came").alias("chances"))


def _listened_after(view: SessionView, num_items: int, skip_threshold: float) -> pl.LazyFrame:
    """Return `count`, how often a follower was the next listened item, and `chances`, the sum over all."""

    def find(tracks: _VisibleTracks) -> Pairs:
        places = np.arange(len(tracks.last))
        # The nearest listened position at or after each one, from the right; past the end if there is none.
        listened = np.where(tracks.listened, places, len(places))
        nearest = np.minimum.accumulate(listened[::-1])[::-1]
        following = np.append(nearest[1:], len(places))
        first = np.flatnonzero(following <= tracks.last)
        return first, following[first]

    return _count_pairs(view, num_items, skip_threshold, find).with_columns(
        pl.col("came").alias("count"), pl.col("came").sum().over("item").alias("chances")
    )


def _count_pairs(
    view: SessionView,
    num_items: int,
    skip_threshold: float,
    find: Callable[[_VisibleTracks], Pairs],
) -> pl.LazyFrame:
    """Return one row for each pair of different items: how often it `came`, and the `count` with a skip."""
    schema = {"item": pl.Int32, "follower": pl.Int32, "came": pl.UInt32, "count": pl.UInt32}
    counted = [pl.DataFrame(schema=schema)]
    for rows, ends in view.blocks(_BLOCK):
        tracks = _visible_tracks(view, rows, ends, skip_threshold)
        largest = int(tracks.items.max(initial=0))
        if largest > num_items:
            raise ValueError(
                f"`num_items` must be at least the largest item of `view`, {largest}, got {num_items}. "
                "Give the length of the vocabulary."
            )
        first, second = find(tracks)
        pairs = {
            "item": tracks.items[first],
            "follower": tracks.items[second],
            "count": tracks.rejected[second],
        }
        came = pl.DataFrame(pairs).filter(pl.col("item") != pl.col("follower"))
        counted.append(_sum_pairs(came.with_columns(pl.lit(1, dtype=pl.UInt32).alias("came"))))
        # Equal pairs are added up.
        if len(counted) > _MOST_BLOCKS:
            counted = [_sum_pairs(pl.concat(counted))]
    return _sum_pairs(pl.concat(counted)).lazy()


def _sum_pairs(pairs: pl.DataFrame) -> pl.DataFrame:
    return pairs.group_by("item", "follower").agg(pl.col("came").sum(), pl.col("count").sum().cast(pl.UInt32))


def _scored(pairs: pl.LazyFrame, score: MiningScore, min_count: int) -> pl.DataFrame:
    formulas = {"count": pl.col("count"), "pmi": _mutual_information(), "wilson": _wilson_lower_bound()}
    scored = pairs.select("item", "follower", "count", formulas[score].alias("score"))
    # After the scores, whose sums cover all pairs.
    return scored.filter(pl.col("count") >= min_count).collect()


def _mutual_information() -> pl.Expr:
    # Float: the product of two counts, which are uint32, would wrap around.
    count = pl.col("count").cast(pl.Float64)
    of_item, of_follower = count.sum().over("item"), count.sum().over("follower")
    return (count * count.sum() / (of_item * of_follower)).log()


def _wilson_lower_bound() -> pl.Expr:
    chances, z = pl.col("chances").cast(pl.Float64), _NORMAL_QUANTILE
    share = pl.col("count") / chances
    spread = z * (share * (1 - share) / chances + z**2 / (4 * chances**2)).sqrt()
    return (share + z**2 / (2 * chances) - spread) / (1 + z**2 / chances)


def _best_rows(pairs: pl.DataFrame, num_items: int, depth: int) -> NDArray[np.int32]:
    best = (
        pairs.sort("item", "score", "count", "follower", descending=[False, True, True, False])
        .select("item", "follower", pl.int_range(pl.len()).over("item").alias("place"))
        .filter(pl.col("place") < depth)
    )
    table = np.zeros((num_items + 1, depth), dtype=np.int32)
    table[best["item"].to_numpy(), best["place"].to_numpy()] = best["follower"].to_numpy()
    return table
