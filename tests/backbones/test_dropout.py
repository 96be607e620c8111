import unittest.mock

import pytest
import torch
from samples import EVERY, all_valid, build, random_sessions
from torch import nn

from skipcl_lightning.backbones.dropout import attend, drop_units
from skipcl_lightning.backbones.transformer import SelfAttention


def dropouts_of(backbone):
    """Every dropout of ours: modules, attention's own, and that between layers of a recurrent network."""
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            yield module, "p"
        if isinstance(module, SelfAttention | nn.GRU):
            yield module, "dropout"


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"GPT-2 of another size"}))
def test_every_dropout_acts_by_itself_and_in_training_only(name):
    x, mask = random_sessions(2, 6), all_valid(2, 6)
    backbone = build(name)
    places = [place for place in dropouts_of(backbone) if getattr(*place)]
    assert places
    assert torch.equal(backbone(x, mask), backbone(x, mask))
    backbone.train()
    shares = [getattr(*place) for place in places]
    for place, share in zip(places, shares, strict=True):
        for other in places:
            setattr(*other, 0.0)
        setattr(*place, share)
        assert not torch.equal(backbone(x, mask), backbone(x, mask)), place


def count_dropouts(backbone):
    """How often a dropout of 0.2 acts in one training step."""
    with unittest.mock.patch("skipcl_lightning.backbones.dropout.drop_units", wraps=drop_units) as drop:
        backbone.train()(random_sessions(2, 6), all_valid(2, 6))
    return [call.args[1] for call in drop.call_args_list].count(0.2)


@pytest.mark.parametrize(
    ("name", "in_a_block"), [("SASRec", 4), ("post-norm SASRec", 4), ("ESASRec", 4), ("BERT4Rec", 3)]
)
def test_every_dropout_that_a_transformer_promises_is_there(name, in_a_block):
    # At the input; and in attention, behind it, perhaps inside the feed-forward network, and behind that.
    assert count_dropouts(build(name)) == 1 + 2 * in_a_block


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_a_unit_is_dropped_with_the_share_and_the_mean_stays(share):
    torch.manual_seed(0)
    x = torch.ones(400_001, dtype=torch.float64, requires_grad=True)
    kept = drop_units(x, share)
    error = 5 * (share * (1 - share) / x.numel()) ** 0.5
    assert abs((kept == 0).double().mean() - share) < error
    assert abs(kept.mean() - 1) < error / (1 - share)
    values = kept.detach().unique()
    assert len(values) == 2
    assert values[1] == pytest.approx(1 / (1 - share), abs=1e-3 * share)
    # The four units of one draw, and those of neighbouring draws, are independent.
    dropped = (kept.detach() == 0).double() - share
    for distance in (1, 2, 3, 4, 8):
        product = (dropped[distance:] * dropped[:-distance]).mean() / (share * (1 - share))
        assert abs(product) < 5 / x.numel() ** 0.5
    kept.sum().backward()
    assert torch.equal(x.grad, kept)


def test_the_dropped_units_depend_on_the_seed_alone():
    def draw():
        torch.manual_seed(3)
        return drop_units(torch.ones(7, 9).mT, 0.5), torch.rand(1)

    (first, after), (second, same) = draw(), draw()
    assert torch.equal(first, second)
    assert after == same
    assert not torch.equal(first, drop_units(torch.ones(7, 9).mT, 0.5))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_or_all_units_are_dropped(share):
    assert torch.equal(drop_units(torch.ones(3, 5), share), torch.full((3, 5), 1 - share))


@pytest.mark.parametrize("mask", ["causal", "keys", None])
def test_attention_in_training_is_that_of_torch_but_for_the_dropout(mask):
    torch.manual_seed(0)
    parts = [torch.randn(3, 2, 5, 4, requires_grad=True) for _ in range(3)]
    visible = torch.tensor([1, 3, 5])[:, None] > torch.arange(5) if mask == "keys" else None
    visible = None if visible is None else visible[:, None, None]
    # So small a share is rounded to none, but takes the way of training.
    ways = (
        attend(*parts, visible, is_causal=mask == "causal", dropout=1e-9),
        nn.functional.scaled_dot_product_attention(*parts, attn_mask=visible, is_causal=mask == "causal"),
    )
    found = [(way, *torch.autograd.grad((way * way).sum(), parts)) for way in ways]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_weights_of_attention_are_dropped():
    torch.manual_seed(0)
    query, key, value = torch.zeros(500, 1, 1, 1), torch.zeros(500, 1, 10, 1), torch.ones(500, 1, 10, 1)
    attended = attend(query, key, value, None, is_causal=False, dropout=0.5)
    kept = (attended.flatten() * 5).round()  # each weight that stays adds 2 / 10
    assert kept.mean() == pytest.approx(5, abs=0.4)
    assert kept.std() == pytest.approx(2.5**0.5, abs=0.25)
