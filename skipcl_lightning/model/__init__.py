"""All that is needed to score, an `nn.Module` without Lightning: it can be exported, served or trained."""

from skipcl_lightning.model.item_tower import ItemTower
from skipcl_lightning.model.scorer import Scorer, Scoring, read_transitions
from skipcl_lightning.model.session_model import ItemEmbedding, SessionModel
from skipcl_lightning.model.transitions import Transitions

__all__ = [
    "ItemEmbedding",
    "ItemTower",
    "Scorer",
    "Scoring",
    "SessionModel",
    "Transitions",
    "read_transitions",
]
