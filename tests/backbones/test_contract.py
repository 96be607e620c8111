import inspect
import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from samples import BIDIRECTIONAL, CAUSAL, EVERY, SIZE, all_valid, build, random_sessions
from torch import nn

from skipcl_lightning._settings import build_part, describe_part
from skipcl_lightning.backbones import (
    BACKBONES,
    GRU4Rec,
    HFBackbone,
    NextItNet,
    SASRec,
    check_backbone,
)
from skipcl_lightning.backbones.contract import evaluation_mode, takes_argument
from skipcl_lightning.backbones.transformer import at_position, feed_forward, key_mask


@pytest.fixture(scope="module", params=CAUSAL)
def causal_backbone(request):
    return build(request.param)


@pytest.fixture(scope="module", params=BIDIRECTIONAL)
def bidirectional_backbone(request):
    return build(request.param)


@pytest.fixture(params=EVERY)
def backbone(request):
    """A new one for each test, which may train it."""
    return build(request.param)


@hypothesis.settings(max_examples=25)
@hypothesis.given(length=st.integers(2, 10), cut=st.integers(1, 9), seed=st.integers(0, 100))
def test_a_causal_output_does_not_move_when_anything_after_it_changes(causal_backbone, length, cut, seed):
    cut = min(cut, length - 1)
    x, mask = random_sessions(2, length, seed=seed), all_valid(2, length)
    changed = x.clone()
    changed[:, cut:] = random_sessions(2, length - cut, seed=seed + 1)
    output, output_of_changed = causal_backbone(x, mask), causal_backbone(changed, mask)
    torch.testing.assert_close(output_of_changed[:, :cut], output[:, :cut])
    assert not torch.allclose(output_of_changed[:, cut:], output[:, cut:])


@hypothesis.settings(max_examples=25)
@hypothesis.given(length=st.integers(2, 10), place=st.integers(0, 9), seed=st.integers(0, 100))
def test_a_bidirectional_output_moves_everywhere(bidirectional_backbone, length, place, seed):
    x, mask = random_sessions(1, length, seed=seed), all_valid(1, length)
    changed = x.clone()
    changed[:, min(place, length - 1)] += 3 * random_sessions(1, seed=seed + 1)
    moved = (bidirectional_backbone(changed, mask) - bidirectional_backbone(x, mask)).abs().amax(dim=2)
    assert (moved > 1e-6).all()


@pytest.mark.parametrize("noise", [0.0, 1e4, math.nan])
def test_padding_equals_the_unpadded_session_and_comes_out_as_zeros(backbone, noise):
    x = random_sessions(1, 4)
    alone = backbone(x, all_valid(1, 4))
    padded = torch.cat([x, torch.full((1, 3, SIZE), noise)], dim=1)
    output = backbone(padded, torch.tensor([[True] * 4 + [False] * 3]))
    torch.testing.assert_close(output[:, :4], alone, atol=1e-5, rtol=1e-4)
    assert not output[:, 4:].any()


def test_sessions_of_a_batch_do_not_see_each_other(backbone):
    x = random_sessions(3, 5)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] + [False] * 4])
    together = backbone(x, mask)
    reversed_order = backbone(x.flip(0), mask.flip(0)).flip(0)
    torch.testing.assert_close(reversed_order, together)
    for row, length in enumerate([5, 2, 1]):
        alone = backbone(x[row : row + 1, :length], all_valid(1, length))
        torch.testing.assert_close(together[row : row + 1, :length], alone, atol=1e-5, rtol=1e-4)


def test_rows_of_no_and_of_one_track_are_finite_with_finite_gradients(backbone):
    backbone.train()
    x = random_sessions(3, 4).requires_grad_()
    mask = torch.tensor([[True] * 4, [False] * 4, [True] + [False] * 3])
    output = backbone(x, mask)
    assert output.isfinite().all()
    assert not output[1].any()
    output.square().sum().backward()
    assert x.grad.isfinite().all()
    assert not x.grad[1].any()
    assert all(p.grad.isfinite().all() for p in backbone.parameters() if p.requires_grad)


def test_every_trained_parameter_gets_a_gradient(backbone):
    # DistributedDataParallel stops where one has none.
    backbone.train()
    (backbone(random_sessions(4, 9), all_valid(4, 9)) * random_sessions(4, 9, seed=1)).sum().backward()
    without = [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_the_output_is_repeatable_in_evaluation(backbone):
    x, mask = random_sessions(2, 6), all_valid(2, 6)
    assert torch.equal(backbone(x, mask), backbone(x, mask))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_agree(backbone, dtype):
    x, mask = random_sessions(2, 6), all_valid(2, 6)
    expected = backbone(x, mask)
    output = backbone.to(dtype)(x.to(dtype), mask)
    assert output.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float64 else 0.2
    torch.testing.assert_close(output.float(), expected, atol=tolerance, rtol=tolerance)


def test_autocast_is_finite(backbone):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = backbone(random_sessions(2, 6), all_valid(2, 6))
    assert output.isfinite().all()


def test_it_rebuilds_from_what_a_checkpoint_keeps(backbone):
    kept = describe_part(backbone, BACKBONES)
    again = build_part("backbone", kept, BACKBONES).eval()
    again.load_state_dict(backbone.state_dict())
    x, mask = random_sessions(2, 6), all_valid(2, 6)
    assert torch.equal(again(x, mask), backbone(x, mask))
    assert describe_part(again, BACKBONES) == kept


def test_a_session_that_is_too_long_says_what_to_do(backbone):
    x, mask = random_sessions(1, 11), all_valid(1, 11)
    if getattr(backbone, "max_length", None) is None:
        assert backbone(x, mask).isfinite().all()
        return
    with pytest.raises(ValueError, match=r"at most `max_length` = 10 positions, got 11. Keep the latest"):
        backbone(x, mask)


def test_a_call_without_the_mask_says_what_to_pass(backbone):
    x, mask = random_sessions(2, 4), all_valid(2, 4)
    message = (
        rf"`valid_mask` must be a bool tensor \[B, L\], .* got none in the call of {type(backbone).__name__}"
        r"\. Call `backbone\(x, batch\.valid_mask\)`\."
    )
    for call in (lambda: backbone(x), lambda: backbone(x=x), backbone):
        with pytest.raises(TypeError, match=message):
            call()
    assert torch.equal(backbone(x=x, valid_mask=mask), backbone(x, mask))
    assert list(inspect.signature(backbone.forward).parameters)[:2] == ["x", "valid_mask"]


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")  # of torch, at the first use
def test_a_backbone_compiles_and_exports(backbone):
    x, mask = random_sessions(2, 4), all_valid(2, 4)
    exported = torch.export.export(backbone, (x, mask)).module()
    torch.testing.assert_close(exported(x, mask), backbone(x, mask))
    torch.compiler.reset()  # all backbones share the cache
    whole = not isinstance(backbone, GRU4Rec)  # torch compiles no recurrent layers
    compiled = torch.compile(backbone, backend="eager", fullgraph=whole)
    torch.testing.assert_close(compiled(x, mask), backbone(x, mask))


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_a_setting_that_a_backbone_does_not_use_is_an_error(name):
    settings = {"n_gram": 3}
    with pytest.raises(ValueError, match=r"`backbone` must have settings among .*, got 'n_gram'"):
        build_part("backbone", {"name": name, "settings": settings}, BACKBONES)
    with pytest.raises(TypeError, match="n_gram"):
        BACKBONES[name](**settings)


def test_settings_that_are_left_out_are_the_defaults():
    found = build_part("backbone", {"name": "SASRec", "settings": None}, BACKBONES)
    assert found.settings == BACKBONES["SASRec"]().settings


def test_a_limit_on_length_is_no_setting_of_what_has_none():
    for name in ("Caser", "GRU4Rec", "NextItNet"):
        with pytest.raises(ValueError, match="got 'max_length'"):
            build_part("backbone", {"name": name, "settings": {"max_length": 9}}, BACKBONES)


BAD_SETTINGS = [
    ("SASRec", {"num_heads": 3}, "`embedding_size` must be divisible by `num_heads`, got 8 and 3"),
    ("SASRec", {"norm": "both"}, "`norm` must be one of 'pre', 'post', got 'both'"),
    ("SASRec", {"max_length": 0}, "`max_length` must be at least 1"),
    ("ESASRec", {"expansion": 0}, "`expansion` must be at least 1"),
    ("BERT4Rec", {"dropout": 1.0}, "`dropout` must be in"),
    ("BERT4Rec", {"num_layers": 0}, "`num_layers` must be at least 1"),
    ("GRU4Rec", {"hidden_size": 0}, "`hidden_size` must be at least 1"),
    ("GRU4Rec", {"num_layers": 0}, "`num_layers` must be at least 1"),
    ("GRU4Rec", {"hidden_dropout": -0.1}, "`hidden_dropout` must be in"),
    ("GRU4Rec", {"embedding_dropout": math.nan}, "`embedding_dropout` must be in"),
    ("Caser", {"window": 0}, "`window` must be at least 1"),
    ("Caser", {"num_horizontal_filters": 0}, "`num_horizontal_filters` must be at least 1"),
    ("Caser", {"num_vertical_filters": 0}, "`num_vertical_filters` must be at least 1"),
    ("Caser", {"dropout": 1}, "`dropout` must be in"),
    ("NextItNet", {"kernel_size": 1}, "`kernel_size` must be at least 2, got 1. A kernel of 1 sees no"),
    ("NextItNet", {"dropout": 1}, "`dropout` must be in"),
    ("NextItNet", {"dilations": ()}, "`dilations` must hold one for each block, got none"),
    ("BERT4Rec", {"max_length": 1}, "`max_length` must be at least 2, got 1. The mask token"),
    ("NextItNet", {"dilations": (1, 0)}, "`dilations` must be at least 1"),
]


@pytest.mark.parametrize(("name", "settings", "message"), BAD_SETTINGS)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        BACKBONES[name](8, **settings)


def test_a_dilation_that_is_no_sequence_is_named():
    with pytest.raises(TypeError, match="`dilations` must be a sequence of integers, got 3"):
        NextItNet(8, dilations=3)


def test_a_batch_of_no_sessions_is_no_error(backbone):
    if isinstance(backbone, HFBackbone):
        pytest.skip("transformers itself knows no such batch")
    assert backbone(torch.zeros(0, 4, SIZE), all_valid(0, 4)).shape == (0, 4, SIZE)


class LooksAtPadding(nn.Module):
    causal = False

    def forward(self, x, valid_mask):
        return x.mean(dim=1, keepdim=True).expand_as(x)


class LooksAhead(LooksAtPadding):
    causal = True


def test_what_looks_where_it_must_not_is_refused():
    with pytest.raises(ValueError, match="must look at real tracks only, got LooksAtPadding"):
        check_backbone(LooksAtPadding(), SIZE)
    with pytest.raises(ValueError, match=r"must be causal, got LooksAhead.*set `causal = False` on it"):
        check_backbone(LooksAhead(), SIZE)


def test_the_check_leaves_the_backbone_as_it_was(backbone):
    backbone.train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    check_backbone(backbone, SIZE)
    assert all(module.training for module in backbone.modules())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(p.grad is None for p in backbone.parameters())


def test_a_short_limit_and_a_backbone_without_parameters_are_checked_too():
    check_backbone(SASRec(SIZE, max_length=1), SIZE)
    check_backbone(Past(), SIZE)
    with torch.device("meta"):
        check_backbone(GRU4Rec(SIZE), SIZE)


class Past(nn.Module):
    def forward(self, x, valid_mask):
        return x.cumsum(dim=1)


def test_the_parts_of_transformers_keep_shapes_and_positions():
    assert feed_forward(8, 16, nn.GELU())(torch.zeros(1, 2, 8)).shape == (1, 2, 8)
    x = torch.tensor([[1, 2], [3, 4]])
    assert at_position(x, torch.tensor([1, 0])).tolist() == [[2], [3]]
    assert at_position(x, None) is x
    mask = key_mask(torch.tensor([[True, True, False], [False, False, False]]))
    assert mask.tolist() == [[[[True, True, False]]], [[[True, False, False]]]]


def test_arguments_are_known_by_name_and_modes_are_restored():
    assert takes_argument("valid_mask", SASRec(8).forward, GRU4Rec(8).forward)
    assert not takes_argument("last_only", SASRec(8).forward, nn.Identity().forward)
    module = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluation_mode(module):
        assert not module[0].training
    assert module[0].training
    assert not module[1].training
