"""The variants and backbones of the study, as plain values."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from torch import nn

from skipcl_lightning._settings import PartSettings, build_part
from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.heads import SKIP_HEADS

__all__ = [
    "EMBEDDING_SIZE",
    "INPUT_SUFFIX",
    "PLAIN",
    "VARIANTS",
    "Variant",
    "backbone_names",
    "build_backbone",
    "find_variant",
]

EMBEDDING_SIZE = 64
# Small, so that many seeds take a day; the others have their own defaults.
_SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"SASRec": MappingProxyType({"num_layers": 1, "dropout": 0.1})}
)


def backbone_names() -> list[str]:
    """Return the backbones of the study: causal, and built from a size and perhaps a length.

    Returns:
        Their names.

    Examples:
        >>> "SASRec" in backbone_names(), "BERT4Rec" in backbone_names()
        (True, False)
    """
    return [name for name, kind in BACKBONES.items() if getattr(kind, "causal", None) is True]


def build_backbone(name: str, max_length: int) -> nn.Module:
    """Return a backbone.

    Args:
        name: The name.
        max_length: The largest number of items that it sees.

    Returns:
        The module.

    Raises:
        ValueError: The backbone is not in the study.

    Examples:
        >>> type(build_backbone("SASRec", 20)).__name__
        'SASRec'
    """
    if name not in backbone_names():
        raise ValueError(
            f"`backbones` must be among {', '.join(backbone_names())}, got {name!r}. The skip heads are "
            "compared on causal backbones only."
        )
    settings = {"embedding_size": EMBEDDING_SIZE, **_SETTINGS.get(name, {})}
    if "max_length" in inspect.signature(BACKBONES[name]).parameters:
        settings["max_length"] = max_length
    return build_part("backbone", {"name": name, "settings": settings}, BACKBONES)


PLAIN = "none"
INPUT_SUFFIX = "+input"


@dataclass(frozen=True)
class Variant:
    """A change of the plain model.

    Args:
        parts: The heads, each with `name` and `settings` except the weight; none for the plain model.
        feedback_input: Whether the backbone sees the feedback of past items.
        data_settings: Additional settings of the data module, for mined items.
    """

    parts: tuple[Mapping[str, Any], ...] = ()
    feedback_input: bool = False
    data_settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def build_head(self, weight: float) -> nn.Module | None:
        """Return the head, or the sum of several.

        Args:
            weight: λ of each of them.

        Returns:
            The head; None without parts.

        Examples:
            >>> VARIANTS["past"].build_head(0.3).weight
            0.3
        """
        weighted: list[PartSettings] = [
            {"name": part["name"], "settings": {**part["settings"], "weight": weight}} for part in self.parts
        ]
        if not weighted:
            return None
        if len(weighted) == 1:
            return build_part("head", weighted[0], SKIP_HEADS)
        return build_part("head", {"name": "CombinedHead", "settings": {"heads": weighted}}, SKIP_HEADS)


def _part(name: str, **settings: Any) -> Mapping[str, Any]:
    return MappingProxyType({"name": name, "settings": MappingProxyType(settings)})


_SESSION, _PAST, _BATCH = (
    _part("SkipInfoNCE", negatives=negatives) for negatives in ("session", "past", "batch")
)

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        PLAIN: Variant(),
        "session": Variant((_SESSION,)),
        "past": Variant((_PAST,)),
        "batch": Variant((_BATCH,)),
        "session+batch": Variant((_SESSION, _BATCH)),
        "mined": Variant(
            (_SESSION,), data_settings=MappingProxyType({"mined_negatives": 4, "mined_positives": 2})
        ),
        "unlikelihood": Variant((_part("SkipUnlikelihood"),)),
        "softmax": Variant((_part("SkipSoftmax"),)),
        "bpr": Variant((_part("SkipMargin", loss="bpr"),)),
        "hinge": Variant((_part("SkipMargin", loss="hinge"),)),
        "opposing": Variant((_part("OpposingSequences"),)),
    }
)


def find_variant(name: str) -> Variant:
    """Return a variant by its name.

    Args:
        name: One of `VARIANTS`; `+input` after it adds past feedback as an input.

    Returns:
        The variant.

    Raises:
        ValueError: There is none of that name.

    Examples:
        >>> find_variant("session+batch+input").feedback_input
        True
        >>> find_variant("sesion")
        Traceback (most recent call last):
            ...
        ValueError: `variants` must be among none, session, ..., each also with '+input', got 'sesion'.
    """
    head = name.removesuffix(INPUT_SUFFIX)
    if head not in VARIANTS:
        raise ValueError(
            f"`variants` must be among {', '.join(VARIANTS)}, each also with {INPUT_SUFFIX!r}, got {name!r}."
        )
    return replace(VARIANTS[head], feedback_input=name.endswith(INPUT_SUFFIX))
