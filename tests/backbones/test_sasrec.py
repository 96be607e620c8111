import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from skipcl_lightning.backbones import SASRec


def small(seed=0, **settings):
    torch.manual_seed(seed)
    return SASRec(8, **{"max_length": 10, "num_heads": 2, **settings}).eval()


@hypothesis.given(length=st.integers(2, 10), cut=st.integers(1, 9), seed=st.integers(0, 100))
def test_the_output_does_not_move_when_anything_after_it_changes(length, cut, seed):
    cut = min(cut, length - 1)
    x = torch.randn(2, length, 8, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(2, length, dtype=torch.bool)
    backbone = small()
    changed = x.clone()
    changed[:, cut:] = x[:, cut:].flip(2)
    torch.testing.assert_close(backbone(changed, mask)[:, :cut], backbone(x, mask)[:, :cut])
    assert not torch.allclose(backbone(changed, mask)[:, cut:], backbone(x, mask)[:, cut:])


@pytest.mark.parametrize("noise", [0.0, 1e4, math.nan])
def test_padding_equals_the_unpadded_session_and_comes_out_as_zeros(noise):
    x = torch.randn(1, 4, 8)
    backbone = small()
    alone = backbone(x, torch.ones(1, 4, dtype=torch.bool))
    padded = torch.cat([x, torch.full((1, 3, 8), noise)], dim=1)
    output = backbone(padded, torch.tensor([[True] * 4 + [False] * 3]))
    torch.testing.assert_close(output[:, :4], alone)
    assert not output[:, 4:].any()


def test_a_row_without_a_real_item_has_finite_gradients():
    backbone = small().train()
    x = torch.randn(2, 3, 8, requires_grad=True)
    backbone(x, torch.tensor([[True] * 3, [False] * 3])).sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters())


def plain_attention(x, block, num_heads):
    """Causal attention of one session, head by head and position by position."""
    size = x.shape[1] // num_heads
    query, key, value = (x @ block.query_key_value.weight.T + block.query_key_value.bias).split(
        x.shape[1], dim=1
    )
    rows = []
    for t in range(len(x)):
        heads = []
        for h in range(num_heads):
            part = slice(h * size, (h + 1) * size)
            scores = torch.stack([query[t, part] @ key[s, part] / math.sqrt(size) for s in range(t + 1)])
            weights = scores.exp() / scores.exp().sum()
            heads.append(sum(weights[s] * value[s, part] for s in range(t + 1)))
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ block.attention_output.weight.T + block.attention_output.bias


def normalised(x, norm):
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / (centred.pow(2).mean(dim=1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def test_the_blocks_equal_a_plain_recomputation_from_the_same_weights():
    backbone = small(num_layers=2).double()
    session = torch.randn(5, 8, dtype=torch.float64)
    x = session * math.sqrt(8) + backbone.positions[:5]
    for block in backbone.blocks:
        x = x + plain_attention(normalised(x, block.attention_norm), block, num_heads=2)
        first, _, _, second = block.feed_forward
        hidden = normalised(x, block.feed_forward_norm) @ first.weight.T + first.bias
        x = x + hidden.clamp(min=0) @ second.weight.T + second.bias
    output = backbone(session[None], torch.ones(1, 5, dtype=torch.bool))[0]
    torch.testing.assert_close(output, normalised(x, backbone.norm))


def test_bf16_autocast_is_finite():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = small()(torch.randn(2, 6, 8), torch.ones(2, 6, dtype=torch.bool))
    assert output.isfinite().all()


def test_dropout_acts_in_training_only():
    x, mask = torch.randn(1, 4, 8), torch.ones(1, 4, dtype=torch.bool)
    backbone = small(dropout=0.5)
    assert torch.equal(backbone(x, mask), backbone(x, mask))
    backbone.train()
    assert not torch.equal(backbone(x, mask), backbone(x, mask))


def test_a_session_that_is_too_long_says_what_to_do():
    with pytest.raises(
        ValueError, match=r"`x` must have at most `max_length` = 10 positions, got 11. Keep the latest"
    ):
        small()(torch.zeros(1, 11, 8), torch.ones(1, 11, dtype=torch.bool))


def test_heads_must_divide_the_size():
    with pytest.raises(ValueError, match="`embedding_size` must be divisible by `num_heads`, got 8 and 3"):
        SASRec(8, num_heads=3)


def test_the_backbone_rebuilds_from_its_settings():
    backbone = small(dropout=0.1)
    again = SASRec(**backbone.settings)
    again.load_state_dict(backbone.state_dict())
    assert again.settings == backbone.settings
