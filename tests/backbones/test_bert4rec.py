import math

import torch

from skipcl_lightning.backbones import BERT4Rec


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def normalised(x, norm):
    return (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + norm.eps) * norm.weight + norm.bias


def linear(x, layer):
    return layer.weight @ x + layer.bias


def attended(session, attention, t, num_heads):
    """What position t takes from the whole session."""
    size = len(session[0]) // num_heads
    parts = [linear(x, attention.query_key_value).chunk(3) for x in session]
    heads = []
    for h in range(num_heads):
        part = slice(h * size, (h + 1) * size)
        scores = [torch.exp(parts[t][0][part] @ key[part] / math.sqrt(size)) for _, key, _ in parts]
        heads.append(
            sum(s * value[part] for s, (_, _, value) in zip(scores, parts, strict=True)) / sum(scores)
        )
    return linear(torch.cat(heads), attention.output)


def test_it_equals_a_plain_recomputation_from_the_same_weights():
    torch.manual_seed(0)
    backbone = BERT4Rec(8, max_length=10, num_heads=2, num_layers=2).double().eval()
    for name, parameter in backbone.named_parameters():
        if "norm" in name or name.startswith("output.2"):
            parameter.data.normal_(mean=1.0)
    session = list(torch.randn(5, 8, dtype=torch.float64))
    output = backbone(torch.stack(session)[None], torch.ones(1, 5, dtype=torch.bool))[0]
    states = [
        normalised(x + backbone.positions.weight[t], backbone.input_norm) for t, x in enumerate(session)
    ]
    for block in backbone.blocks:
        summed = [x + attended(states, block.attention, t, num_heads=2) for t, x in enumerate(states)]
        states = [normalised(x, block.attention_norm) for x in summed]
        first, second = block.feed_forward[0], block.feed_forward[3]
        states = [
            normalised(x + linear(gelu(linear(x, first)), second), block.feed_forward_norm) for x in states
        ]
    expected = [normalised(gelu(linear(x, backbone.output[0])), backbone.output[2]) for x in states]
    torch.testing.assert_close(output, torch.stack(expected))
