"""The reader of Spotify's Music Streaming Sessions Dataset (MSSD)."""

from functools import partial
from pathlib import Path

import polars as pl

from skipcl_lightning._checks import check_choice
from skipcl_lightning.data.files import Paths, list_files, read_header

__all__ = ["MSSD_LABELS", "read_mssd"]

MSSD_LABELS = ("skip_1", "skip_2", "skip_3", "graded")
_FLAGS = ("skip_1", "skip_2", "skip_3", "not_skipped")
_COLUMNS = ("session_id", "session_position", "track_id_clean", *_FLAGS)
_TRUTH = {"True": True, "true": True, "False": False, "false": False}
_MOST_QUOTED = 60


def read_mssd(paths: Paths, *, label: str = "skip_2") -> pl.LazyFrame:
    r"""Read training logs of the Music Streaming Sessions Dataset.

    Only headers are read now; the rows follow when the table is collected, and a wrong value in them is
    reported then. About one row in 25 has all four flags false: its feedback is 0, unknown.

    Args:
        paths: A log, several, or a folder that is searched for ``*.csv`` and ``*.csv.gz``.
        label: Which flag says that a track was skipped: ``skip_1`` (played very briefly), ``skip_2``
            (briefly; the label of the WSDM Cup 2019) or ``skip_3`` (most of it played). That flag gives -1,
            unknown 0, the rest +1. ``graded`` uses all three: -1 for skip_1, -2/3 for skip_2 only, -1/3 for
            skip_3 only, +1 for not_skipped.

    Returns:
        A canonical table: ``session_id``, ``item_id`` (both String), ``feedback``, ``position`` (Int64).

    Raises:
        ValueError: A path does not exist, a folder has no logs, a log is empty or lacks a column, or
            ``label`` is unknown. When collected: a flag is neither true nor false, or a position is no
            integer; the message names the file, the column and the value.

    Reference:
        Brost, Mehrotra, Jehan, "The Music Streaming Sessions Dataset", WWW 2019, doi
        10.1145/3308558.3313641.

    Example:
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
    files = list_files(paths, ["*.csv", "*.csv.gz"])
    # One scan a file: a shared one would demand the same order of columns in all of them.
    return pl.concat([_scan(file, read_header(file, _COLUMNS), label) for file in files])


def _scan(file: Path, header: list[str], label: str) -> pl.LazyFrame:
    """One log as a canonical table."""
    flags = [
        pl.col(name).map_batches(
            partial(_parse_flag, file=file, column=name), return_dtype=pl.Boolean, is_elementwise=True
        )
        for name in _FLAGS
    ]
    position = pl.col("session_position").map_batches(
        partial(_parse_position, file=file), return_dtype=pl.Int64, is_elementwise=True
    )
    # Every column as a string first: a type guessed from one file's first rows may not fit the next file.
    # With a schema given, asking for the columns does not unpack the file.
    text = pl.scan_csv(file, schema=dict.fromkeys(header, pl.String), glob=False).select(_COLUMNS)
    return text.with_columns(*flags, position).select(
        "session_id",
        pl.col("track_id_clean").alias("item_id"),
        _feedback(label).cast(pl.Float32).alias("feedback"),
        pl.col("session_position").alias("position"),
    )


def _feedback(label: str) -> pl.Expr:
    """The four flags as one number."""
    if label == "graded":
        return (
            pl.when("skip_1").then(-1.0)
            .when("skip_2").then(-2 / 3)
            .when("skip_3").then(-1 / 3)
            .when("not_skipped").then(1.0)
            .otherwise(0.0)
        )  # fmt: skip
    return pl.when(label).then(-1.0).when(pl.any_horizontal(_FLAGS)).then(1.0).otherwise(0.0)


def _parse_flag(values: pl.Series, *, file: Path, column: str) -> pl.Series:
    flags = values.replace_strict(_TRUTH, default=None, return_dtype=pl.Boolean)
    if flags.null_count():
        raise ValueError(_describe_wrong(values.filter(flags.is_null()), file, column, "true or false"))
    return flags


def _parse_position(values: pl.Series, *, file: Path) -> pl.Series:
    positions = values.cast(pl.Int64, strict=False)
    if positions.null_count():
        wrong = values.filter(positions.is_null())
        raise ValueError(_describe_wrong(wrong, file, "session_position", "an integer"))
    return positions


def _describe_wrong(wrong: pl.Series, file: Path, column: str, wanted: str) -> str:
    value = wrong[0] if wrong[0] is None else wrong[0][:_MOST_QUOTED]
    return (
        f"`paths` must hold {wanted} in column {column!r} of every row, got {value!r} in {str(file)!r}. "
        "Mend or remove that row, or fetch the file again."
    )
