"""Encoders and decoders of Hugging Face's transformers as backbones."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skipcl_lightning._checks import check_integer
from skipcl_lightning.backbones.contract import clean_input

__all__ = ["HFBackbone"]


class HFBackbone(nn.Module):
    """A Transformer of the ``transformers`` package, fed with embedded tracks in place of its tokens.

    Its token table and whatever else plays no part in its last hidden state (a pooler, a language head)
    are taken away or frozen, so that DistributedDataParallel finds no parameter without a gradient. The
    module that is passed is changed by it.

    Needs the extra ``hf``: ``pip install "skipcl-lightning[hf]"``.

    Args:
        model: A ``PreTrainedModel`` that takes ``inputs_embeds`` and ``attention_mask``, with or without
            a head; or its configuration as a mapping with ``model_type``, which builds one with random
            weights. A checkpoint keeps the configuration, and so loads without arguments.
        causal: Whether each position sees only what came before: True for decoders (GPT-2, Llama …),
            False for encoders (BERT …), which ``SkipCLModule`` trains by the cloze task. A model that
            sees more than it says is refused.
        embedding_size: D, where it is not the model's ``hidden_size``: linear maps then lead in and out.

    Raises:
        ImportError: ``transformers`` is not installed.
        TypeError: ``model`` is neither.
        ValueError: The configuration names no known model.

    Reference:
        Wolf et al.: Transformers: State-of-the-Art Natural Language Processing, EMNLP 2020,
        doi 10.18653/v1/2020.emnlp-demos.6.

    Example:
        >>> config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 20}
        >>> backbone = HFBackbone(config, causal=True)
        >>> backbone.max_length
        20
        >>> backbone(torch.zeros(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(
        self, model: nn.Module | Mapping[str, Any], *, causal: bool, embedding_size: int | None = None
    ) -> None:
        super().__init__()
        if not isinstance(causal, bool):
            raise TypeError(f"`causal` must be True or False, got {causal!r}.")
        transformer = _base_model(model)
        hidden_size: int = transformer.config.hidden_size
        size = hidden_size if embedding_size is None else embedding_size
        check_integer("embedding_size", size)
        # Kept keys and values serve the writing of text, token by token.
        transformer.config.use_cache = False
        # Plain values, from which a checkpoint rebuilds the same architecture.
        config = json.loads(transformer.config.to_json_string(use_diff=False))
        self.settings = {"model": config, "causal": causal, "embedding_size": embedding_size}
        self.causal = causal
        self.max_length: int | None = getattr(transformer.config, "max_position_embeddings", None)
        # Some models ask their table for its dtype, so that a small one stays.
        transformer.set_input_embeddings(nn.Embedding(1, hidden_size))
        self.model: nn.Module = transformer
        self.input = nn.Identity() if size == hidden_size else nn.Linear(size, hidden_size)
        self.output = nn.Identity() if size == hidden_size else nn.Linear(hidden_size, size)
        self._freeze_unused(hidden_size)

    def forward(self, x: Tensor, valid_mask: Tensor) -> Tensor:
        """The model's last hidden state.

        Args:
            x: [B, L, D] floating point, the embedded tracks.
            valid_mask: [B, L] bool, True where a real track stands; padding is on the right.

        Returns:
            [B, L, D], zero at padding.

        Raises:
            ValueError: The shapes disagree, or the sessions are longer than ``max_length``.
        """
        x = clean_input(x, valid_mask, max_length=self.max_length)
        hidden = self._last_hidden_state(self.input(x), valid_mask)
        return torch.where(valid_mask[..., None], self.output(hidden), 0)

    def _last_hidden_state(self, x: Tensor, valid_mask: Tensor) -> Tensor:
        # Attention to nothing, in a row without a track, would be NaN.
        first = torch.arange(x.shape[1], device=x.device) == 0
        output: Tensor = self.model(
            inputs_embeds=x, attention_mask=(valid_mask | first).long()
        ).last_hidden_state
        return output

    def _freeze_unused(self, hidden_size: int) -> None:
        if any(parameter.is_meta for parameter in self.model.parameters()):
            return
        device = next(self.model.parameters()).device
        x = torch.zeros(1, 2, hidden_size, device=device)
        with torch.enable_grad():
            state = self._last_hidden_state(x, torch.ones(1, 2, dtype=torch.bool, device=device))
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            # torch's annotation forgets the None of what is unused.
            gradients: Sequence[Tensor | None] = torch.autograd.grad(state.sum(), trained, allow_unused=True)
        for parameter, gradient in zip(trained, gradients, strict=True):
            if gradient is None:
                parameter.requires_grad_(False)


def _base_model(model: nn.Module | Mapping[str, Any]) -> Any:
    """A ``PreTrainedModel`` without a head, from a model or from a configuration."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "`HFBackbone` needs the package transformers, which is not installed. "
            'Install it with `pip install "skipcl-lightning[hf]"`.'
        ) from error
    if isinstance(model, transformers.PreTrainedModel):
        return model.base_model
    if not isinstance(model, Mapping):
        raise TypeError(
            "`model` must be a transformers.PreTrainedModel, or a mapping with its configuration, got "
            f"{type(model).__name__}. `transformers.AutoModel.from_pretrained` gives one."
        )
    settings = dict(model)
    model_type = settings.pop("model_type", None)
    if model_type not in transformers.CONFIG_MAPPING:
        raise ValueError(
            "`model` must have the 'model_type' of a model that transformers knows, got "
            f"{model_type!r}. 'gpt2' and 'bert' are two."
        )
    config = transformers.AutoConfig.for_model(model_type, **settings)
    return transformers.AutoModel.from_config(config)
