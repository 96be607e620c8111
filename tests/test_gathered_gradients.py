"""A training step whose losses only look rows up makes one dense gradient of the item table."""

import copy
from contextlib import nullcontext

import pytest
import torch
from small_models import ROW_HEADS, batch, module
from torch.utils._python_dispatch import TorchDispatchMode

from skipcl_lightning.backbones import BERT4Rec, SASRec
from skipcl_lightning.heads import (
    FullSoftmax,
    SampledSoftmax,
    SkipUnlikelihood,
)


def sessions():
    mined = torch.randint(1, 10, (*batch().items.shape, 2), generator=torch.Generator().manual_seed(0))
    return batch().replace(mined_negatives=mined, mined_positives=mined.flip(2))


class CountDenseGradients(TorchDispatchMode):
    """Counts the dense gradients that are made of lookups."""

    made = 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        self.made += function is torch.ops.aten.embedding_dense_backward.default
        return function(*arguments, **(settings or {}))


def step(one):
    """The gradients, and how many dense ones were made of lookups."""
    torch.manual_seed(1)
    with CountDenseGradients() as count:
        one.losses(one.part_losses(sessions()))["loss"].backward()
    return {name: parameter.grad for name, parameter in one.named_parameters()}, count.made


@pytest.mark.parametrize("head", ROW_HEADS)
@pytest.mark.parametrize("backbone", [SASRec, BERT4Rec])
def test_the_gradients_are_those_of_separate_lookups(backbone, head, monkeypatch):
    part = backbone(8, max_length=12, dropout=0.0)
    gathered = module(part, ROW_HEADS[head](), next_item_loss=SampledSoftmax(4))
    plain = copy.deepcopy(gathered)
    monkeypatch.setattr(plain.model.item_embedding, "gathered_gradients", nullcontext)
    (found, fewer), (expected, more) = step(gathered), step(plain)
    assert fewer < more
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    assert gathered.item_table is gathered.model.item_embedding.weight


@pytest.mark.parametrize(
    ("loss", "head"), [(FullSoftmax, None), (lambda: SampledSoftmax(4), SkipUnlikelihood)]
)
def test_a_loss_over_the_whole_table_leaves_its_dense_gradient_alone(loss, head, monkeypatch):
    one = module(SASRec(8, max_length=12), head and head(), next_item_loss=loss())
    monkeypatch.delattr(type(one.model.item_embedding), "gathered_gradients")
    one.losses(one.part_losses(sessions()))["loss"].backward()
    assert one.model.item_embedding.weight.grad.any()
