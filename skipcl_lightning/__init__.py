"""Skip-aware contrastive session recommendation as a plug-in for PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipcl_lightning.module import SkipCLModule
    from skipcl_lightning.recommender import Recommender

__all__ = ["Recommender", "SkipCLModule"]

_HOMES = {"Recommender": "skipcl_lightning.recommender", "SkipCLModule": "skipcl_lightning.module"}


def __getattr__(name: str) -> Any:
    # At the first use, so that who wants a loss or a metric alone does not wait for lightning and polars.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
