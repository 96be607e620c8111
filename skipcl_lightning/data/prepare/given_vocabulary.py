"""The vocabulary that a log is prepared with: from a module, a checkpoint or a store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from skipcl_lightning._files import open_checkpoint
from skipcl_lightning.data.prepare.context import ContextEncoder
from skipcl_lightning.data.store.folder import MANIFEST, Manifest, read_column
from skipcl_lightning.data.vocabulary import ItemVocabulary

__all__ = [
    "CHECKPOINT_KEY",
    "GivenVocabulary",
    "HasEncoder",
    "NewItems",
    "VocabularySource",
    "choose_context",
    "resolve_vocabulary",
]

# Of this package's values in a checkpoint of Lightning.
CHECKPOINT_KEY = "skipcl_lightning"
NewItems = Literal["drop", "append"]


class HasEncoder(Protocol):
    """Protocol of an object with the vocabulary of a model: a `SkipCLModule` or a `Recommender`."""

    encoder: Any


VocabularySource = ItemVocabulary | HasEncoder | str | Path


@dataclass(frozen=True)
class GivenVocabulary:
    """A vocabulary, its model's context, and the largest number of items of its training; 0 if unknown."""

    vocabulary: ItemVocabulary
    trained_length: int = 0
    context: ContextEncoder | None = None


def choose_context(
    given: Sequence[str] | ContextEncoder, known: GivenVocabulary | None
) -> Sequence[str] | ContextEncoder:
    """Return the inputs to prepare: those of a trained model, with its categories, unless others are given.

    Examples:
        >>> known = GivenVocabulary(ItemVocabulary(["song"]), context=ContextEncoder({"device": ["tv"]}))
        >>> choose_context([], known), choose_context(["device"], known), choose_context(["gap"], known)
        (ContextEncoder(device: 1), ContextEncoder(device: 1), ['gap'])
    """
    trained = None if known is None else known.context
    if trained is None or isinstance(given, ContextEncoder):
        return given
    return trained if list(given) in ([], list(trained.categories)) else given


def resolve_vocabulary(source: object) -> GivenVocabulary:
    """Return the vocabulary of a source.

    Args:
        source: An `ItemVocabulary`; an object with an `encoder`, such as a fitted `SkipCLModule` or a
            `Recommender`; the path of a checkpoint; or the folder of a store.

    Raises:
        TypeError: It is something else.
        ValueError: The module was not fitted with a `SessionDataModule`, or the path is no checkpoint with a
            vocabulary and no store.

    Examples:
        >>> resolve_vocabulary(ItemVocabulary(["song"])).vocabulary.ids
        ['song']
    """
    if isinstance(source, ItemVocabulary):
        return GivenVocabulary(source)
    if isinstance(source, str | Path):
        return _read(Path(source).expanduser())
    if not hasattr(source, "encoder"):
        raise TypeError(
            "`vocabulary` must be an ItemVocabulary, a SkipCLModule, the path of a checkpoint or the folder "
            f"of a store, got {type(source).__name__}. Make one with `ItemVocabulary(ids)`."
        )
    encoder = source.encoder
    if encoder is None:
        raise ValueError(
            f"`vocabulary` must have one, got a {type(source).__name__} without. Fit it with a "
            "`SessionDataModule`, or load its checkpoint."
        )
    return GivenVocabulary(encoder.vocabulary, encoder.max_length, encoder.context)


def _read(path: Path) -> GivenVocabulary:
    if (path / MANIFEST).is_file():
        manifest = Manifest.read(path)
        manifest.check_files(path, contents=False)
        vocabulary = ItemVocabulary(read_column(path / "item_id.arrow"))
        return GivenVocabulary(vocabulary, context=_to_context(manifest.counts.get("context")))
    try:
        checkpoint = open_checkpoint(path, records="settings")
    except (OSError, ValueError) as error:
        why = "which does not exist" if not path.exists() else "which is neither"
        raise ValueError(
            f"`vocabulary` must be the path of a checkpoint or the folder of a store, got {str(path)!r}, "
            f"{why}. `skipcl fit` writes a checkpoint, and `skipcl prepare` a store."
        ) from error
    state = checkpoint.get(CHECKPOINT_KEY, {}).get("encoder")
    if state is None:
        raise ValueError(
            f"`vocabulary` must be a checkpoint with an item vocabulary, got {str(path)!r} without. Fit the "
            "model with a `SessionDataModule`, or pass `ItemVocabulary(ids)` in the order of training."
        )
    vocabulary = ItemVocabulary.from_state_dict(state["vocabulary"])
    return GivenVocabulary(vocabulary, state["max_length"], _to_context(state.get("context")))


def _to_context(state: Mapping[str, Any] | None) -> ContextEncoder | None:
    return None if state is None else ContextEncoder(state)
