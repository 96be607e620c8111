import sys

import pytest
import torch
import transformers

from skipcl_lightning.backbones import HFBackbone, check_backbone
from skipcl_lightning.model import SessionModel

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


BERT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 12,
    "vocab_size": 9,
}


@pytest.mark.parametrize(
    ("model", "causal"),
    [
        (lambda: transformers.BertForMaskedLM(transformers.BertConfig(**BERT)), False),
        (lambda: transformers.BertModel(transformers.BertConfig(**BERT)), False),
        (lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**CONFIG)), True),
    ],
)
def test_a_model_with_or_without_a_head_is_built_again_from_what_a_checkpoint_keeps(model, causal):
    torch.manual_seed(0)
    backbone = HFBackbone(model(), causal=causal)
    again = HFBackbone(**backbone.settings)
    again.load_state_dict(backbone.state_dict())
    x, mask = torch.randn(2, 6, 8), torch.ones(2, 6, dtype=torch.bool)
    assert torch.equal(backbone.eval()(x, mask), again.eval()(x, mask))


def test_it_trains_with_dropout_though_the_model_came_ready_for_evaluation():
    model = transformers.GPT2Model(transformers.GPT2Config(**CONFIG)).eval()
    assert all(module.training for module in HFBackbone(model, causal=True).modules())


def test_layers_that_are_dropped_by_chance_are_not_taken_for_unused():
    config = {
        "model_type": "opt",
        "hidden_size": 8,
        "ffn_dim": 16,
        "word_embed_proj_dim": 8,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "max_position_embeddings": 10,
        "vocab_size": 9,
        "layerdrop": 0.9,
    }
    state = torch.get_rng_state()
    torch.manual_seed(0)
    backbone = HFBackbone(config, causal=True)
    frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.decoder.embed_tokens.weight"]
    torch.set_rng_state(state)


def test_positions_behind_a_padding_index_are_not_counted():
    config = {**BERT, "model_type": "roberta", "pad_token_id": 1}
    backbone = HFBackbone(config, causal=False)
    assert backbone.max_length == 10
    assert backbone(torch.randn(1, 10, 8), torch.ones(1, 10, dtype=torch.bool)).isfinite().all()


def test_a_shorter_limit_is_the_users_to_set():
    backbone = HFBackbone({"model_type": "gpt2", **CONFIG}, causal=True, max_length=4)
    assert backbone.max_length == 4
    with pytest.raises(ValueError, match=r"`max_length` must be at most 10, got 11\. The model has no more"):
        HFBackbone({"model_type": "gpt2", **CONFIG}, causal=True, max_length=11)


def test_a_model_of_another_precision_takes_and_gives_that_of_the_item_table():
    model = transformers.GPT2Model(transformers.GPT2Config(**CONFIG)).bfloat16()
    output = HFBackbone(model, causal=True)(torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool))
    assert output.dtype == torch.float32


def test_a_table_narrower_than_the_model_is_fed_with_its_own_size():
    config = {**BERT, "model_type": "electra", "embedding_size": 6}
    backbone = HFBackbone(config, causal=False)
    assert backbone(torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)).shape == (2, 3, 8)


def test_another_size_is_led_in_and_out():
    backbone = HFBackbone({"model_type": "gpt2", **CONFIG}, causal=True, embedding_size=6)
    assert backbone(torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool)).shape == (2, 3, 6)


def test_a_decoder_draws_small_items_and_an_encoder_does_not():
    torch.manual_seed(0)
    decoder = HFBackbone({"model_type": "gpt2", **CONFIG}, causal=True)
    encoder = HFBackbone({"model_type": "bert", **BERT}, causal=False)
    for backbone, scale in ((decoder, 0.4), (encoder, 1.0)):
        weight = SessionModel(backbone, num_items=1000).item_embedding.weight[1:]
        assert weight.std().item() == pytest.approx(scale * 8**-0.5, rel=0.03)


def test_an_encoder_that_is_called_causal_is_refused():
    with pytest.raises(ValueError, match="`backbone` must be causal, got HFBackbone"):
        check_backbone(HFBackbone({"model_type": "bert", **BERT}, causal=True), 8)
    with pytest.raises(ValueError, match="`causal` must be True for a model that sees no later track"):
        HFBackbone({"model_type": "gpt2", **CONFIG}, causal=False)


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
