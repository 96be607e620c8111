import torch

from skipcl_lightning.backbones import NextItNet


def plain_convolution(session, convolution, dilation):
    rows = []
    for t in range(len(session)):
        row = convolution.bias
        for k in range(convolution.kernel_size[0]):
            source = t - (convolution.kernel_size[0] - 1 - k) * dilation
            if source >= 0:
                row = row + convolution.weight[:, :, k] @ session[source]
        rows.append(row)
    return torch.stack(rows)


def normalised(x, norm):
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / (centred.pow(2).mean(dim=1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def test_the_blocks_equal_a_plain_recomputation_from_the_same_weights():
    torch.manual_seed(0)
    backbone = NextItNet(6, kernel_size=3, dilations=(1, 2)).double().eval()
    for name, parameter in backbone.named_parameters():
        if "norm" in name:
            parameter.data.normal_(mean=1.0)
    session = torch.randn(12, 6, dtype=torch.float64)
    x = session
    for block, dilation in zip(backbone.blocks, (1, 2), strict=True):
        hidden = normalised(plain_convolution(x, block.first, dilation), block.first_norm).clamp(min=0)
        hidden = normalised(plain_convolution(hidden, block.second, 2 * dilation), block.second_norm)
        x = x + hidden.clamp(min=0)
    output = backbone(session[None], torch.ones(1, 12, dtype=torch.bool))[0]
    torch.testing.assert_close(output, x)


def test_it_sees_as_far_back_as_it_says():
    torch.manual_seed(0)
    backbone = NextItNet(6, kernel_size=3, dilations=(1, 2)).double().eval()
    reach = 3 * (3 - 1) * (1 + 2)
    x = torch.randn(1, 30, 6, dtype=torch.float64)
    changed = x.clone()
    changed[:, 4] += 1
    mask = torch.ones(1, 30, dtype=torch.bool)
    moved = (backbone(changed, mask) != backbone(x, mask)).any(dim=2)[0].nonzero().flatten()
    assert (moved.min(), moved.max()) == (4, 4 + reach)
