"""Whether a log is the one that a store was made from."""

import hashlib
import re
from pathlib import Path

import polars as pl

__all__ = ["fingerprint_log"]

_SCAN = re.compile(r"\bSCAN \[(.*)\]\s*$")


def fingerprint_log(log: pl.LazyFrame | pl.DataFrame) -> str | None:
    """A digest of what a log is read from, without reading its files.

    Of a lazy table over files it covers the query and each file's path, size and time of change; of one in
    memory its rows. What a Python function inside the query does is not seen.

    Args:
        log: The table.

    Returns:
        The digest; None where it cannot be told, as with several files in one scan, or files and tables in
        memory in one query.

    Example:
        >>> one, other = pl.DataFrame({"item_id": [7]}), pl.DataFrame({"item_id": [8]})
        >>> told = fingerprint_log(one)
        >>> told == fingerprint_log(one.lazy()), told == fingerprint_log(other)
        (True, False)
    """
    plan = log.lazy().explain(optimized=False)
    lines = [line.strip() for line in plan.splitlines()]
    scans = [line for line in lines if " SCAN" in line]
    if not scans:
        return _digest_rows(log.lazy().collect())
    found = [_SCAN.search(line) for line in scans]
    files = [Path(match[1]) for match in found if match is not None]
    if len(files) < len(scans) or not all(file.is_file() for file in files):
        return None
    if any(line.startswith("DF [") for line in lines):
        return None
    stats = [file.stat() for file in files]
    facts = [plan, *(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _digest_rows(table: pl.DataFrame) -> str:
    digest = hashlib.sha256(repr(table.schema).encode())
    # In the order of the rows, which decides where times are equal.
    digest.update(table.hash_rows(seed=0).to_numpy().tobytes())
    return digest.hexdigest()
