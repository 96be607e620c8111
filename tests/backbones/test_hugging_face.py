import sys

import pytest
import torch
import transformers

from skipcl_lightning.backbones import HFBackbone

CONFIG = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 10, "vocab_size": 9}


def test_it_gives_the_models_own_last_hidden_state():
    torch.manual_seed(0)
    model = transformers.GPT2Model(transformers.GPT2Config(**CONFIG)).eval()
    x, mask = torch.randn(2, 6, 8), torch.ones(2, 6, dtype=torch.bool)
    expected = model(inputs_embeds=x).last_hidden_state
    torch.testing.assert_close(HFBackbone(model, causal=True).eval()(x, mask), expected)


def test_a_language_head_is_left_aside_and_no_token_table_stays():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**CONFIG | {"vocab_size": 5000}))
    backbone = HFBackbone(model, causal=True)
    assert sum(parameter.numel() for parameter in backbone.parameters()) < 2000
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert "model.wpe.weight" in trained
    assert "model.wte.weight" not in trained


def test_another_size_is_led_in_and_out():
    backbone = HFBackbone({"model_type": "gpt2", **CONFIG}, causal=True, embedding_size=6)
    assert backbone(torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool)).shape == (2, 3, 6)


def test_an_encoder_that_is_called_causal_is_refused():
    from skipcl_lightning.backbones import check_backbone

    config = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ValueError, match="`backbone` must be causal, got HFBackbone"):
        check_backbone(HFBackbone(config, causal=True), 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": {"model_type": "gtp2"}}, ValueError, "'model_type' .* got 'gtp2'"),
        ({"model": {"n_embd": 8}}, ValueError, "'model_type' .* got None"),
        (
            {"model": torch.nn.Identity()},
            TypeError,
            "`model` must be a transformers.PreTrainedModel.*Identity",
        ),
        ({"causal": 1}, TypeError, "`causal` must be True or False, got 1"),
        ({"embedding_size": 0}, ValueError, "`embedding_size` must be at least 1"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        HFBackbone(**{"model": {"model_type": "gpt2", **CONFIG}, "causal": True, **arguments})


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "skipcl-lightning\[hf\]"'):
        HFBackbone({"model_type": "gpt2"}, causal=True)
