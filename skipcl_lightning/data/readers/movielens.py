"""Reader of the MovieLens ratings in all their formats."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from skipcl_lightning._checks import check_choice, check_number
from skipcl_lightning.data.readers.parsing import (
    Column,
    Paths,
    integer_column,
    list_files,
    number_column,
    parse_columns,
    read_first_line,
    scan_csv_text,
    scan_fields,
    scan_parquet,
)

__all__ = ["RATING_LABELS", "read_movielens"]

RATING_LABELS = ("graded", "binary", "watched")
_NAMES = [
    *(f"{name}{end}" for name in ("u.data", "ratings.dat", "ratings.csv") for end in ("", ".gz")),
    "ratings.parquet",
]
_COLUMNS = ("user_id", "item_id", "rating", "timestamp")
_HEADER = ("userId", "movieId", "rating", "timestamp")
_PAIR = re.compile(r"\d+ \d+$")
_LEAST, _MOST = 0.5, 5.0


def read_movielens(paths: Paths, *, label: str = "graded", like_from: float = 4.0) -> pl.LazyFrame:
    r"""Read MovieLens ratings: a session is a user, and a low rating counts as a skip.

    Ratings are opinions given later, not skips while watching. Many ratings of a user have equal times (half
    of those in 100K); the preparation keeps them in the order of the file.

    Args:
        paths: `u.data` (100K: user, item, rating and time, separated by tabs), `ratings.dat` (1M and 10M: the
            same with `::`), `ratings.csv` (20M and later: `userId,movieId,rating,timestamp`), each gzipped or
            not, or a Parquet file with `user_id`, `item_id`, `rating`, `timestamp`; or a folder that is
            searched for these names. Also a text file of `user item` lines in the order of time, as papers
            share `ml-1m.txt` and `beauty.txt`; its `feedback` is unknown (+1 if `watched`). The first line
            decides the format, not the name.
        label: `graded`: the rating minus 3, halved, and at least -1, so 2.5 and less is a skip: 1 gives -1, 2
            gives -0.5, 3 gives 0 and 5 gives +1. `binary`: +1 from `like_from` on, else -1. `watched`: +1 for
            all, for next-item learning only.
        like_from: The least rating that `binary` counts as liked, in [0.5, 5].

    Returns:
        A canonical table in the order of the files: `session_id`, `item_id` (both Int64), `feedback`,
        `timestamp` (Int64, seconds since 1970); from `user item` lines `position` (Int64), the order of the
        lines, in place of `timestamp`.

    Raises:
        TypeError: `like_from` is no number.
        ValueError: A path does not exist, a folder has no ratings, a file is empty, or is of none of the
            forms, `user item` lines and ratings are mixed, or a setting is wrong. When collected: an id or a
            time is no integer, or a rating no number in [0.5, 5]; the message names the file, the row, the
            column and the value.

    Reference:
        Harper, Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015, doi
        10.1145/2827872.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "u.data"
        ...     _ = file.write_text("196\t242\t3\t881250949\n186\t302\t1\t891717742\n")
        ...     read_movielens(file).collect().rows()
        [(196, 242, 0.0, 881250949), (186, 302, -1.0, 891717742)]
    """
    check_choice("label", label, RATING_LABELS)
    check_number("like_from", like_from, minimum=_LEAST, maximum=_MOST)
    files = list_files(paths, _NAMES)
    pairs = [file.suffix != ".parquet" and _PAIR.match(read_first_line(file)) is not None for file in files]
    if all(pairs):
        plays = pl.concat([_scan_pairs(file) for file in files]).with_row_index("order")
        feedback = pl.lit(1.0 if label == "watched" else 0.0)
        order = pl.col("order").cast(pl.Int64).alias("position")
    elif any(pairs):
        raise ValueError(
            "`paths` must hold ratings or lines of `user item`, got both. Read them one kind at a time."
        )
    else:
        plays = pl.concat([_scan(file) for file in files])
        feedback, order = _feedback(label, like_from), pl.col("timestamp")
    return plays.select(
        pl.col("user_id").alias("session_id"), "item_id", feedback.cast(pl.Float32).alias("feedback"), order
    )


def _scan_pairs(file: Path) -> pl.LazyFrame:
    """Return one file of `user item` lines."""
    names = _COLUMNS[:2]
    return parse_columns(scan_fields(file, names, " "), file, [integer_column(name) for name in names])


def _scan(file: Path) -> pl.LazyFrame:
    """Return one file with its columns as numbers."""
    if file.suffix == ".parquet":
        table = scan_parquet(file, ["user_id", "item_id", "timestamp"], ["rating"])
        return parse_columns(table, file, _columns(_COLUMNS))
    first = read_first_line(file)
    for separator in ("::", "\t"):
        if separator in first:
            return parse_columns(scan_fields(file, _COLUMNS, separator), file, _columns(_COLUMNS))
    return parse_columns(scan_csv_text(file, _HEADER), file, _columns(_HEADER))


def _columns(names: Sequence[str]) -> list[Column]:
    """Return the names of user, item, rating and time in a file."""
    user, item, rating, timestamp = names
    columns = [
        integer_column(user),
        integer_column(item),
        number_column(rating, minimum=_LEAST, maximum=_MOST),
        integer_column(timestamp),
    ]
    return [replace(column, output=name) for column, name in zip(columns, _COLUMNS, strict=True)]


def _feedback(label: str, like_from: float) -> pl.Expr:
    """Return a rating as feedback."""
    if label == "graded":
        return ((pl.col("rating") - 3) / 2).clip(-1, 1)
    if label == "binary":
        return pl.when(pl.col("rating") >= like_from).then(1.0).otherwise(-1.0)
    return pl.lit(1.0)
