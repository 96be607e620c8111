"""Rows looked up often in a step leave one gradient, that of torch's own lookups."""

import pytest
import torch
import torch.nn.functional as F

from skipcl_lightning.functional.next_item.look_up import add_content, gather_gradients, look_up
from skipcl_lightning.model import ItemEmbedding


def tables():
    torch.manual_seed(0)
    table = torch.randn(9, 3, dtype=torch.float64)
    return table.clone().requires_grad_(), table.clone().requires_grad_()


@pytest.mark.parametrize("also_dense", [False, True])
def test_the_gradient_is_that_of_separate_lookups(also_dense):
    plain, table = tables()
    first, second = torch.tensor([[1, 2, 0], [2, 2, 8]]), torch.tensor([2, 0])
    weights = torch.randn(2, 3, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)

    def loss(one, other, whole):
        dense = whole.square().sum() if also_dense else 0
        return (one * weights[0]).sum() + (other.square() * weights[1]).sum() + dense

    loss(F.embedding(first, plain, 0), F.embedding(second, plain), plain).backward()
    gathered = gather_gradients(table)
    loss(look_up(first, gathered, padding_index=0), look_up(second, gathered), gathered).backward()
    assert not table.grad.is_sparse
    torch.testing.assert_close(table.grad, plain.grad)


def test_one_dense_gradient_is_made_and_not_one_a_lookup():
    _, table = tables()
    gathered = gather_gradients(table)
    parts = [look_up(torch.tensor([one]), gathered).sum() for one in (1, 2, 3)]
    with torch.profiler.profile(acc_events=True) as profile:
        torch.stack(parts).sum().backward()
    made = [event for event in profile.events() if event.name == "aten::embedding_dense_backward"]
    assert len(made) == 1


def test_nothing_to_learn_is_no_error():
    table = torch.ones(3, 2)
    assert torch.equal(look_up(torch.tensor([1]), gather_gradients(table)), table[1:2])


def test_the_context_ends_with_an_error_too():
    items = ItemEmbedding(4, 2, sparse=False)
    with pytest.raises(IndexError), items.gathered_gradients():
        items(torch.tensor([99]))
    assert items.table is items.weight


def test_a_sparse_table_keeps_its_sparse_gradient():
    items = ItemEmbedding(4, 2, sparse=True)
    with items.gathered_gradients():
        items(torch.tensor([1, 1])).sum().backward()
    assert items.weight.grad.is_sparse


@pytest.mark.parametrize("sparse", [False, True])
def test_content_is_added_to_the_kept_rows_and_each_gets_its_gradient(sparse):
    plain, table = tables()
    content = torch.randn(9, 3, requires_grad=True)
    own = content.detach().double().requires_grad_()
    keep = torch.arange(9) % 3 != 2
    items = torch.tensor([[1, 2, 2], [4, 4, 8]])
    weights = torch.randn(2, 3, 3, dtype=torch.float64)
    total = add_content(table, content, keep)
    expected = plain * keep[:, None] + own
    torch.testing.assert_close(total, expected)
    (F.embedding(items, expected) * weights).sum().backward()
    (look_up(items, total, sparse=sparse) * weights).sum().backward()
    assert table.grad.is_sparse == sparse
    torch.testing.assert_close(table.grad.to_dense(), plain.grad)
    assert content.grad.dtype == torch.float32
    torch.testing.assert_close(content.grad, own.grad.float())
