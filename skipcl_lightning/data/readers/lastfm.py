"""Readers of two data sets of Last.fm: LFM-1K and LFM-2b."""

from pathlib import Path

import polars as pl

from skipcl_lightning._checks import check_number
from skipcl_lightning.data.prepare.sessions import label_and_cut
from skipcl_lightning.data.readers.parsing import (
    ARTIST_TRACK_DASH,
    PLACEHOLDER_IDS,
    PLACEHOLDER_NAMES,
    Paths,
    integer_column,
    known,
    list_files,
    parse_columns,
    read_first_line,
    scan_csv_text,
    scan_fields,
    text_column,
    time_column,
)

__all__ = ["read_lfm1k", "read_lfm2b"]

_COLUMNS = ("user", "time", "artist_id", "artist", "track_id", "track")


def read_lfm1k(
    paths: Paths,
    *,
    skip_seconds: float = 30.0,
    gap_minutes: float | None = 20.0,
    max_damaged: float = 0.001,
) -> pl.LazyFrame:
    r"""Read the Last.fm dataset of 1,000 users: items and the start of their plays.

    The log has no skips. An item is skipped (-1) if the same user's next play starts within `skip_seconds`,
    otherwise listened (+1); a user's last play is unknown (0). The item is the track's MusicBrainz id if
    there is one, otherwise artist and track with an en dash between; without a track name it is null, and the
    preparation drops and counts it.

    Args:
        paths: `userid-timestamp-artid-artname-traid-traname.tsv`, gzipped or not: user, time such as
            `2009-05-04T23:08:57Z`, artist id, artist, track id, track, separated by tabs, without a header;
            several such files, or a folder that is searched for that name.
        skip_seconds: The longest time in seconds from the start of a skipped item to the next start, above 0.
        gap_minutes: The longest pause within a session, from start to start, above 0. None for the plain
            history, which polars can stream; use `label_by_next_play` and `sessionise` then.
        max_damaged: The largest share of lines with another number of fields, in [0, 1), among those read at
            once; 10 are always accepted, and 0 accepts none. Such lines are dropped with a warning (the
            published data set has nine).

    Returns:
        A canonical table, sorted by user and time: `session_id` (String), `item_id` (String), `feedback`,
        `timestamp` (Datetime in UTC), `user_id` (String). With `gap_minutes=None` only `user_id`, `item_id`,
        `timestamp`, in the order of the files, and `tie_order` for files that run newest first, as the data
        set does.

    Raises:
        TypeError: A setting is no number.
        ValueError: A path does not exist, a folder has no such file, a file is empty or its first line has
            not six fields, or a setting is not above 0. When collected: a line has not six fields, no user,
            or another form of time; the message names the file and the value.

    Reference:
        Celma, "Music Recommendation and Discovery", Springer 2010, doi 10.1007/978-3-642-13287-2.

    Examples:
        >>> import tempfile
        >>> rows = ["u\t2009-05-04T10:00:09Z\tm\tArtist\t\tTwo", "u\t2009-05-04T10:00:00Z\tm\tArtist\tt\tOne"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "log.tsv"
        ...     _ = file.write_text("\n".join(rows))
        ...     table = read_lfm1k(file).collect()
        >>> table["item_id"][0], table["feedback"].to_list()
        ('t', [-1.0, 0.0])
    """
    files = list_files(
        paths, [f"userid-timestamp-artid-artname-traid-traname.tsv{end}" for end in ("", ".gz")]
    )
    check_number("max_damaged", max_damaged, minimum=0, maximum=1, open_maximum=True)
    histories = [_scan(file, max_damaged) for file in files]
    return label_and_cut(histories, skip_seconds=skip_seconds, gap_minutes=gap_minutes)


def _scan(file: Path, max_damaged: float) -> pl.LazyFrame:
    """Return one file as a plain history."""
    names = [known(name, PLACEHOLDER_NAMES) for name in ("artist", "track")]
    named = pl.concat_str(names, separator=ARTIST_TRACK_DASH)  # null if one is null
    columns = [
        text_column("user"),
        time_column("time"),
        *(text_column(name, optional=True) for name in ("track_id", "artist", "track")),
    ]
    return parse_columns(scan_fields(file, _COLUMNS, "\t", max_damaged=max_damaged), file, columns).select(
        pl.col("user").alias("user_id"),
        pl.coalesce(known("track_id", PLACEHOLDER_IDS), named).alias("item_id"),
        pl.col("time").alias("timestamp"),
    )


_LFM2B_COLUMNS = ("user_id", "track_id", "timestamp")


def read_lfm2b(paths: Paths, *, skip_seconds: float = 30.0, gap_minutes: float | None = 20.0) -> pl.LazyFrame:
    r"""Read listening events of LFM-2b, or of one of its parts: items and the start of their plays.

    The log has no skips. An item is skipped (-1) if the same user's next play starts within `skip_seconds`,
    otherwise listened (+1); a user's last play is unknown (0). Times are UTC.

    Args:
        paths: `listening_events.tsv`, gzipped or not (unpack the `.bz2` first): a header with `user_id`,
            `track_id` and `timestamp`, separated by tabs, and times such as `2019-01-01 00:00:13`; several
            such files, or a folder that is searched for `listening_events*.tsv` and
            `listening_events*.tsv.gz`.
        skip_seconds: The longest time in seconds from the start of a skipped item to the next start, above 0.
        gap_minutes: The longest pause within a session, from start to start, above 0. None for the plain
            history, which polars can stream; use `label_by_next_play` and `sessionise` then.

    Returns:
        A canonical table, sorted by user and time: `session_id` (String), `item_id` (Int64), `feedback`,
        `timestamp` (Datetime in UTC), `user_id` (Int64). With `gap_minutes=None` only `user_id`, `item_id`,
        `timestamp`, in the order of the files.

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
    histories = [_scan_lfm2b(file) for file in files]
    return label_and_cut(histories, skip_seconds=skip_seconds, gap_minutes=gap_minutes)


def _scan_lfm2b(file: Path) -> pl.LazyFrame:
    """Return one file as a plain history."""
    # Some copies quote the header and the times; in others a quotation mark is an ordinary character.
    quote_char = '"' if '"' in read_first_line(file) else None
    text = scan_csv_text(file, _LFM2B_COLUMNS, separator="\t", quote_char=quote_char)
    columns = [integer_column("user_id"), integer_column("track_id"), time_column("timestamp")]
    return parse_columns(text, file, columns).rename({"track_id": "item_id"})
