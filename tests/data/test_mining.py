from collections import Counter
from math import log, sqrt
from statistics import NormalDist

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import (
    SessionDataModule,
    SessionStore,
    SessionView,
    leave_one_out,
    mining,
    simulate_sessions,
)
from skipcl_lightning.data.mining import mine_transitions, sample_mined

NUM_ITEMS = 6
SCORES = ("count", "pmi", "wilson")
TRACK = st.tuples(st.integers(1, 4), st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]))
SESSIONS = st.lists(st.lists(TRACK, min_size=1, max_size=12), min_size=1, max_size=8)
SETTINGS = st.fixed_dictionaries(
    {
        "depth": st.integers(1, 5),
        "score": st.sampled_from(SCORES),
        "min_count": st.integers(1, 3),
        "skip_threshold": st.sampled_from([-0.5, 0.0, 0.3, 0.5]),
    }
)


def store_of(sessions):
    tracks = [track for session in sessions for track in session]
    return SessionStore(
        items=np.array([item for item, _ in tracks], dtype=np.int32),
        feedback=np.array([feedback for _, feedback in tracks], dtype=np.float32),
        offsets=np.cumsum([0, *map(len, sessions)]),
        session_ids=pl.Series(range(len(sessions))),
    )


def view_of(sessions, rows=None, ends=None):
    rows = range(len(sessions)) if rows is None else rows
    ends = [len(sessions[row]) for row in rows] if ends is None else ends
    return SessionView(
        store_of(sessions), np.array(rows, dtype=np.int64), np.array(ends, dtype=np.int64), with_target=False
    )


def tables_of(mined):
    return mined.skipped_after.tolist(), mined.listened_after.tolist()


def pairs_by_hand(visible, skip_threshold):
    skipped, right_after, listened = Counter(), Counter(), Counter()
    for session in visible:
        for position, (item, _) in enumerate(session):
            later = session[position + 1 :]
            if later and later[0][0] != item:
                right_after[item, later[0][0]] += 1
                skipped[item, later[0][0]] += later[0][1] < skip_threshold
            heard = [follower for follower, feedback in later if feedback >= skip_threshold]
            if heard and heard[0] != item:
                listened[item, heard[0]] += 1
    return skipped, right_after, listened


def score_by_hand(pairs, chances, score, item, follower):
    count = pairs[item, follower]
    if score == "count":
        return count
    if score == "pmi":
        of_item = sum(number for (first, _), number in pairs.items() if first == item)
        of_follower = sum(number for (_, second), number in pairs.items() if second == follower)
        return log(count * sum(pairs.values()) / (of_item * of_follower))
    z, n = NormalDist().inv_cdf(0.975), chances(item, follower)
    return (count + z * z / 2 - z * sqrt(count * (n - count) / n + z * z / 4)) / (n + z * z)


def table_by_hand(pairs, chances, *, depth, score, min_count):
    rows = [[0] * depth]
    for item in range(1, NUM_ITEMS + 1):
        # Rounded, so that scores that are equal but for their last bits tie.
        ranked = sorted(
            (-round(score_by_hand(pairs, chances, score, item, follower), 9), -count, follower)
            for (first, follower), count in pairs.items()
            if first == item and count >= min_count
        )
        best = [follower for *_, follower in ranked[:depth]]
        rows.append(best + [0] * (depth - len(best)))
    return rows


def tables_by_hand(visible, *, skip_threshold, **settings):
    skipped, right_after, listened = pairs_by_hand(visible, skip_threshold)

    def followed(item, _):
        return sum(number for (first, _), number in listened.items() if first == item)

    return (
        table_by_hand(skipped, lambda *pair: right_after[pair], **settings),
        table_by_hand(listened, followed, **settings),
    )


@given(sessions=SESSIONS, settings=SETTINGS, data=st.data())
def test_the_tables_are_those_of_a_loop_over_sessions(sessions, settings, data):
    rows = data.draw(st.lists(st.integers(0, len(sessions) - 1), max_size=8))
    ends = [data.draw(st.integers(1, len(sessions[row]))) for row in rows]
    visible = [sessions[row][:end] for row, end in zip(rows, ends, strict=True)]
    mined = mine_transitions(view_of(sessions, rows, ends), NUM_ITEMS, **settings)
    assert tables_of(mined) == tables_by_hand(visible, **settings)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("depth", [1, 3, 40])
def test_the_tables_of_many_sessions_are_those_of_a_loop_over_sessions(score, depth):
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 30, size=200)
    sessions = [
        list(
            zip(generator.integers(1, 7, size).tolist(), generator.uniform(-1, 1, size).tolist(), strict=True)
        )
        for size in lengths
    ]
    settings = {"depth": depth, "score": score, "min_count": 60, "skip_threshold": 0.2}
    expected = tables_by_hand(sessions, **settings)
    assert tables_of(mine_transitions(view_of(sessions), NUM_ITEMS, **settings)) == expected
    assert max(map(max, expected[0])) > 0


@given(sessions=SESSIONS, settings=SETTINGS, data=st.data())
def test_nothing_after_the_ends_nor_outside_the_view_is_looked_at(sessions, settings, data):
    rows = data.draw(st.lists(st.integers(0, len(sessions) - 1), unique=True, min_size=1))
    ends = [data.draw(st.integers(1, len(sessions[row]))) for row in rows]
    seen = dict(zip(rows, ends, strict=True))
    other = st.tuples(st.integers(1, 99), st.sampled_from([-1.0, 1.0, float("nan")]))
    changed = [
        session[: seen.get(row, 0)] + [data.draw(other) for _ in session[seen.get(row, 0) :]]
        for row, session in enumerate(sessions)
    ]
    mined = mine_transitions(view_of(sessions, rows, ends), NUM_ITEMS, **settings)
    assert tables_of(mine_transitions(view_of(changed, rows, ends), NUM_ITEMS, **settings)) == tables_of(
        mined
    )


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_target_of_a_split_is_not_mined(split):
    view = leave_one_out(store_of([[(1, 1.0), (2, 1.0), (3, 1.0)]]))[split]
    mined = mine_transitions(view, 3, depth=1, min_count=1)
    assert mined.listened_after[:, 0].tolist() == ([0, 2, 0, 0] if split == "test" else [0] * 4)


@given(sessions=SESSIONS, settings=SETTINGS, data=st.data())
def test_the_order_of_the_sessions_does_not_matter(sessions, settings, data):
    shuffled = data.draw(st.permutations(sessions))
    mined = mine_transitions(view_of(sessions), NUM_ITEMS, **settings)
    assert tables_of(mine_transitions(view_of(shuffled), NUM_ITEMS, **settings)) == tables_of(mined)


def test_pairs_do_not_cross_sessions():
    mined = mine_transitions(view_of([[(1, 1.0)], [(2, -1.0), (3, 1.0)]]), 3, depth=1, min_count=1)
    assert tables_of(mined) == ([[0], [0], [0], [0]], [[0], [0], [3], [0]])


def test_the_next_listened_track_is_found_across_skipped_ones_but_no_further():
    session = [(1, 1.0), (2, -1.0), (3, -1.0), (4, 1.0), (5, 1.0)]
    mined = mine_transitions(view_of([session]), 5, depth=2, min_count=1)
    assert mined.listened_after.tolist() == [[0, 0], [4, 0], [4, 0], [4, 0], [5, 0], [0, 0]]
    assert mined.skipped_after.tolist() == [[0, 0], [2, 0], [3, 0], [0, 0], [0, 0], [0, 0]]


def test_a_track_is_never_mined_for_itself_and_no_further_one_takes_its_place():
    mined = mine_transitions(view_of([[(1, 1.0), (1, -1.0), (1, 1.0), (2, 1.0)]]), 2, depth=2, min_count=1)
    assert tables_of(mined) == ([[0, 0]] * 3, [[0, 0], [2, 0], [0, 0]])


def test_a_track_can_be_in_both_tables_of_another():
    mined = mine_transitions(view_of([[(1, 1.0), (2, -1.0)], [(1, 1.0), (2, 1.0)]]), 2, depth=1, min_count=1)
    assert mined.skipped_after[1].tolist() == mined.listened_after[1].tolist() == [2]


def test_tracks_without_followers_and_padding_have_rows_of_zeros():
    mined = mine_transitions(view_of([[(1, 1.0), (2, -1.0), (3, 1.0)]] * 2), 4, depth=3)
    for table in (mined.skipped_after, mined.listened_after):
        assert table.shape == (5, 3)
        assert not table[[0, 3, 4]].any()
        assert table[1].any()


def test_a_view_without_sessions_gives_tables_of_zeros():
    mined = mine_transitions(view_of([[(1, 1.0), (2, 1.0)]], rows=[], ends=[]), 2, depth=2)
    assert tables_of(mined) == ([[0, 0]] * 3, [[0, 0]] * 3)


@pytest.mark.parametrize(("min_count", "expected"), [(1, [2, 3]), (2, [2, 3]), (3, [2, 0]), (4, [0, 0])])
def test_pairs_rarer_than_min_count_are_dropped(min_count, expected):
    sessions = [[(1, 1.0), (2, -1.0)]] * 3 + [[(1, 1.0), (3, -1.0)]] * 2
    mined = mine_transitions(view_of(sessions), 3, depth=2, min_count=min_count)
    assert mined.skipped_after[1].tolist() == expected


def test_dropped_pairs_still_count_in_the_sums_of_pmi():
    # Without the rare pairs 3 would only ever come after 1, and so stand before 2.
    rare = [[(item, 1.0), (3, -1.0)] for item in range(4, 9)]
    common = [[(1, 1.0), (2, -1.0)]] * 4 + [[(9, 1.0), (2, -1.0)]] * 4
    sessions = rare + common + [[(1, 1.0), (3, -1.0)]] * 3
    mined = mine_transitions(view_of(sessions), 9, depth=2, score="pmi", min_count=2)
    assert mined.skipped_after[1].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("score", "counts"),
    [
        # 60,000 · 80,002 is above 2^32.
        ("pmi", {(1, 2): 60_000, (1, 3): 2, (4, 3): 1, (5, 6): 19_999}),
        # 65,536 squared is 2^32.
        ("wilson", {(1, 2): 2**16, (1, 3): 2}),
    ],
)
def test_the_scores_of_frequent_pairs_do_not_wrap_around(score, counts):
    pairs = np.repeat(np.array(list(counts), dtype=np.int32), list(counts.values()), axis=0)
    store = SessionStore(
        items=pairs.ravel(),
        feedback=np.full(pairs.size, -1, dtype=np.float32),
        offsets=np.arange(len(pairs) + 1) * 2,
        session_ids=pl.Series(range(len(pairs))),
    )
    whole = SessionView(store, np.arange(len(store)), store.lengths, with_target=False)
    mined = mine_transitions(whole, 6, depth=2, score=score)
    assert mined.skipped_after[1].tolist() == [2, 3]


def test_wilson_weighs_a_share_against_how_often_it_was_seen_at_95_percent():
    # At 93 % 2 would stand before 3, at 97 % 4 before 2.
    shares = {2: (3, 3), 3: (7, 9), 4: (5, 6)}
    sessions = [
        [(1, 1.0), (item, -1.0 if number < skipped else 1.0)]
        for item, (skipped, came) in shares.items()
        for number in range(came)
    ]
    mined = mine_transitions(view_of(sessions), 4, depth=3, score="wilson")
    assert mined.skipped_after[1].tolist() == [3, 2, 4]


@pytest.mark.parametrize("score", SCORES)
def test_equal_scores_are_ordered_by_count_and_then_by_index(score):
    # By PMI all three followers score the same, though 3 is seen more often.
    sessions = [[(1, 1.0), (4, -1.0)], [(1, 1.0), (3, -1.0)], [(1, 1.0), (3, -1.0)], [(1, 1.0), (2, -1.0)]]
    mined = mine_transitions(view_of(sessions), 4, depth=4, score=score, min_count=1)
    assert mined.skipped_after[1].tolist() == [3, 2, 4, 0]


def test_a_threshold_between_two_floats_means_what_it_means_to_torch():
    # As float32 the threshold is the feedback itself, so the track counts as listened to.
    threshold = float(np.float32(0.3)) + 1e-9
    mined = mine_transitions(
        view_of([[(1, 1.0), (2, 0.3)]]), 2, depth=1, min_count=1, skip_threshold=threshold
    )
    assert not torch.tensor(0.3) < threshold
    assert tables_of(mined) == ([[0], [0], [0]], [[0], [2], [0]])


@pytest.mark.slow
@pytest.mark.parametrize("score", SCORES)
def test_a_million_items_can_be_mined(score):
    generator = np.random.default_rng(0)
    sessions, length, num_items = 200_000, 10, 1_000_000
    store = SessionStore(
        items=generator.integers(1, num_items + 1, sessions * length, dtype=np.int32),
        feedback=generator.uniform(-1, 1, sessions * length).astype(np.float32),
        offsets=np.arange(sessions + 1) * length,
        session_ids=pl.Series(range(sessions)),
    )
    mined = mine_transitions(leave_one_out(store)["train"], num_items, score=score, min_count=1)
    for table in (mined.skipped_after, mined.listened_after):
        assert table.dtype == np.int32
        assert table.shape == (num_items + 1, 20)
    # Pairs of random tracks seldom repeat: about half of the 7 in a session have a skip.
    assert np.count_nonzero(mined.skipped_after) == pytest.approx(sessions * 7 / 2, rel=0.01)
    assert np.count_nonzero(mined.listened_after) == pytest.approx(sessions * (6 + 2**-7), rel=0.01)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_items": 0}, ValueError, "`num_items` must be at least 1"),
        ({"num_items": 2.0}, TypeError, "`num_items` must be an integer"),
        ({"num_items": 1}, ValueError, "`num_items` must be at least the largest item of `view`, 2, got 1"),
        ({"depth": 0}, ValueError, "`depth` must be at least 1"),
        ({"depth": True}, TypeError, "`depth` must be an integer"),
        ({"score": "lift"}, ValueError, "`score` must be one of 'count', 'pmi', 'wilson', got 'lift'"),
        ({"min_count": 0}, ValueError, "`min_count` must be at least 1"),
        ({"min_count": 1.5}, TypeError, "`min_count` must be an integer"),
        ({"skip_threshold": -1.0}, ValueError, "`skip_threshold` must be in"),
        ({"skip_threshold": float("nan")}, ValueError, "`skip_threshold` must be in"),
        ({"skip_threshold": "0"}, TypeError, "`skip_threshold` must be a number"),
    ],
)
def test_bad_settings_of_mining_are_named(settings, error, message):
    view = view_of([[(1, 1.0), (2, 1.0)]])
    with pytest.raises(error, match=message):
        mine_transitions(view, **({"num_items": 2} | settings))


TABLE = torch.tensor([[0, 0, 0], [3, 2, 4], [5, 0, 0], [0, 0, 0], [1, 5, 0], [0, 0, 0]], dtype=torch.int32)


@given(
    rows=st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=4),
    num_samples=st.integers(1, 9),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_only_entries_of_the_own_row_are_drawn_and_0_where_there_are_none(rows, num_samples, dtype):
    drawn = sample_mined(TABLE.to(dtype), torch.tensor(rows), num_samples)
    assert drawn.shape == (len(rows), 3, num_samples)
    assert drawn.dtype == torch.int64
    for row, draws in zip(rows, drawn.tolist(), strict=True):
        for item, numbers in zip(row, draws, strict=True):
            allowed = set(TABLE[item].tolist()) - {0} or {0}
            assert set(numbers) <= allowed


def test_all_entries_of_a_row_are_drawn_about_uniformly():
    items = torch.tensor([[1, 4], [0, 1]])
    drawn = sample_mined(TABLE, items, 30_000, generator=torch.Generator().manual_seed(0))
    for place, entries in (((0, 0), [2, 3, 4]), ((0, 1), [1, 5]), ((1, 1), [2, 3, 4])):
        values, counts = drawn[place].unique(return_counts=True)
        assert values.tolist() == entries
        # Four standard deviations of a share are below 0.012.
        assert (counts / 30_000).tolist() == pytest.approx([1 / len(entries)] * len(entries), abs=0.012)


def test_positions_and_samples_are_drawn_independently():
    drawn = sample_mined(TABLE, torch.full((100, 100), 1), 2, generator=torch.Generator().manual_seed(0))
    for pairs in (drawn[..., 0] == drawn[..., 1], drawn[1:] == drawn[:-1], drawn[:, 1:] == drawn[:, :-1]):
        assert pairs.double().mean().item() == pytest.approx(1 / 3, abs=0.02)


def test_the_same_generator_gives_the_same_draw_and_leaves_the_global_one_alone():
    items = torch.full((20, 20), 1)
    state = torch.get_rng_state()
    first, second, other = (
        sample_mined(TABLE, items, 5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_was_mined_can_be_sampled():
    mined = mine_transitions(view_of([[(1, 1.0), (2, -1.0), (3, 1.0)]] * 2), 3, depth=4)
    items = torch.tensor([[1, 2, 3, 0]])
    assert sample_mined(torch.from_numpy(mined.skipped_after), items, 1).tolist() == [[[2], [0], [0], [0]]]
    assert sample_mined(torch.from_numpy(mined.listened_after), items, 1).tolist() == [[[3], [3], [0], [0]]]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"table": TABLE[0]}, ValueError, "`table` must have shape"),
        ({"table": TABLE.float()}, TypeError, "`table` must be of dtype torch.int32 or torch.int64"),
        ({"table": TABLE.numpy()}, TypeError, "`table` must be a tensor"),
        ({"items": torch.tensor([1])}, ValueError, "`items` must have shape"),
        ({"items": torch.ones(1, 1, dtype=torch.int32)}, TypeError, "`items` must be of dtype torch.int64"),
        ({"num_samples": 0}, ValueError, "`num_samples` must be at least 1"),
        ({"num_samples": 1.0}, TypeError, "`num_samples` must be an integer"),
    ],
)
def test_bad_arguments_of_sampling_are_named(changes, error, message):
    arguments = {"table": TABLE, "items": torch.tensor([[1]]), "num_samples": 1}
    with pytest.raises(error, match=message):
        sample_mined(**(arguments | changes))


@pytest.mark.parametrize("score", ["count", "pmi", "wilson"])
def test_how_many_sessions_are_counted_at_once_changes_nothing(monkeypatch, score):
    simulated = simulate_sessions(120, num_items=40)
    whole = SessionDataModule(simulated, mining_score=score).mined
    monkeypatch.setattr(mining, "_BLOCK", 7)
    monkeypatch.setattr(mining, "_MOST_BLOCKS", 2)
    blocks = SessionDataModule(simulated, mining_score=score).mined
    assert (blocks.skipped_after == whole.skipped_after).all()
    assert (blocks.listened_after == whole.listened_after).all()
    assert whole.skipped_after.any()
