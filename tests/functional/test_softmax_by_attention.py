"""The kernel itself needs a GPU (`tests/test_gpu.py`); what is made of it is shown with a plain one here."""

import sys

import pytest
import torch

from skipcl_lightning.functional import chunked_softmax_loss, full_softmax_loss
from skipcl_lightning.functional.softmax_by_attention import can_attend, softmax_by_attention

MODULE = sys.modules["skipcl_lightning.functional.softmax_by_attention"]
CHUNKED = sys.modules["skipcl_lightning.functional.chunked_softmax"]


def plain_attention(query, key, value, query_ends, key_ends, *longest, return_aux, scale):
    """Segment by segment, in float64 within."""
    assert return_aux.lse
    assert query.shape[2] % 8 == 0
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert longest == (int(query_ends.diff().max()), int(key_ends.diff().max()))
    outputs, totals = [], []
    for part in range(len(query_ends) - 1):
        some = query[query_ends[part] : query_ends[part + 1], 0].double()
        keys, values = (one[key_ends[part] : key_ends[part + 1], 0].double() for one in (key, value))
        logits = scale * some @ keys.T
        outputs.append(logits.softmax(dim=1) @ values)
        totals.append(logits.logsumexp(dim=1))
    return torch.cat(outputs)[:, None].to(query.dtype), torch.cat(totals).float()[None]


@pytest.fixture(autouse=True)
def _plain_kernel(monkeypatch):
    monkeypatch.setattr(MODULE, "varlen_attn", plain_attention)
    monkeypatch.setattr(MODULE, "_LEAST_ITEMS", 4)


def inputs(num_queries=6, num_items=29, size=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(num_queries, size, generator=generator)
    table = torch.randn(num_items + 1, size, generator=generator)
    target = torch.randint(1, num_items + 1, (num_queries,), generator=generator)
    share = torch.rand(num_queries, generator=generator)
    return query.to(dtype), table.to(dtype), target, share / share.sum()


@pytest.mark.parametrize(("size", "num_items"), [(5, 29), (8, 3), (16, 64)])
@pytest.mark.parametrize("rows", [1, 20, 2**15])
def test_it_is_the_plain_loss_and_its_gradients(size, num_items, rows, monkeypatch):
    monkeypatch.setattr(MODULE, "_ROWS", rows)  # from a single part to as many as there may be
    query, table, target, share = inputs(num_items=num_items, size=size)
    leaves = [query.clone().requires_grad_(), table.clone().requires_grad_()]
    expected = (full_softmax_loss(*leaves, target) * share).sum()
    gradients = torch.autograd.grad(expected, leaves)
    found = softmax_by_attention(query, table, target, share)
    for one, right in zip(found, (expected.detach(), *gradients), strict=True):
        torch.testing.assert_close(one, right, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_table_that_is_not_learned_is_not_found():
    query, table, target, share = inputs()
    whole = softmax_by_attention(query, table, target, share)
    found = softmax_by_attention(query, table, target, share, wants_table=False)
    assert found[2] is None
    assert torch.equal(found[0], whole[0])
    assert torch.equal(found[1], whole[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_more_than_a_chunk_in_half_precision_goes_this_way(dtype, monkeypatch):
    query, table, target, weight = inputs()
    calls = []
    monkeypatch.setattr(CHUNKED, "can_attend", lambda query, low: calls.append(low) or True)
    leaves = [query.clone().requires_grad_(), table.clone().requires_grad_()]
    with torch.autocast("cpu", dtype=dtype):
        loss = chunked_softmax_loss(*leaves, target, weight, chunk_size=5)
        assert calls == [dtype]
        chunked_softmax_loss(*leaves, target, weight, chunk_size=6)
        assert calls == [dtype]
    (1000 * loss).backward()
    plain = [query.clone().requires_grad_(), table.clone().requires_grad_()]
    expected = (full_softmax_loss(*plain, target) * weight).sum()
    (1000 * expected).backward()
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0)
    for one, right in zip(leaves, plain, strict=True):
        assert one.grad.dtype == torch.float32
        assert (one.grad - right.grad).norm() < 0.01 * right.grad.norm()


def test_there_is_no_such_kernel_on_a_cpu_or_in_float32():
    query = torch.ones(2, 8)
    assert not can_attend(query, torch.bfloat16)
    assert not can_attend(query.to("meta"), torch.float32)
