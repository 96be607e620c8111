"""Whether a log is the one that a store was made from, and a vocabulary the one that a model knows."""

import hashlib
import re
from pathlib import Path

import polars as pl

from skipcl_lightning.data.vocabulary import ItemVocabulary

__all__ = ["fingerprint_log", "fingerprint_vocabulary"]

_SCAN = re.compile(r"\bSCAN \[(.*)\]\s*$")


def fingerprint_log(log: pl.LazyFrame | pl.DataFrame) -> str | None:
    """A digest of what a log is read from, without reading its files.

    Of a lazy table over files it covers the query, tables and Python functions in it, and each file's path,
    size and time of change; of one in memory its rows.

    Args:
        log: The table.

    Returns:
        The digest; None where it cannot be told, as with several files in one scan or a function that cannot
        be pickled.

    Examples:
        >>> one, other = pl.DataFrame({"item_id": [7]}), pl.DataFrame({"item_id": [8]})
        >>> told = fingerprint_log(one)
        >>> told == fingerprint_log(one.lazy()), told == fingerprint_log(other)
        (True, False)
    """
    plan = log.lazy().explain(optimized=False)
    scans = [line for line in plan.splitlines() if " SCAN" in line]
    if not scans:
        return _digest_rows(log.lazy().collect())
    found = [_SCAN.search(line) for line in scans]
    files = [Path(match[1]) for match in found if match is not None]
    if len(files) < len(scans) or not all(file.is_file() for file in files):
        return None
    try:
        # Not the plan's text, which leaves out how files are read and cuts long lists short.
        digest = hashlib.sha256(log.lazy().serialize())
    except (pl.exceptions.PolarsError, TypeError):
        return None
    for stat in (file.stat() for file in files):
        digest.update(f"\n{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def fingerprint_vocabulary(vocabulary: ItemVocabulary) -> str:
    """A digest of the items and of their order: equal for two vocabularies that number items alike.

    Args:
        vocabulary: The items.

    Returns:
        64 hexadecimal digits.

    Examples:
        >>> one, other = ItemVocabulary(["song", "tune"]), ItemVocabulary(["tune", "song"])
        >>> fingerprint_vocabulary(one) == fingerprint_vocabulary(other)
        False
    """
    digest = hashlib.sha256(repr(vocabulary.dtype).encode())
    for item in vocabulary.to_series():
        # Its length first, so that no two lists of ids read alike.
        digest.update(f"\n{len(str(item))} {item}".encode())
    return digest.hexdigest()


def _digest_rows(table: pl.DataFrame) -> str:
    digest = hashlib.sha256(repr(table.schema).encode())
    # In the order of the rows, which decides where times are equal.
    digest.update(table.hash_rows(seed=0).to_numpy().tobytes())
    return digest.hexdigest()
