"""The backbones of the study: causal ones of ours, by name."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from skipcl_lightning._settings import build_part
from skipcl_lightning.backbones import BACKBONES

__all__ = ["EMBEDDING_SIZE", "backbone_names", "build_backbone"]

EMBEDDING_SIZE = 64
# Small, so that many seeds fit into a day; the others have their own defaults.
_SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"SASRec": MappingProxyType({"num_layers": 1, "dropout": 0.1})}
)


def backbone_names() -> list[str]:
    """The backbones that can take part: causal, and built from a size and at most a length.

    Returns:
        Their names.

    Examples:
        >>> "SASRec" in backbone_names(), "BERT4Rec" in backbone_names()
        (True, False)
    """
    return [name for name, kind in BACKBONES.items() if getattr(kind, "causal", None) is True]


def build_backbone(name: str, max_length: int) -> nn.Module:
    """A backbone.

    Args:
        name: Which.
        max_length: The most tracks that it is given.

    Returns:
        The module.

    Raises:
        ValueError: It cannot take part.

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
