import pytest
import torch

from skipcl_lightning.backbones import BERT4Rec, ESASRec, SASRec
from skipcl_lightning.backbones.transformer import Packing

MAKERS = {
    "SASRec": lambda: SASRec(8, max_length=7, num_heads=2, dropout=0.0),
    "SASRec, post-norm": lambda: SASRec(8, max_length=7, norm="post", dropout=0.0),
    "ESASRec": lambda: ESASRec(8, max_length=7, dropout=0.0),
    "BERT4Rec": lambda: BERT4Rec(8, max_length=7, dropout=0.0),
}
LENGTHS = torch.tensor([0, 3, 7, 0, 5, 1])
MASK = torch.arange(7) < LENGTHS[:, None]


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_outputs_and_gradients_are_those_with_padding(monkeypatch, name, last_only):
    torch.manual_seed(0)
    backbone = MAKERS[name]().double()
    x = torch.randn(6, 7, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(6, 1 if last_only else 7, 8, dtype=torch.float64)
    found = []
    for packed in (True, False):
        if not packed:
            monkeypatch.setattr(Packing, "of", lambda mask: None)
        output = backbone(x, MASK, last_only=last_only)
        given = [x, *backbone.parameters()]
        gradients = torch.autograd.grad((output * weights).sum(), given, materialize_grads=True)
        found.append((output, *gradients))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_feed_forward_network_sees_no_padding():
    backbone, seen = MAKERS["SASRec"](), []
    for block in backbone.blocks:
        block.feed_forward.register_forward_hook(lambda part, inputs, output: seen.append(output.shape[:-1]))
    backbone(torch.randn(6, 7, 8), MASK)
    assert seen == [(16,)] * 2


def test_an_item_goes_to_its_place_and_back():
    packing = Packing.of(MASK)
    x = torch.arange(42.0).view(6, 7, 1)
    assert packing.pack(x).squeeze(1).tolist() == x[MASK].squeeze(1).tolist()
    assert torch.equal(packing.unpack(packing.pack(x))[MASK], x[MASK])
    filled = [1, 2, 4, 5]  # the sessions with items
    assert packing.pack(x)[packing.last[filled], 0].tolist() == [7 + 2, 14 + 6, 28 + 4, 35 + 0]


@pytest.mark.parametrize("mask", [torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)])
def test_a_batch_without_padding_or_without_items_stays_as_it_is(mask):
    assert Packing.of(mask) is None
