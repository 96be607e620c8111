import math

import torch

from skipcl_lightning.backbones import ESASRec


def normalised(x, norm):
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / (centred.pow(2).mean(dim=1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def gate(x, layer):
    return 1 / (1 + torch.exp(-(x @ layer.weight.T + layer.bias)))


def plain_attention(x, attention):
    """Causal attention of one head, with a matrix of -inf above the diagonal."""
    query, key, value = (x @ attention.query_key_value.weight.T + attention.query_key_value.bias).chunk(3, 1)
    scores = query @ key.T / math.sqrt(x.shape[1]) + torch.full((len(x), len(x)), -math.inf).triu(1)
    return scores.softmax(dim=1) @ value @ attention.output.weight.T + attention.output.bias


def plain_swiglu(x, network):
    width = network.output.weight.shape[1]
    gates, values = x @ network.gate_and_value.weight[:width].T, x @ network.gate_and_value.weight[width:].T
    return (gates / (1 + torch.exp(-gates)) * values) @ network.output.weight.T


def test_the_gated_blocks_equal_a_plain_recomputation_from_the_same_weights():
    torch.manual_seed(0)
    backbone = ESASRec(8, max_length=10, num_layers=2, expansion=3).double().eval()
    for name, parameter in backbone.named_parameters():
        if "norm" in name:
            parameter.data.normal_(mean=1.0)
    session = torch.randn(5, 8, dtype=torch.float64)
    x = session * math.sqrt(8) + backbone.positions.weight[:5]
    for block in backbone.blocks:
        x = x + gate(x, block.attention_gate) * plain_attention(
            normalised(x, block.attention_norm), block.attention
        )
        x = x + gate(x, block.feed_forward_gate) * plain_swiglu(
            normalised(x, block.feed_forward_norm), block.feed_forward
        )
    output = backbone(session[None], torch.ones(1, 5, dtype=torch.bool))[0]
    torch.testing.assert_close(output, normalised(x, backbone.norm))
