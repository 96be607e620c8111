"""Reader of Spotify's Music Streaming Sessions Dataset (MSSD)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl

from skipcl_lightning._checks import check_choice
from skipcl_lightning.data.canonical_table import check_names
from skipcl_lightning.data.readers.parsing import (
    Column,
    Paths,
    flag_column,
    integer_column,
    list_files,
    parse_columns,
    scan_csv_text,
    text_column,
)

__all__ = ["MSSD_LABELS", "read_mssd"]

MSSD_LABELS = ("skip_1", "skip_2", "skip_3", "graded")
_FLAGS = ("skip_1", "skip_2", "skip_3", "not_skipped")
# Other columns of a log, with their parsing.
_CONTEXT: Mapping[str, Callable[..., Column]] = {
    "context_switch": flag_column,
    "no_pause_before_play": flag_column,
    "short_pause_before_play": flag_column,
    "long_pause_before_play": flag_column,
    "hist_user_behavior_n_seekfwd": integer_column,
    "hist_user_behavior_n_seekback": integer_column,
    "hist_user_behavior_is_shuffle": flag_column,
    "hour_of_day": integer_column,
    "premium": flag_column,
    "context_type": text_column,
    "hist_user_behavior_reason_start": text_column,
    "hist_user_behavior_reason_end": text_column,
}
_COLUMNS = ("session_id", "session_position", "track_id_clean", *_FLAGS)


def read_mssd(paths: Paths, *, label: str = "skip_2", columns: Sequence[str] = ()) -> pl.LazyFrame:
    r"""Read training logs of the Music Streaming Sessions Dataset.

    Only headers are read now. Rows, and errors in them, follow when the table is collected. About one row in
    25 has all four flags false; its feedback is 0, unknown.

    Args:
        paths: A log, several, or a folder that is searched for `*.csv` and `*.csv.gz`.
        label: The flag of a skip: `skip_1` (played very briefly), `skip_2` (briefly; the label of the WSDM
            Cup 2019) or `skip_3` (most of it played). The flag gives -1, unknown 0, all else +1. `graded`
            uses all three: -1 for skip_1, -2/3 for skip_2 only, -1/3 for skip_3 only, +1 for not_skipped.
        columns: Other columns to keep, for `SessionDataModule(context=...)`: `context_switch`,
            `no_pause_before_play`, `short_pause_before_play`, `long_pause_before_play`,
            `hist_user_behavior_is_shuffle`, `premium` (Boolean), `hour_of_day`,
            `hist_user_behavior_n_seekfwd`, `hist_user_behavior_n_seekback` (Int64), `context_type`,
            `hist_user_behavior_reason_start`, `hist_user_behavior_reason_end` (String).

    Returns:
        A canonical table: `session_id`, `item_id` (both String), `feedback`, `position` (Int64); then
        `columns`.

    Raises:
        TypeError: `columns` is no list of names.
        ValueError: A path does not exist, a folder has no logs, a log is empty or lacks a column, or `label`
            or one of `columns` is unknown. When collected: a flag is not true or false (in any case) or 1 or
            0, or a position is no integer; the message names the file, the row, the column and the value.

    Reference:
        Brost, Mehrotra, Jehan, "The Music Streaming Sessions Dataset", WWW 2019, doi 10.1145/3308558.3313641.

    Examples:
        >>> import tempfile
        >>> header = "session_id,session_position,track_id_clean,skip_1,skip_2,skip_3,not_skipped"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "log.csv"
        ...     rows = ["s,1,t_a,False,True,True,False", "s,2,t_b,false,false,false,true"]
        ...     _ = file.write_text("\n".join([header, *rows]))
        ...     read_mssd(file).collect().rows()
        [('s', 't_a', -1.0, 1), ('s', 't_b', 1.0, 2)]
    """
    check_choice("label", label, MSSD_LABELS)
    check_names("columns", columns, choices=_CONTEXT)
    files = list_files(paths, ["*.csv", "*.csv.gz"])
    # One scan for each file, because a shared one requires equal columns in equal order.
    return pl.concat([_scan(file, label, columns) for file in files])


def _scan(file: Path, label: str, kept: Sequence[str]) -> pl.LazyFrame:
    """Return one log as a canonical table."""
    columns = [
        text_column("session_id", optional=True),
        text_column("track_id_clean", optional=True),
        integer_column("session_position"),
        *map(flag_column, _FLAGS),
        *(_CONTEXT[name](name, optional=True) for name in kept),
    ]
    return parse_columns(scan_csv_text(file, [*_COLUMNS, *kept]), file, columns).select(
        "session_id",
        pl.col("track_id_clean").alias("item_id"),
        _feedback(label).cast(pl.Float32).alias("feedback"),
        pl.col("session_position").alias("position"),
        *kept,
    )


def _feedback(label: str) -> pl.Expr:
    """Return the four flags as one number."""
    if label == "graded":
        return (
            pl.when("skip_1").then(-1.0)
            .when("skip_2").then(-2 / 3)
            .when("skip_3").then(-1 / 3)
            .when("not_skipped").then(1.0)
            .otherwise(0.0)
        )  # fmt: skip
    return pl.when(label).then(-1.0).when(pl.any_horizontal(_FLAGS)).then(1.0).otherwise(0.0)
