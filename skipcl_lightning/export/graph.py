"""The way from sessions to queries as a graph: ONNX and `torch.export`, each checked against the model."""

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from skipcl_lightning._checks import import_extra
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.model import Scorer

__all__ = ["Graph", "write_onnx", "write_pt2"]

# Sessions and their length of each comparison with the model; those of the export are not among them.
_SIZES = ((1, 1), (1, 5), (2, 9), (7, 4))
_EXAMPLE = (3, 7)
_TOLERANCE = 1e-4
_ROW, _PLACE = "batch", "length"


class Graph(nn.Module):
    """A model as a function of tensors alone; it is copied to the CPU, as float32."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        #: As it was, to compare with; in a tuple, so that it is no part of the graph. In float32, as its
        #: inputs and outputs are: after `bf16-true`, onnxruntime knows no operator for its weights.
        self.original = (copy.deepcopy(scorer).to("cpu", torch.float32).eval().requires_grad_(False),)
        # With the same weights, because one more copy of a large table may not fit the memory.
        self.scorer = copy.deepcopy(self.original[0], {id(one): one for one in self.original[0].parameters()})
        _replace_recurrent(self.scorer)
        model = self.scorer.model
        feedback = model.feedback_embedding
        # A model that never saw likes has zeros there.
        knows_likes = feedback is not None and bool(feedback.weight[:, 2:].any())
        num_codes = len(model.context_sizes)
        inputs = (
            ("items", True, (_ROW, _PLACE), "int64"),
            ("feedback", feedback is not None, (_ROW, _PLACE), "float32"),
            ("explicit_feedback", knows_likes, (_ROW, _PLACE), "float32"),
            ("context", num_codes > 0, (_ROW, _PLACE, num_codes), "int64"),
            ("history", model.history_embedding is not None, (_ROW, "history"), "int64"),
        )
        #: By name, the shape and the dtype of each input.
        self.inputs: dict[str, tuple[tuple[str | int, ...], str]] = {
            name: (shape, dtype) for name, present, shape, dtype in inputs if present
        }
        #: By name, the shape of each output, float32.
        self.outputs: dict[str, tuple[str | int, ...]] = {"query": (_ROW, model.embedding_size)}
        if self.scorer.predicts_skips:
            self.outputs["skip_vector"] = (_ROW, self.scorer.skip_prediction.vector_size)

    @property
    def longest(self) -> int | None:
        """The largest number of items of a session; None for no limit."""
        limit = self.scorer.model.max_length
        return limit if limit is None or self.scorer.model.causal else limit - 1

    @cached_property
    def program(self) -> ExportedProgram:
        """The graph for any number of sessions of any length; a `ValueError` if torch cannot make it."""
        # Sessions and their length vary; torch raises an error if one were fixed.
        shapes = (tuple(dict.fromkeys((0, 1), Dim.DYNAMIC) for _ in self.inputs),)
        try:
            with _quiet(), torch.no_grad():
                return torch.export.export(self, self.example(*_EXAMPLE), dynamic_shapes=shapes, strict=False)
        except Exception as error:
            backbone = type(self.scorer.model.backbone).__name__
            raise ValueError(
                f"`onnx` and `pt2` must be False for the backbone {backbone}, which `torch.export` cannot "
                "take with an open batch and length. Do not use `len(x)` or sizes of tensors as Python "
                f"numbers, or export the weights alone. {error}"
            ) from error

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for the inputs, in their order."""
        return self.outputs_of(self.scorer, inputs)

    def outputs_of(self, scorer: Scorer, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the outputs of a model."""
        given: dict[str, Any] = dict(zip(self.inputs, inputs, strict=True))
        given.setdefault("feedback", torch.zeros_like(given["items"], dtype=torch.float32))
        query = scorer.model.session_query(SessionBatch(**given))
        return (query, scorer.skip_prediction.session_vector(query)) if scorer.predicts_skips else (query,)

    def example(self, sessions: int, length: int) -> tuple[Tensor, ...]:
        """Return random inputs; the first session has the full length, as the data module makes batches."""
        length = length if self.longest is None else min(length, self.longest)
        model, draw = self.scorer.model, torch.Generator().manual_seed(length)
        lengths = torch.randint(1, length + 1, (sessions, 1), generator=draw)
        lengths[0] = length
        valid = torch.arange(length) < lengths
        shape = (sessions, length)

        def signal() -> Tensor:
            return torch.where(valid, torch.rand(shape, generator=draw) * 2 - 1, 0)

        def indices(*size: int) -> Tensor:
            return torch.randint(1, model.num_items + 1, size, generator=draw)

        codes = [
            torch.randint(0, count + 1, shape, generator=draw) * valid
            for count in model.context_sizes.values()
        ]
        made = {
            "items": indices(*shape).masked_fill(~valid, PADDING_INDEX),
            "feedback": signal(),
            "explicit_feedback": signal(),
            "context": torch.stack(codes, dim=2) if codes else None,
            "history": indices(sessions, 4),
        }
        return tuple(value for name in self.inputs if (value := made[name]) is not None)


class _ScannedGRU(nn.Module):
    """A `torch.nn.GRU` whose length an export can leave open.

    torch unrolls the loop of its own GRU, and its exporter to ONNX has written a wrong reset gate
    (https://github.com/pytorch/pytorch/issues/189225).
    """

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        self.gru = gru

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `torch.nn.GRU`, for sessions in a batch."""
        from torch._higher_order_ops import scan

        x, last = x.transpose(0, 1) if self.gru.batch_first else x, []
        for layer in range(self.gru.num_layers):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights: list[Any] = [getattr(self.gru, f"{name}_l{layer}", None) for name in names]
            weight, own_weight, bias, own_bias = weights
            gates = nn.functional.linear(x, weight, bias)  # [L, B, 3 H]
            start = gates.new_zeros(gates.shape[1], self.gru.hidden_size) if state is None else state[layer]

            def step(
                state: Tensor, gate: Tensor, weight: Any = own_weight, bias: Any = own_bias
            ) -> tuple[Tensor, Tensor]:
                reset, update, new = gate.chunk(3, dim=1)
                own_reset, own_update, own_new = nn.functional.linear(state, weight, bias).chunk(3, dim=1)
                update = torch.sigmoid(update + own_update)
                new = torch.tanh(new + torch.sigmoid(reset + own_reset) * own_new)
                state = (1 - update) * new + update * state
                return state, state.clone()

            _, x = scan(step, start, gates)
            last.append(x[-1])
        return x.transpose(0, 1) if self.gru.batch_first else x, torch.stack(last)


def _replace_recurrent(module: nn.Module) -> None:
    """Replace each GRU of one direction that a module holds."""
    for name, child in module.named_children():
        if isinstance(child, nn.GRU) and not child.bidirectional:
            setattr(module, name, _ScannedGRU(child))
        else:
            _replace_recurrent(child)


def write_pt2(graph: Graph, path: Path) -> None:
    """Write a graph by `torch.export`; a `ValueError` if it cannot, or the file gives other outputs."""
    # In memory first, because torch ends the whole process where a disk is full.
    with io.BytesIO() as buffer:
        torch.export.save(graph.program, buffer)
        with path.open("wb") as stream, buffer.getbuffer() as content:
            stream.write(content)
    loaded = torch.export.load(path).module()
    _compare(graph, lambda inputs: tuple(loaded(*inputs)), "pt2")


def write_onnx(graph: Graph, path: Path) -> None:
    """Write a graph as ONNX; a graph above 2 GiB has its weights in a second file, `<name>.data`.

    Raises:
        ImportError: A package of the extra `export` is not installed.
        ValueError: The model cannot be exported, or onnxruntime computes other outputs from the file.
    """
    # torch needs onnxscript.
    onnxruntime = import_extra("onnxruntime", "onnxscript", extra="export", user="ONNX")
    program = graph.program
    with _quiet():
        written: Any = torch.onnx.export(
            program,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=[
                {place: name for place, name in enumerate(shape) if isinstance(name, str)}
                for shape, _ in graph.inputs.values()
            ],
            dynamo=True,
            verbose=False,
        )
        written.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        feed = {name: value.numpy() for name, value in zip(graph.inputs, inputs, strict=True)}
        return tuple(torch.from_numpy(value) for value in session.run(list(graph.outputs), feed))

    _compare(graph, run, "onnx")


@torch.no_grad()
def _compare(graph: Graph, run: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]], argument: str) -> None:
    """Raise unless a written graph gives the outputs of the model itself for batches of several sizes."""
    for size in (*_SIZES, (2, graph.longest or 33)):
        inputs = graph.example(*size)
        expected = graph.outputs_of(graph.original[0], inputs)
        for name, found, right in zip(graph.outputs, run(inputs), expected, strict=True):
            difference = (found - right).abs().max()
            # False for NaN.
            if not difference <= _TOLERANCE * max(1.0, float(right.abs().max())):
                raise ValueError(
                    f"`{argument}` must give the outputs of the model, got `{name}` with a difference of "
                    f"{float(difference):.2g} for {size[0]} sessions. The exporter translates a part of "
                    f"{type(graph.scorer.model.backbone).__name__} wrongly: leave this format out."
                )


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the exporter's remarks about itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
