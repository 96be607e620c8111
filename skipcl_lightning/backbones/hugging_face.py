"""Encoders and decoders of Hugging Face's transformers as backbones."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skipcl_lightning._checks import check_integer, clean_input, import_extra, requires_mask
from skipcl_lightning.backbones.contract import evaluation_mode
from skipcl_lightning.backbones.transformer import key_mask

__all__ = ["HFBackbone"]


class HFBackbone(nn.Module):
    """A Transformer of the `transformers` package, with embedded items in place of its tokens.

    Its token table, pooler and language head are removed. Other parameters without an effect on the last
    hidden state are frozen, so DistributedDataParallel finds no parameter without a gradient. The given model
    is changed and set to training.

    Needs the extra `hf`: `pip install "skipcl-lightning[hf]"`.

    Args:
        model: A `PreTrainedModel` that takes `inputs_embeds` and `attention_mask`, with or without a head; or
            its configuration as a mapping with `model_type`, which builds one with random weights. A
            checkpoint keeps the configuration, so it loads without arguments.
        causal: Whether each position sees only earlier ones: True for decoders (GPT-2, Llama …), False for
            encoders (BERT …), which `SkipCLModule` trains by the cloze task. A model that behaves otherwise
            is refused.
        embedding_size: D, if it differs from the model's `hidden_size`; linear maps then lead in and out.
        max_length: The largest number of positions, a mask token included; None for the model's own.

    Raises:
        ImportError: `transformers` is not installed.
        TypeError: `model` is neither.
        ValueError: The configuration names no known model, or one that is no encoder or decoder alone; it
            would not build the same model again; or `causal` is wrong.

    Reference:
        Wolf et al.: Transformers: State-of-the-Art Natural Language Processing, EMNLP 2020, doi
        10.18653/v1/2020.emnlp-demos.6.

    Examples:
        >>> config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 20}
        >>> backbone = HFBackbone(config, causal=True)
        >>> backbone.max_length
        20
        >>> backbone(torch.zeros(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Any],
        *,
        causal: bool,
        embedding_size: int | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(causal, bool):
            raise TypeError(f"`causal` must be True or False, got {causal!r}. Decoders are causal.")
        transformer = _base_model(model)
        table = transformer.get_input_embeddings()
        hidden_size: int = transformer.config.hidden_size
        size = hidden_size if embedding_size is None else embedding_size
        check_integer("embedding_size", size)
        self.embedding_size = size
        known = _count_positions(transformer)
        self.max_length = known if max_length is None else max_length
        if self.max_length is not None:
            check_integer("max_length", self.max_length, maximum=known, cure="The model has no more.")
        # Plain values, from which a checkpoint rebuilds the architecture.
        config = json.loads(transformer.config.to_json_string(use_diff=False))
        self.settings = {
            "model": config,
            "causal": causal,
            "embedding_size": embedding_size,
            "max_length": max_length,
        }
        self.causal = causal
        # GPT-2 learns faster from small items, as SASRec does; for BERT it makes no difference.
        self.item_scale = 0.4 if causal else 1.0
        weight = table.weight
        # A small table stays, because some models read its dtype.
        transformer.set_input_embeddings(
            nn.Embedding(1, table.embedding_dim, device=weight.device, dtype=weight.dtype)
        )
        # `from_pretrained` sets evaluation mode, which Lightning would keep, without dropout.
        self.model: nn.Module = transformer.train()
        self.input = _linear_map(size, table.embedding_dim, weight)
        self.output = _linear_map(hidden_size, size, weight)
        if not weight.is_meta:
            self._probe(table.embedding_dim, weight)

    @requires_mask
    def forward(self, x: Tensor, valid_mask: Tensor) -> Tensor:
        """Return the model's last hidden state.

        Args:
            x: [B, L, D] floating point, the embedded items.
            valid_mask: [B, L] bool, True at items; padding is on the right.

        Returns:
            [B, L, D], zero at padding.

        Raises:
            ValueError: The shapes disagree, or the sessions are longer than `max_length`.
        """
        cleaned = clean_input(x, valid_mask, max_length=self.max_length)
        # The model may have another precision than the item table.
        inner = cleaned.to(self.model.get_input_embeddings().weight.dtype)  # type: ignore[operator]
        hidden = self.output(self._last_hidden_state(self.input(inner), valid_mask))
        return torch.where(valid_mask[..., None], hidden.to(x.dtype), 0)

    def _last_hidden_state(self, x: Tensor, valid_mask: Tensor) -> Tensor:
        # A causal model cannot see padding on the right, so it needs no mask.
        mask = None if self.causal else key_mask(valid_mask)[:, 0, 0].long()
        output: Tensor = self.model(inputs_embeds=x, attention_mask=mask).last_hidden_state
        return output

    def _probe(self, size: int, like: Tensor) -> None:
        """Freeze the parameters without an effect on the output, and check that `causal` is right."""
        generator = torch.Generator().manual_seed(0)
        length = min(2, self.max_length or 2)
        x = torch.randn(1, length, size, generator=generator).to(like).requires_grad_()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # Without layer drop, which would leave random parameters without a gradient.
        with evaluation_mode(self.model), torch.enable_grad():
            state = self._last_hidden_state(x, torch.ones(1, length, dtype=torch.bool, device=like.device))
            # Not a plain sum, which is constant after a layer norm.
            weights = torch.randn(state.shape, generator=generator).to(state)
            # torch's annotation lacks the None of unused parameters.
            gradients: Sequence[Tensor | None] = torch.autograd.grad(
                (state * weights).sum(), trained, allow_unused=True, retain_graph=True
            )
            (backwards,) = torch.autograd.grad((state * weights)[:, 0].sum(), x)
        for parameter, gradient in zip(trained, gradients, strict=True):
            if gradient is None:
                parameter.requires_grad_(False)
        if length > 1 and not self.causal and not backwards[:, 1].any():
            raise ValueError(
                "`causal` must be True for a model that sees no later track, got False. It would be trained "
                "to fill in hidden tracks from what came before them only."
            )


def _linear_map(size_in: int, size_out: int, like: Tensor) -> nn.Module:
    if size_in == size_out:
        return nn.Identity()
    return nn.Linear(size_in, size_out, device=like.device, dtype=like.dtype)


def _count_positions(transformer: Any) -> int | None:
    """Return the longest input of a model; None for no limit."""
    positions: int | None = getattr(transformer.config, "max_position_embeddings", None)
    for module in transformer.modules():
        # RoBERTa and similar models count positions from the padding token's index on.
        if isinstance(module, nn.Embedding) and module.num_embeddings == positions and module.padding_idx:
            return positions - module.padding_idx - 1
    return positions


def _base_model(model: nn.Module | Mapping[str, Any]) -> Any:
    """Return a `PreTrainedModel` without a head, from a model or a configuration."""
    transformers = import_extra("transformers", extra="hf", user="`HFBackbone`")
    if isinstance(model, Mapping):
        base = _build_model(transformers, dict(model))
    elif isinstance(model, transformers.PreTrainedModel):
        base = model.base_model
    else:
        raise TypeError(
            "`model` must be a transformers.PreTrainedModel, or a mapping with its configuration, got "
            f"{type(model).__name__}. `transformers.AutoModel.from_pretrained` gives one."
        )
    if base.config.is_encoder_decoder:
        raise ValueError(
            f"`model` must be an encoder or a decoder alone, got {type(base).__name__}, which is both. "
            "Pass one that is not."
        )
    _drop_pooler(base)
    if not isinstance(model, Mapping):
        with torch.device("meta"):
            again = _drop_pooler(transformers.AutoModel.from_config(base.config))
        if again.state_dict().keys() != base.state_dict().keys():
            raise ValueError(
                f"`model` must be one that its configuration builds again, for checkpoints to load, got "
                f"{type(base).__name__}, for which it builds {type(again).__name__}. Wrap it in a module of "
                "your own instead."
            )
    return base


def _build_model(transformers: Any, settings: dict[str, Any]) -> Any:
    """Return a model with random weights."""
    model_type = settings.pop("model_type", None)
    if model_type not in transformers.CONFIG_MAPPING:
        raise ValueError(
            "`model` must have the 'model_type' of a model that transformers knows, got "
            f"{model_type!r}. 'gpt2' and 'bert' are two."
        )
    config = transformers.AutoConfig.for_model(model_type, **settings)
    return transformers.AutoModel.from_config(config)


def _drop_pooler(base: Any) -> Any:
    """Remove the pooler, which is never used here."""
    if getattr(base, "pooler", None) is not None:
        base.pooler = None
    # Cached keys and values are only for text generation.
    base.config.use_cache = False
    return base
