"""The folder of an exported model: what is in it, how it is written, and how it is read again."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from skipcl_lightning._checks import import_extra
from skipcl_lightning._files import (
    check_num_items,
    digest_file,
    digest_json,
    make_beside,
    named_in_errors,
    path_in_errors,
    sync,
)
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.data import SessionEncoder
from skipcl_lightning.data.canonical_table import name_unreadable
from skipcl_lightning.export.graph import Graph, write_onnx, write_pt2
from skipcl_lightning.export.item_index import item_vectors
from skipcl_lightning.model import Scorer, Scoring

__all__ = ["export_model", "load_export"]

FORMAT = 1
DESCRIPTION, WEIGHTS, ITEMS, ONNX, PT2 = (
    "model.json",
    "model.safetensors",
    "items.parquet",
    "model.onnx",
    "model.pt2",
)
_LARGEST_DESCRIPTION = 1 << 28
_SCORE = (
    "The score of an item is the inner product of `query` with its `vector` in items.parquet. Leave retired "
    "items out."
)
_PENALISED = (
    "`vector` is e, k and b in one. The score of an item at the penalty p ≥ 0 is the inner product of its "
    "`vector` with `query`, p · `skip_vector` and p in one. The probability that it is skipped is "
    "1 / (1 + exp((`skip_vector` · k + b) / temperature)). Leave retired items out."
)
_TRANSITIONS = (
    " The graphs know no transitions: only model.safetensors has them, so that a model with a "
    "`transition_weight` ranks otherwise here than in `Recommender`."
)


@torch.no_grad()
def export_model(
    scorer: Scoring, encoder: SessionEncoder, folder: str | Path, *, onnx: bool = True, pt2: bool = True
) -> Path:
    """Write a trained model to a folder for use without the training code.

    The folder appears complete or not at all. It has

    - `model.safetensors`: all weights, with transitions and retired items;
    - `items.parquet`: `index`, `item_id`, `retired` and `vector` (Array of Float32) of each item;
    - `model.json`: inputs and outputs, settings, versions, and a SHA-256 digest of each file;
    - `model.onnx` and `model.pt2`: the graph from sessions to queries, for any number of sessions
      of any length. Each is compared with the model before it is kept.

    Args:
        scorer: A trained `SkipCLModule`, or a `Scorer`.
        encoder: The item vocabulary and the longest session.
        folder: The new folder.
        onnx: Whether to write `model.onnx`, which needs the extra `export`.
        pt2: Whether to write `model.pt2`, for `torch.export.load`.

    Returns:
        The folder.

    Raises:
        FileExistsError: `folder` exists already.
        ImportError: A package of the extra `export` is not installed.
        OSError: The folder cannot be written, for example because the disk is full.
        ValueError: The model cannot be exported in a wanted format, a graph gives other outputs, or the
            encoder has another number of items.

    Examples:
        >>> from skipcl_lightning.backbones import SASRec
        >>> from skipcl_lightning.data import ItemVocabulary
        >>> from skipcl_lightning.model import SessionModel
        >>> encoder = SessionEncoder(ItemVocabulary(["song", "tune"]), max_length=50)
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "model"
        >>> scorer = Scorer(SessionModel(SASRec(8), num_items=2))
        >>> folder = export_model(scorer, encoder, place, onnx=False, pt2=False)
        >>> sorted(path.name for path in folder.iterdir())
        ['items.parquet', 'model.json', 'model.safetensors']
        >>> load_export(folder)[1].vocabulary.ids
        ['song', 'tune']
    """
    folder = Path(folder).expanduser()
    if folder.exists():
        raise FileExistsError(f"`folder` must be new, got {str(folder)!r}, which exists. Name another one.")
    if scorer.num_items != len(encoder.vocabulary):
        raise ValueError(
            f"`encoder` must have the {scorer.num_items:,} items of the model, got "
            f"{len(encoder.vocabulary):,}. Take both from the same checkpoint."
        )
    head = scorer.skip_prediction if scorer.predicts_skips else None
    kept = Scorer(
        scorer.model,
        head,
        skip_penalty=scorer.skip_penalty,
        transition_weight=scorer.transition_weight,
        exclude_seen=scorer.exclude_seen,
    )
    graph = Graph(kept)
    with path_in_errors(folder), _new_folder(folder) as temporary:
        _safetensors().save_file(
            {name: value.detach().cpu().contiguous().clone() for name, value in kept.state_dict().items()},
            temporary / WEIGHTS,
        )
        _items(kept, encoder).write_parquet(temporary / ITEMS)
        # safetensors lets nobody but the owner read its file.
        shutil.copymode(temporary / ITEMS, temporary / WEIGHTS)
        if onnx:
            write_onnx(graph, temporary / ONNX)
        if pt2:
            write_pt2(graph, temporary / PT2)
        files = sorted(temporary.iterdir())
        description = _describe(kept, encoder, graph, files)
        description["sha256"] = digest_json(description)
        text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False)
        (temporary / DESCRIPTION).write_text(text, encoding="utf-8")
    return folder


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, which is renamed to `folder` at the end unless there was an error."""
    with make_beside(folder) as beside:
        temporary = beside / "export"  # with the usual rights, unlike `beside`
        temporary.mkdir()
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        temporary.rename(folder)
        sync(folder.parent)


def load_export(folder: str | Path, *, backbone: nn.Module | None = None) -> tuple[Scorer, SessionEncoder]:
    """Return the model of a folder that `export_model` wrote. No code of the folder runs.

    Args:
        folder: The folder.
        backbone: An instance of your own class, if the model has one; the weights come from the folder.

    Returns:
        The scorer in evaluation mode, on the CPU, and the encoder.

    Raises:
        FileNotFoundError: There is no such folder.
        ImportError: A package of the extra `export` is not installed.
        ValueError: It is no folder, a file is missing, damaged or of another model or format, or the backbone
            must be passed.
    """
    folder = Path(folder).expanduser()
    description = _read_description(folder)
    for name in (WEIGHTS, ITEMS):
        _checkdigest_file(folder / name, description)
    safetensors = _safetensors()
    try:
        state: dict[str, Tensor] = safetensors.load_file(folder / WEIGHTS)
        ids = _read_ids(folder / ITEMS, len(state["model.item_embedding.weight"]) - 1)
        # Not of the description, which would be twice as large.
        values = {**description["encoder"], "vocabulary": {"ids": ids}}
        encoder = SessionEncoder.from_state_dict(values)
        settings = description["settings"]
        num_items = settings["num_items"]
    except Exception as error:
        raise _refuse(
            folder, f"whose contents do not fit each other ({type(error).__name__}: {error})"
        ) from error
    if settings.get("own_embed"):
        raise ValueError(
            f"`folder` must be of a model whose `embed` is the library's, got {str(folder)!r} of a subclass. "
            "Use its model.onnx or model.pt2, or load the checkpoint with its class."
        )
    if num_items != len(encoder.vocabulary):
        raise _refuse(folder, f"with {len(encoder.vocabulary)} items for a model of {num_items}")
    with named_in_errors(folder, "`folder` must be an export"):
        check_num_items({"state_dict": state, "hyper_parameters": settings})
        return Scorer.from_settings(settings, state, backbone=backbone), encoder


def _read_ids(file: Path, num_items: int) -> pl.Series:
    """Return the ids of the items in the order of their indices."""
    # By an open file, because polars takes a path with brackets for a pattern.
    with name_unreadable(ITEMS), file.open("rb") as stream:
        items = pl.scan_parquet(stream)
        # Before they are read: a small file may have any number of rows.
        rows = items.select(pl.len()).collect().item()
        if rows != num_items:
            raise ValueError(f"{rows:,} items for a model of {num_items:,}")
        table = items.select("index", "item_id").collect()
    if table["index"].to_list() != list(range(PADDING_INDEX + 1, num_items + 1)):
        raise ValueError("`index` does not count the items from 1")
    return table["item_id"]


def _items(scorer: Scorer, encoder: SessionEncoder) -> pl.DataFrame:
    """Return the items with their vectors."""
    retired = (
        torch.zeros(scorer.num_items + 1, dtype=torch.bool) if scorer.retired is None else scorer.retired
    )
    return pl.DataFrame(
        {
            "index": pl.int_range(1, scorer.num_items + 1, eager=True),
            "item_id": encoder.vocabulary.to_series(),
            "retired": retired[PADDING_INDEX + 1 :].cpu().numpy(),
            "vector": item_vectors(scorer),
        }
    )


def _describe(scorer: Scorer, encoder: SessionEncoder, graph: Graph, files: list[Path]) -> dict[str, Any]:
    state = encoder.state_dict()
    del state["vocabulary"]
    settings = scorer.settings()
    if scorer.model.embed_override is not None:
        settings["own_embed"] = True
    score = _PENALISED if scorer.predicts_skips else _SCORE
    return {
        "format": FORMAT,
        "versions": {name: version(name) for name in ("skipcl-lightning", "torch")},
        "inputs": {
            name: {"shape": list(shape), "dtype": dtype, "about": _ABOUT[name]}
            for name, (shape, dtype) in graph.inputs.items()
        },
        "outputs": {
            name: {"shape": list(shape), "dtype": "float32"} for name, shape in graph.outputs.items()
        },
        "longest_session": min(encoder.max_length, graph.longest or encoder.max_length),
        "score": score + (_TRANSITIONS if scorer.transition_weight > 0 else ""),
        "temperature": float(scorer.skip_prediction.temperature) if scorer.predicts_skips else None,
        "settings": settings,
        "encoder": state,
        "files": {path.name: {"sha256": digest_file(path), "bytes": path.stat().st_size} for path in files},
    }


_ABOUT = {
    "items": "indices of items.parquet in the order of time, 0 at the end for padding",
    "feedback": "in [-1, 1]: -1 skipped at once, 1 listened to the end, 0 unknown or padding",
    "explicit_feedback": "in [-1, 1]: below 0 disliked, above 0 liked, 0 unknown or padding",
    "context": "codes of the context, in the order of settings.context_sizes; 0 unknown or padding",
    "history": "indices of what the listener listened to before the session, 0 at the end for none",
}


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not folder.exists():
        raise FileNotFoundError(
            f"`folder` must be one that `skipcl export` wrote, got {str(folder)!r}, which does not exist."
        )
    if not folder.is_dir():
        raise ValueError(
            f"`folder` must be one that `skipcl export` wrote, got {str(folder)!r}, which is a file. Name "
            "the folder, or load a checkpoint with `Recommender.from_checkpoint`."
        )
    if not path.is_file():
        raise _refuse(folder, f"without a {DESCRIPTION}")
    if path.stat().st_size > _LARGEST_DESCRIPTION:
        raise _refuse(folder, f"whose {DESCRIPTION} is larger than any that is written")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known, told = found["format"], found.pop("sha256", None)
        right = all(isinstance(found[name], Mapping) for name in ("settings", "encoder", "files"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _refuse(folder, f"whose {DESCRIPTION} is damaged") from error
    if known != FORMAT or not right:
        raise _refuse(folder, f"of the format {known!r}; this version reads {FORMAT}")
    if told != digest_json(found):
        raise _refuse(folder, f"whose {DESCRIPTION} is damaged or was edited")
    return dict(found)


def _checkdigest_file(path: Path, description: Mapping[str, Any]) -> None:
    expected = description["files"].get(path.name)
    digest = expected.get("sha256") if isinstance(expected, Mapping) else None
    if not path.is_file():
        raise _refuse(path.parent, f"without its {path.name}")
    if digest_file(path) != digest:
        raise _refuse(path.parent, f"whose {path.name} is damaged or of another export")


def _refuse(folder: Path, what: str) -> ValueError:
    return ValueError(
        f"`folder` must be one that `skipcl export` wrote, got {str(folder)!r}, {what}. Copy it again, or "
        "export the checkpoint anew."
    )


def _safetensors() -> Any:
    return import_extra("safetensors.torch", extra="export", user="An exported folder")
