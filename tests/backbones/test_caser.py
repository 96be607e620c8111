import torch

from skipcl_lightning.backbones import Caser


def plain_caser(session, t, backbone):
    """The paper's figure for one position: a window as an image, filters over it, one map behind them."""
    window, size = backbone.window, session.shape[1]
    image = [session[s] if s >= 0 else torch.zeros(size).double() for s in range(t - window + 1, t + 1)]
    features = []
    for height, filters in enumerate(backbone.horizontal, start=1):
        for weight, bias in zip(filters.weight, filters.bias, strict=True):  # weight: [D, height]
            values = [
                sum(weight[:, row] @ image[top + row] for row in range(height)) + bias
                for top in range(window - height + 1)
            ]
            features.append(max(max(value, torch.tensor(0.0).double()) for value in values))
    for dimension in range(size):
        for weight, bias in zip(backbone.vertical.weight, backbone.vertical.bias, strict=True):
            features.append(sum(weight[0, row] * image[row][dimension] for row in range(window)) + bias)
    hidden = backbone.output.weight @ torch.stack(features) + backbone.output.bias
    return hidden.clamp(min=0)


def test_every_position_equals_a_plain_recomputation_of_its_window():
    torch.manual_seed(0)
    backbone = Caser(6, window=4, num_horizontal_filters=3, num_vertical_filters=2).double().eval()
    session = torch.randn(7, 6, dtype=torch.float64)
    output = backbone(session[None], torch.ones(1, 7, dtype=torch.bool))[0]
    expected = torch.stack([plain_caser(session, t, backbone) for t in range(7)])
    torch.testing.assert_close(output, expected)


def test_what_lies_before_the_window_does_not_count():
    torch.manual_seed(0)
    backbone = Caser(6, window=3).eval()
    x, mask = torch.randn(1, 8, 6), torch.ones(1, 8, dtype=torch.bool)
    changed = x.clone()
    changed[:, 2] = 9.0
    same = (backbone(changed, mask) == backbone(x, mask)).all(dim=2)[0]
    assert same.tolist() == [True, True, False, False, False, True, True, True]
