"""Skip-aware contrastive session recommendation as a plug-in for PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipcl_lightning.batch import SessionBatch
    from skipcl_lightning.data import SessionDataModule
    from skipcl_lightning.evaluation import evaluate
    from skipcl_lightning.export.item_index import ItemIndex
    from skipcl_lightning.heads import SkipInfoNCE
    from skipcl_lightning.module import SkipCLModule
    from skipcl_lightning.recommender import Recommender

__all__ = [
    "ItemIndex",
    "Recommender",
    "SessionBatch",
    "SessionDataModule",
    "SkipCLModule",
    "SkipInfoNCE",
    "evaluate",
]

_HOMES = {
    "ItemIndex": "skipcl_lightning.export.item_index",
    "Recommender": "skipcl_lightning.recommender",
    "SessionBatch": "skipcl_lightning.batch",
    "SessionDataModule": "skipcl_lightning.data",
    "SkipCLModule": "skipcl_lightning.module",
    "SkipInfoNCE": "skipcl_lightning.heads",
    "evaluate": "skipcl_lightning.evaluation",
}


def __getattr__(name: str) -> Any:
    # Imported at the first use: a loss or a metric alone needs neither lightning nor polars.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
