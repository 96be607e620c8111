"""The reader of the LFM-2b listening events."""

from pathlib import Path

import polars as pl

from skipcl_lightning.data.prepare.sessions import join_histories, label_and_cut
from skipcl_lightning.data.readers.columns import (
    integer_column,
    parse_columns,
    scan_csv_text,
    time_column,
)
from skipcl_lightning.data.readers.files import Paths, list_files, read_first_line

__all__ = ["read_lfm2b"]

_COLUMNS = ("user_id", "track_id", "timestamp")


def read_lfm2b(paths: Paths, *, skip_seconds: float = 30.0, gap_minutes: float | None = 20.0) -> pl.LazyFrame:
    r"""Read listening events of LFM-2b, or of one of its parts: who played what, and when it started.

    The log has no skip flag: a track is skipped (-1) if the same user's next one starts within
    `skip_seconds`, else listened to (+1); a user's last play is unknown (0). Times are taken as UTC.

    Args:
        paths: `listening_events.tsv`, gzipped or not (unpack the `.bz2` first): a header with
            `user_id`, `track_id` and `timestamp` and a tab between, times as in
            `2019-01-01 00:00:13`; several such files, or a folder that is searched for
            `listening_events*.tsv` and `listening_events*.tsv.gz`.
        skip_seconds: The longest time in seconds from the start of a skipped track to that of the next,
            above 0.
        gap_minutes: The longest pause within a session, from start to start, above 0. None for the plain
            history, which polars can stream: `label_by_next_play` and `sessionise` then do the rest.

    Returns:
        A canonical table, sorted by user and time: `session_id` (String), `item_id` (Int64),
        `feedback`, `timestamp` (Datetime in UTC), `user_id` (Int64). With `gap_minutes=None` only
        `user_id`, `item_id`, `timestamp`, in the order of the files.

    Raises:
        TypeError: A setting is no number.
        ValueError: A path does not exist, a folder has no such file, a file is empty or lacks a column, or a
            setting is not above 0. When collected: an id is no integer, or a time has another form; the
            message names the file, the column and the value.

    Reference:
        Schedl, Brandl, Lesota, Parada-Cabaleiro, Penz, Rekabsaz, "LFM-2b: A Dataset of Enriched Music
        Listening Events for Recommender Systems Research and Fairness Analysis", CHIIR 2022, doi
        10.1145/3498366.3505791.

    Examples:
        >>> import tempfile
        >>> rows = ["user_id\ttrack_id\talbum_id\ttimestamp", "7\t10\t4\t2019-01-01 00:00:13"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "listening_events.tsv"
        ...     _ = file.write_text("\n".join([*rows, "7\t11\t4\t2019-01-01 00:03:00"]))
        ...     read_lfm2b(folder).select("session_id", "item_id", "feedback").collect().rows()
        [('7/0', 10, 1.0), ('7/0', 11, 0.0)]
    """
    files = list_files(paths, ["listening_events*.tsv", "listening_events*.tsv.gz"])
    history = join_histories([_scan(file) for file in files])
    return label_and_cut(history, skip_seconds=skip_seconds, gap_minutes=gap_minutes)


def _scan(file: Path) -> pl.LazyFrame:
    """One file as a plain history."""
    # Some copies quote the header and the times; elsewhere a quotation mark is a character like any other.
    quote_char = '"' if '"' in read_first_line(file) else None
    text = scan_csv_text(file, _COLUMNS, separator="\t", quote_char=quote_char)
    columns = [integer_column("user_id"), integer_column("track_id"), time_column("timestamp")]
    return parse_columns(text, file, columns).rename({"track_id": "item_id"})
