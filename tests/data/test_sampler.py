import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import EvaluationSampler, TrainingSampler, keep_batch
from skipcl_lightning.data import batches as batches_room


@given(rows=st.integers(1, 40), processes=st.integers(1, 8))
def test_the_processes_share_all_rows_in_order_without_a_repeat(rows, processes):
    if rows < processes:
        with pytest.raises(ValueError, match=f"a row for each of the {processes} processes, got {rows}"):
            EvaluationSampler(range(rows), processes, 0)
        return
    shares = [EvaluationSampler(range(rows), processes, rank) for rank in range(processes)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_another_epoch_changes_nothing_at_evaluation():
    sampler = EvaluationSampler(range(7), 2, 1)
    before = list(sampler)
    sampler.set_epoch(3)
    assert list(sampler) == before


@st.composite
def settings(draw):
    rows = draw(st.integers(1, 300))
    return {
        "rows": rows,
        "batch_size": draw(st.integers(1, 9)),
        "bucket_batches": draw(st.integers(0, 4)),
        "processes": draw(st.integers(1, 4)),
        "epoch": draw(st.integers(0, 3)),
        "lengths": np.random.default_rng(rows).integers(1, 30, rows),
    }


def make(rows, batch_size, bucket_batches, processes, epoch, lengths, rank=0, seed=0):
    sampler = TrainingSampler(
        range(rows),
        batch_size=batch_size,
        lengths=lengths,
        bucket_batches=bucket_batches,
        seed=seed,
        num_replicas=processes,
        rank=rank,
    )
    sampler.set_epoch(epoch)
    return sampler


@given(setting=settings())
def test_all_rows_come_in_training_and_at_most_the_last_few_twice(setting):
    shares = [list(make(**setting, rank=rank)) for rank in range(setting["processes"])]
    counts = np.bincount(np.concatenate(shares), minlength=setting["rows"])
    assert counts.min() >= 1
    assert counts.sum() - setting["rows"] < setting["processes"]
    assert {len(share) for share in shares} == {len(make(**setting))}


@given(setting=settings(), part=st.floats(0, 1))
def test_from_any_batch_on_the_order_is_the_same_and_only_once(setting, part):
    whole = list(make(**setting))
    batch = round(part * len(whole) / setting["batch_size"])
    sampler = make(**setting)
    sampler.start_from(batch)
    assert list(sampler) == whole[batch * setting["batch_size"] :]
    assert list(sampler) == whole


def test_the_order_depends_on_seed_and_epoch_alone_and_not_on_the_block_it_is_computed_in(monkeypatch):
    setting = {"rows": 100, "batch_size": 8, "bucket_batches": 0, "processes": 1, "lengths": None}
    first = list(make(**setting, epoch=0))
    monkeypatch.setattr(batches_room, "_BLOCK", 16)
    assert list(make(**setting, epoch=0)) == first
    assert list(make(**setting, epoch=1)) != first
    assert list(make(**setting, epoch=0, seed=1)) != first


def test_buckets_hold_like_lengths_and_an_epoch_does_not_go_from_short_to_long():
    lengths = np.random.default_rng(0).integers(1, 100, 4096)
    sampler = TrainingSampler(
        range(4096), batch_size=32, lengths=lengths, bucket_batches=64, num_replicas=1, rank=0
    )
    batches = lengths[np.array(list(sampler))].reshape(-1, 32)
    plain = TrainingSampler(range(4096), batch_size=32, num_replicas=1, rank=0)
    padded = (batches.max(axis=1) * 32).sum() / lengths.sum()
    assert padded < 1.05
    assert (lengths[np.array(list(plain))].reshape(-1, 32).max(axis=1) * 32).sum() / lengths.sum() > 1.5
    means = batches[:64].mean(axis=1)
    assert abs(np.corrcoef(means, np.arange(64))[0, 1]) < 0.5


def test_in_a_distributed_run_the_processes_batches_have_like_lengths():
    lengths = np.random.default_rng(0).integers(1, 100, 4096)
    shares = [
        lengths[
            list(
                TrainingSampler(
                    range(4096), batch_size=32, lengths=lengths, bucket_batches=8, num_replicas=2, rank=rank
                )
            )
        ].reshape(-1, 32)
        for rank in range(2)
    ]
    assert np.abs(shares[0].mean(axis=1) - shares[1].mean(axis=1)).max() < 2


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"batch_size": 0}, ValueError),
        ({"batch_size": 1, "seed": -1}, ValueError),
        ({"batch_size": 1, "bucket_batches": -1}, ValueError),
        ({"batch_size": 1, "bucket_batches": 2}, ValueError),
        ({"batch_size": 1.5}, TypeError),
    ],
)
def test_settings_of_the_training_order_are_checked(setting, error):
    with pytest.raises(error, match="must be"):
        TrainingSampler(range(5), num_replicas=1, rank=0, **setting)


def test_no_order_starts_before_its_first_batch():
    with pytest.raises(ValueError, match="`batch` must be at least 0, got -1"):
        TrainingSampler(range(5), batch_size=1, num_replicas=1, rank=0).start_from(-1)


def test_the_order_of_buckets_depends_on_the_epoch_even_where_lengths_leave_no_choice():
    # All lengths differ, so that the batches are the same in each epoch, but not their order.
    lengths = np.arange(1, 65)
    orders = []
    for epoch in range(2):
        sampler = TrainingSampler(
            range(64), batch_size=4, lengths=lengths, bucket_batches=16, num_replicas=1, rank=0
        )
        sampler.set_epoch(epoch)
        orders.append(np.array(list(sampler)).reshape(16, 4).tolist())
    assert sorted(map(sorted, orders[0])) == sorted(map(sorted, orders[1]))
    assert orders[0] != orders[1]


def test_the_order_of_a_seed_is_the_same_in_every_release():
    # A checkpoint of today is resumed with the order of then.
    sampler = TrainingSampler(range(7), batch_size=2, num_replicas=1, rank=0, seed=3)
    assert list(sampler) == [3, 0, 2, 5, 4, 6, 1]
    sampler = TrainingSampler(range(200_000), batch_size=2, num_replicas=1, rank=0, seed=3)
    assert list(sampler)[:5] == [153646, 87938, 18872, 67206, 143074]


@pytest.mark.parametrize("given", range(5))
def test_an_epoch_goes_on_after_any_number_of_its_batches(given):
    def loader():
        sampler = TrainingSampler(range(10), batch_size=3, num_replicas=1, rank=0)
        return batches_room.ResumableLoader(range(10), batch_size=3, sampler=sampler, collate_fn=keep_batch)

    broken_off, resumed, later = loader(), loader(), loader()
    batches, iterator = list(loader()), iter(broken_off)
    for _ in range(given):
        next(iterator)
    state = broken_off.state_dict()
    assert (state["epoch"], state["batches"], len(batches)) == (0, given, 4)
    resumed.load_state_dict(state)
    # A finished epoch has no batches left, so the next iteration is a new one.
    assert list(resumed) == (batches[given:] if given < 4 else batches)
    assert list(resumed) == batches
    later.load_state_dict(state)
    later.sampler.set_epoch(1)
    assert len(list(later)) == 4


@pytest.mark.parametrize(
    "kind", [EvaluationSampler, lambda *rows, **some: TrainingSampler(*rows, batch_size=2, **some)]
)
def test_rows_are_shared_by_the_processes_that_there_are_when_they_are_drawn(monkeypatch, kind):
    early = kind(range(7))
    assert len(early) == len(list(early)) == 7
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    expected = kind(range(7), num_replicas=2, rank=1)
    assert (len(early), list(early)) == (len(expected), list(expected))
    assert len(kind(range(7), num_replicas=1, rank=0)) == 7  # as it was given
    with pytest.raises(ValueError, match="a row for each of the 2 processes, got 1"):
        list(EvaluationSampler(range(1)))
