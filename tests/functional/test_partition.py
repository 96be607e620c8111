"""The logarithm of the sum over the catalogue, in chunks and as it is written."""

import math

import pytest
import torch

from skipcl_lightning.functional.next_item.full_softmax import log_partition


def tensors(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(7, 3, generator=generator, dtype=dtype, requires_grad=True)
    return query, torch.randn(6, 3, generator=generator, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, None])
def test_it_equals_the_slow_loop_in_chunks_of_any_size(chunk_size):
    query, table = tensors()
    found = log_partition(query, table, chunk_size=chunk_size)
    for row, value in zip(query.tolist(), found.tolist(), strict=True):
        total = 0.0
        for item in table[1:].tolist():
            total += math.exp(sum(a * b for a, b in zip(row, item, strict=True)))
        assert value == pytest.approx(math.log(total))


def test_gradients_in_chunks():
    query, table = tensors()
    assert torch.autograd.gradcheck(lambda q, e: log_partition(q, e, chunk_size=3), (query, table))
    log_partition(query, table, chunk_size=3).sum().backward()
    assert not table.grad[0].any()


def shapes_kept(chunk_size):
    query, table = tensors(torch.float32)
    kept = set()

    def pack(one):
        kept.add(tuple(one.shape))
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        log_partition(query, table, chunk_size=chunk_size)
    return kept


def test_no_logits_are_kept_for_the_gradients_of_chunks():
    assert (7, 5) in shapes_kept(7)
    assert not shapes_kept(3) & {(3, 5), (1, 5), (7, 5)}


def test_no_queries_have_no_sums():
    _, table = tensors()
    assert log_partition(table.new_zeros(0, 3), table).shape == (0,)


def test_bad_arguments_are_named():
    query, table = tensors()
    with pytest.raises(ValueError, match="`chunk_size` must be at least 1"):
        log_partition(query, table, chunk_size=0)
    with pytest.raises(ValueError, match="`item_embeddings`"):
        log_partition(query, table[:, :2])
