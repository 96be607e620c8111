"""The folder of a session store: its manifest, its place on the disk, and its mapped files."""

import ctypes
import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning._files import digest_file, digest_json, is_full_disk, make_beside
from skipcl_lightning.data.canonical_table import name_unreadable

__all__ = [
    "MANIFEST",
    "SPLIT_NAMES",
    "Manifest",
    "check_folder",
    "describe_files",
    "fingerprint_log",
    "map_array",
    "new_store",
    "publish",
    "read_column",
    "read_version",
    "refuse_damage",
]

_SCAN = re.compile(r"\bSCAN \[(.*)\]\s*$")

MANIFEST = "manifest.json"
SPLIT_NAMES = ("train", "validation", "test")
FORMAT = 1
# The size of the header that numpy writes.
_HEADER_BYTES = 128


@dataclass(frozen=True)
class Manifest:
    """The description of a store.

    `settings` and `source`, the digest of the log (None if unknown), say which store it is; `versions` are
    those of the libraries, `counts` of what was read, dropped, kept and held out, and `files` has `bytes` and
    `sha256` by name.
    """

    settings: Mapping[str, Any]
    source: str | None
    versions: Mapping[str, str]
    counts: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]

    def write(self, folder: Path) -> None:
        """Write the manifest into the folder of the store."""
        content = {"format": FORMAT, **vars(self)}
        text = json.dumps(content | {"sha256": digest_json(content)}, indent=2)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read and check the manifest, not the other files."""
        try:
            content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            told, version = content.pop("sha256"), content["format"]
        except (FileNotFoundError, NotADirectoryError) as error:
            if _take_back(folder):
                return cls.read(folder)
            raise ValueError(
                f"`folder` must be a session store, got {str(folder)!r} without a {MANIFEST}: it does not "
                "exist, is something else, or was copied in part. `skipcl prepare` makes one."
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(_describe_damage(folder, MANIFEST, "is no manifest")) from error
        if version != FORMAT:
            raise ValueError(
                f"`folder` must be a store of format {FORMAT}, got {str(folder)!r} of format {version}. "
                "Prepare it again, with `rebuild=True`, or with the version that made it."
            )
        if told != digest_json(content):
            raise ValueError(_describe_damage(folder, MANIFEST, "has another checksum than it says"))
        del content["format"]
        with refuse_damage(folder):
            manifest = cls(**content)
            _ = manifest.settings.keys(), manifest.versions.keys(), manifest.counts.keys()
            bare = all(Path(name).name == name for name in manifest.files)
            types = {(type(told["bytes"]), type(told["sha256"])) for told in manifest.files.values()}
            if not (bare and types <= {(int, str)} and _names(folder) <= manifest.files.keys()):
                raise ValueError("the manifest does not describe the files of the folder")
        return manifest

    def check_files(self, folder: Path, *, contents: bool) -> None:
        """Raise unless all files are there with their sizes and, with `contents`, their checksums."""
        for name, told in self.files.items():
            file = folder / name
            if not file.is_file():
                raise ValueError(_describe_damage(folder, name, "is missing"))
            size = file.stat().st_size
            if size != told["bytes"]:
                raise ValueError(
                    _describe_damage(folder, name, f"has {size:,} bytes in place of {told['bytes']:,}")
                )
            if contents and digest_file(file) != told["sha256"]:
                raise ValueError(
                    _describe_damage(folder, name, "has another checksum than the manifest says")
                )


@contextmanager
def refuse_damage(folder: Path) -> Iterator[None]:
    """Turn each error in reading a store into a `ValueError` that names the folder."""
    try:
        yield
    except Exception as error:
        if repr(str(folder)) in str(error):
            raise
        raise ValueError(
            f"`folder` must be a whole session store, got {str(folder)!r}, whose files do not fit together: "
            f"{error}. Copy it again, or prepare it again with `rebuild=True`."
        ) from error


def _names(folder: Path) -> set[str]:
    """Return the names of the files of a store, without the manifest."""
    return {file.name for file in folder.iterdir()} & STORE_FILES - {MANIFEST}


def read_version(folder: Path) -> str:
    """Return the checksum of a store's manifest, and so of its contents; empty without a manifest."""
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return ""


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the `bytes` and `sha256` of each file in a folder, by name."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != MANIFEST)
    return {file.name: {"bytes": file.stat().st_size, "sha256": digest_file(file)} for file in files}


def _describe_damage(folder: Path, name: str, what: str) -> str:
    return (
        f"`folder` must be a whole session store, got {str(folder)!r}, of which {name!r} {what}: it is "
        "damaged or was copied in part. Copy it again, or prepare it again with `rebuild=True`."
    )


STORE_FILES = frozenset(
    {
        MANIFEST,
        *(f"{name}.npy" for name in ("items", "feedback", "explicit_feedback", "offsets", "item_counts")),
        *(f"{name}.npy" for name in ("context", "listener", "began", "ended", "shown")),
        *(f"{name}.arrow" for name in ("item_id", "session_id")),
        *(f"{name}_{part}.npy" for name in (*SPLIT_NAMES, "predict") for part in ("rows", "ends")),
    }
)


def check_folder(folder: str | Path) -> Path:
    """Return the resolved folder, unless writing a store would destroy something else."""
    if not isinstance(folder, str | Path):
        raise TypeError(f"`folder` must be a string or a `pathlib.Path`, got {type(folder).__name__}.")
    place = Path(folder).expanduser().resolve()
    if place == Path.cwd() or not place.name:
        raise ValueError(f"`folder` must not be the working folder, got {str(folder)!r}. Name one in it.")
    # The nearest existing parent must be a writable folder.
    above = next(parent for parent in place.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(
            f"`folder` must be where a folder can be made, got {str(folder)!r} below {str(above)!r}, which "
            "is none, or may not be written to. Name another place."
        )
    if place.exists() and not _may_be_replaced(place):
        raise ValueError(
            f"`folder` must be a session store, empty or new, got {str(folder)!r} with something else in it. "
            "Name another folder."
        )
    return place


def _may_be_replaced(folder: Path) -> bool:
    """Return whether a folder holds only the files of a store."""
    if not folder.is_dir():
        return False
    names = {file.name for file in folder.iterdir()}
    # A manifest alone may belong to another program.
    return names <= STORE_FILES and names != {MANIFEST}


@contextmanager
def new_store(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a working folder and a folder for the store, beside `folder`; both are removed afterwards."""
    try:
        with make_beside(folder) as beside:
            work, store = beside / "work", beside / "store"
            work.mkdir()
            store.mkdir()
            yield work, store
    except (OSError, pl.exceptions.PolarsError) as error:
        if is_full_disk(error):
            raise OSError(
                errno.ENOSPC,
                "`folder` must be on a disk with room for the store and as much again for sorting, got a "
                f"full one for {str(folder)!r}. Nothing was left behind. Free some room, or name another",
            ) from error
        raise


def publish(new: Path, folder: Path) -> None:
    """Rename a finished store to its place, also if another process has put one there.

    Linux exchanges two folders in one step, so the place is never empty; `new` is the old store afterwards.
    Elsewhere, and on some network file systems, the old store is moved away first. Whoever opens the store
    before the new one is in place, or after a kill in between, takes the old one back.
    """
    for number in count():
        if _exchange(new, folder):
            return
        old = new.with_name(f"old-{number}")
        with suppress(FileNotFoundError):
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException as error:
            # Another process was quicker.
            if getattr(error, "errno", None) in (errno.ENOTEMPTY, errno.EEXIST):
                continue
            # Another process may have taken the place.
            with suppress(OSError):
                old.rename(folder)
            raise
        return


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; return whether both exist and the system and its disk can do it."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    exchange, here = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of linux/fs.h and fcntl.h
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _take_back(folder: Path) -> bool:
    """Return whether there is a store again, which `publish` had moved away and not yet replaced."""
    for old in folder.parent.glob(f"{escape(f'.{folder.name}-')}*.partial/old-*"):
        if (old / MANIFEST).is_file():
            # Another process may be quicker.
            with suppress(OSError):
                old.rename(folder)
    return (folder / MANIFEST).is_file()


def fingerprint_log(log: pl.LazyFrame | pl.DataFrame) -> str | None:
    """Return a digest of the source of a log, without reading its files; None if unknown.

    For a lazy table over files it covers the query, its tables and Python functions, and each file's path,
    size and time of change; for a table in memory, its rows. It is unknown for several files in one scan or a
    function that cannot be pickled.
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
        # Not the plan's text, which omits how files are read and shortens long lists.
        digest = hashlib.sha256(log.lazy().serialize())
    except (pl.exceptions.PolarsError, TypeError):
        return None
    for stat in (file.stat() for file in files):
        digest.update(f"\n{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def _digest_rows(table: pl.DataFrame) -> str:
    digest = hashlib.sha256(repr(table.schema).encode())
    # In the order of the rows, which matters for equal times.
    digest.update(table.hash_rows(seed=0).to_numpy().tobytes())
    return digest.hexdigest()


def map_array(file: Path) -> NDArray[Any]:
    """Return a read-only array whose values are read from a `.npy` file when they are used."""
    has_values = file.stat().st_size > _HEADER_BYTES  # Others cannot be mapped.
    # As a plain array, because indexing `np.memmap` is slow.
    return np.asarray(np.load(file, mmap_mode="r" if has_values else None))


def read_column(file: Path) -> pl.Series:
    """Return the single column of an Arrow file, in memory."""
    # As a stream, because polars takes a path with brackets for a pattern.
    with name_unreadable("folder"), file.open("rb") as stream:
        return pl.read_ipc(stream).to_series()
