"""From logs of listening to batches: readers, sessions, item numbers, splits and the data module."""

from skipcl_lightning.data.datamodule import SessionDataModule
from skipcl_lightning.data.dataset import SessionDataset, keep_batch
from skipcl_lightning.data.drop_report import DropReport
from skipcl_lightning.data.encoder import SessionEncoder
from skipcl_lightning.data.filters import SessionFilter
from skipcl_lightning.data.mining import MinedItems, mine_transitions, sample_mined
from skipcl_lightning.data.mssd import read_mssd
from skipcl_lightning.data.preparation import prepare_sessions
from skipcl_lightning.data.recommendations import recommendation_frame
from skipcl_lightning.data.sampler import EvaluationSampler
from skipcl_lightning.data.sessions import sessionise
from skipcl_lightning.data.simulate import simulate_sessions
from skipcl_lightning.data.split import SessionView, leave_one_out
from skipcl_lightning.data.store import SessionStore
from skipcl_lightning.data.streaming_history import read_streaming_history
from skipcl_lightning.data.table import read_table
from skipcl_lightning.data.vocabulary import ItemVocabulary

__all__ = [
    "DropReport",
    "EvaluationSampler",
    "ItemVocabulary",
    "MinedItems",
    "SessionDataModule",
    "SessionDataset",
    "SessionEncoder",
    "SessionFilter",
    "SessionStore",
    "SessionView",
    "keep_batch",
    "leave_one_out",
    "mine_transitions",
    "prepare_sessions",
    "read_mssd",
    "read_streaming_history",
    "read_table",
    "recommendation_frame",
    "sample_mined",
    "sessionise",
    "simulate_sessions",
]
