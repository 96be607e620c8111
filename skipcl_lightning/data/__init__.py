"""From logs of listening to batches: readers, sessions, item numbers, splits and the data module."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skipcl_lightning.data.batches import EvaluationSampler, SessionDataset, TrainingSampler, keep_batch
from skipcl_lightning.data.encoder import SessionEncoder, recommendation_frame
from skipcl_lightning.data.item_features import ItemFeatures
from skipcl_lightning.data.mining import MinedItems, mine_transitions, sample_mined
from skipcl_lightning.data.prepare.inputs import ContextEncoder
from skipcl_lightning.data.prepare.on_disk import open_store, prepare_store
from skipcl_lightning.data.prepare.preparation import DropReport, SessionFilter, prepare_sessions
from skipcl_lightning.data.prepare.prepared_data import PreparedData
from skipcl_lightning.data.prepare.sessions import label_by_next_play, sessionise
from skipcl_lightning.data.readers import (
    read_30music,
    read_lfm1k,
    read_lfm2b,
    read_listenbrainz,
    read_movielens,
    read_mssd,
    read_streaming_history,
    read_table,
    read_yambda,
)
from skipcl_lightning.data.simulate import simulate_sessions
from skipcl_lightning.data.splits import LeaveOneOut, SplitBySession, SplitByTime, leave_one_out
from skipcl_lightning.data.store.session_store import SessionStore, SessionView
from skipcl_lightning.data.vocabulary import ItemVocabulary

if TYPE_CHECKING:
    from skipcl_lightning.data.datamodule import SessionDataModule

__all__ = [
    "ContextEncoder",
    "DropReport",
    "EvaluationSampler",
    "ItemFeatures",
    "ItemVocabulary",
    "LeaveOneOut",
    "MinedItems",
    "PreparedData",
    "SessionDataModule",
    "SessionDataset",
    "SessionEncoder",
    "SessionFilter",
    "SessionStore",
    "SessionView",
    "SplitBySession",
    "SplitByTime",
    "TrainingSampler",
    "keep_batch",
    "label_by_next_play",
    "leave_one_out",
    "mine_transitions",
    "open_store",
    "prepare_sessions",
    "prepare_store",
    "read_30music",
    "read_lfm1k",
    "read_lfm2b",
    "read_listenbrainz",
    "read_movielens",
    "read_mssd",
    "read_streaming_history",
    "read_table",
    "read_yambda",
    "recommendation_frame",
    "sample_mined",
    "sessionise",
    "simulate_sessions",
]


def __getattr__(name: str) -> Any:
    # Imported at the first use: it needs Lightning, and recommendations do not.
    if name != "SessionDataModule":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = import_module("skipcl_lightning.data.datamodule").SessionDataModule
    globals()[name] = value
    return value
