"""The readers of public logs: from files to the canonical table."""

from skipcl_lightning.data.readers.lastfm import read_lfm1k, read_lfm2b
from skipcl_lightning.data.readers.listenbrainz import read_listenbrainz
from skipcl_lightning.data.readers.movielens import read_movielens
from skipcl_lightning.data.readers.mssd import read_mssd
from skipcl_lightning.data.readers.streaming_history import read_streaming_history
from skipcl_lightning.data.readers.table import read_table
from skipcl_lightning.data.readers.thirty_music import read_30music
from skipcl_lightning.data.readers.yambda import read_yambda

__all__ = [
    "read_30music",
    "read_lfm1k",
    "read_lfm2b",
    "read_listenbrainz",
    "read_movielens",
    "read_mssd",
    "read_streaming_history",
    "read_table",
    "read_yambda",
]
