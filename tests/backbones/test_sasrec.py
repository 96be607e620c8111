import math

import torch

from skipcl_lightning.backbones import SASRec


def plain_attention(x, attention, num_heads):
    """Causal attention of one session, head by head and position by position."""
    size = x.shape[1] // num_heads
    projected = x @ attention.query_key_value.weight.T + attention.query_key_value.bias
    query, key, value = projected.split(x.shape[1], dim=1)
    rows = []
    for t in range(len(x)):
        heads = []
        for h in range(num_heads):
            part = slice(h * size, (h + 1) * size)
            scores = torch.stack([query[t, part] @ key[s, part] / math.sqrt(size) for s in range(t + 1)])
            weights = scores.exp() / scores.exp().sum()
            heads.append(sum(weights[s] * value[s, part] for s in range(t + 1)))
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ attention.output.weight.T + attention.output.bias


def normalised(x, norm):
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / (centred.pow(2).mean(dim=1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def plain_feed_forward(x, block):
    first, _, _, second = block.feed_forward
    return (x @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias


def shuffle_norms(backbone):
    """Norms start as the identity, which would hide one in the wrong place."""
    for name, parameter in backbone.named_parameters():
        if "norm" in name:
            parameter.data.normal_(mean=1.0)


def small(**settings):
    torch.manual_seed(0)
    backbone = SASRec(8, max_length=10, num_heads=2, num_layers=2, **settings).double().eval()
    shuffle_norms(backbone)
    session = torch.randn(5, 8, dtype=torch.float64)
    return backbone, session, backbone(session[None], torch.ones(1, 5, dtype=torch.bool))[0]


def test_pre_norm_blocks_equal_a_plain_recomputation_from_the_same_weights():
    backbone, session, output = small()
    x = session * math.sqrt(8) + backbone.positions.weight[:5]
    for block in backbone.blocks:
        x = x + plain_attention(normalised(x, block.attention_norm), block.attention, num_heads=2)
        x = x + plain_feed_forward(normalised(x, block.feed_forward_norm), block)
    torch.testing.assert_close(output, normalised(x, backbone.norm))


def test_post_norm_blocks_equal_a_plain_recomputation_from_the_same_weights():
    backbone, session, output = small(norm="post")
    x = session * math.sqrt(8) + backbone.positions.weight[:5]
    for block in backbone.blocks:
        x = normalised(x + plain_attention(x, block.attention, num_heads=2), block.attention_norm)
        x = normalised(x + plain_feed_forward(x, block), block.feed_forward_norm)
    torch.testing.assert_close(output, x)
