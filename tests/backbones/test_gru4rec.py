import torch

from skipcl_lightning.backbones import GRU4Rec


def plain_cell(x, hidden, layer, gru):
    """One step of a gated recurrent unit."""
    weight_x, weight_h = getattr(gru, f"weight_ih_l{layer}"), getattr(gru, f"weight_hh_l{layer}")
    bias_x, bias_h = getattr(gru, f"bias_ih_l{layer}"), getattr(gru, f"bias_hh_l{layer}")
    reset_x, update_x, new_x = (weight_x @ x + bias_x).chunk(3)
    reset_h, update_h, new_h = (weight_h @ hidden + bias_h).chunk(3)
    reset, update = torch.sigmoid(reset_x + reset_h), torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + reset * new_h)
    return (1 - update) * new + update * hidden


def test_the_layers_equal_a_plain_recomputation_from_the_same_weights():
    torch.manual_seed(0)
    backbone = GRU4Rec(8, hidden_size=5, num_layers=2, embedding_dropout=0.5, hidden_dropout=0.5)
    backbone = backbone.double().eval()
    session = torch.randn(6, 8, dtype=torch.float64)
    hidden = [torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)]
    expected = []
    for track in session:
        hidden[0] = plain_cell(track, hidden[0], 0, backbone.gru)
        hidden[1] = plain_cell(hidden[0], hidden[1], 1, backbone.gru)
        expected.append(backbone.output.weight @ hidden[1] + backbone.output.bias)
    output = backbone(session[None], torch.ones(1, 6, dtype=torch.bool))[0]
    torch.testing.assert_close(output, torch.stack(expected))


def test_without_a_size_of_its_own_the_hidden_state_is_the_output():
    torch.manual_seed(0)
    backbone = GRU4Rec(8).eval()
    x = torch.randn(2, 6, 8)
    assert torch.equal(backbone(x, torch.ones(2, 6, dtype=torch.bool)), backbone.gru(x)[0])


def share_of_zeros(**settings):
    torch.manual_seed(0)
    backbone = GRU4Rec(64, **settings).train()
    return float((backbone(torch.randn(8, 20, 64), torch.ones(8, 20, dtype=torch.bool)) == 0).float().mean())


def test_both_dropouts_act_where_they_say():
    assert share_of_zeros() == 0
    assert abs(share_of_zeros(hidden_dropout=0.3) - 0.3) < 0.03
    assert share_of_zeros(embedding_dropout=0.3) == 0
    torch.manual_seed(0)
    backbone = GRU4Rec(8, embedding_dropout=0.5).train()
    x, mask = torch.randn(1, 4, 8), torch.ones(1, 4, dtype=torch.bool)
    assert not torch.equal(backbone(x, mask), backbone(x, mask))
