import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import EvaluationSampler


@given(rows=st.integers(1, 40), processes=st.integers(1, 8))
def test_the_processes_share_all_rows_without_a_repeat(rows, processes):
    if rows < processes:
        with pytest.raises(ValueError, match=f"a row for each of the {processes} processes, got {rows}"):
            EvaluationSampler(range(rows), processes, 0)
        return
    shares = [EvaluationSampler(range(rows), processes, rank) for rank in range(processes)]
    assert sorted(row for share in shares for row in share) == list(range(rows))
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_another_epoch_changes_nothing():
    sampler = EvaluationSampler(range(7), 2, 1)
    before = list(sampler)
    sampler.set_epoch(3)
    assert list(sampler) == before
