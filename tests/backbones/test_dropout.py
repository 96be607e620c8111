import unittest.mock

import pytest
import torch
from samples import EVERY, all_valid, build, random_sessions
from torch import nn

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
    shares = []

    def attend(query, *_, dropout_p, **__):
        shares.append(dropout_p)
        return query

    for module in backbone.train().modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda dropout, *_: shares.append(dropout.p))
    with unittest.mock.patch("torch.nn.functional.scaled_dot_product_attention", attend):
        backbone(random_sessions(2, 6), all_valid(2, 6))
    return shares.count(0.2)


@pytest.mark.parametrize(
    ("name", "in_a_block"), [("SASRec", 4), ("post-norm SASRec", 4), ("ESASRec", 4), ("BERT4Rec", 3)]
)
def test_every_dropout_that_a_transformer_promises_is_there(name, in_a_block):
    # At the input; and in attention, behind it, perhaps inside the feed-forward network, and behind that.
    assert count_dropouts(build(name)) == 1 + 2 * in_a_block
