"""Where a store may be put, and how it gets there whole."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import polars as pl

from skipcl_lightning.data.manifest import MANIFEST
from skipcl_lightning.data.prepared import SPLIT_NAMES

__all__ = ["STORE_FILES", "check_folder", "new_store", "publish"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
STORE_FILES = frozenset(
    {
        MANIFEST,
        *(f"{name}.npy" for name in ("items", "feedback", "explicit_feedback", "offsets", "item_counts")),
        *(f"{name}.arrow" for name in ("item_id", "session_id")),
        *(f"{name}_{part}.npy" for name in (*SPLIT_NAMES, "predict") for part in ("rows", "ends")),
    }
)


def check_folder(folder: str | Path) -> Path:
    """The folder without links and shorthands, unless writing a store would destroy something else."""
    if not isinstance(folder, str | Path):
        raise TypeError(f"`folder` must be a string or a `pathlib.Path`, got {type(folder).__name__}.")
    place = Path(folder).expanduser().resolve()
    if place == Path.cwd() or not place.name:
        raise ValueError(f"`folder` must not be the working folder, got {str(folder)!r}. Name one in it.")
    # The nearest of those above that exists must be a folder that may be written to.
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
    """Whether a folder holds nothing but the files of a store."""
    if not folder.is_dir():
        return False
    names = {file.name for file in folder.iterdir()}
    # A manifest alone may be anybody's.
    return names <= STORE_FILES and names != {MANIFEST}


@contextmanager
def new_store(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A place to work and a place for the store, beside the folder; both are gone afterwards."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
    try:
        work, store = beside / "work", beside / "store"
        work.mkdir()
        store.mkdir()
        yield work, store
    except (OSError, pl.exceptions.PolarsError) as error:
        # polars tells the number in words.
        told = any(f"(os error {number})" in str(error) for number in _FULL)
        if getattr(error, "errno", None) in _FULL or told:
            raise OSError(
                errno.ENOSPC,
                "`folder` must be on a disk with room for the store and as much again for sorting, got a "
                f"full one for {str(folder)!r}. Nothing was left behind. Free some room, or name another",
            ) from error
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def publish(new: Path, folder: Path) -> None:
    """Put a finished store in its place; whatever store was there, also of another process, makes room."""
    for number in count():
        old = new.with_name(f"old-{number}")
        with suppress(FileNotFoundError):
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError as error:
            # Another process was quicker.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                continue
            _put_back(old, folder)
            raise
        except BaseException:
            _put_back(old, folder)
            raise
        return


def _put_back(old: Path, folder: Path) -> None:
    # Whoever has taken the place meanwhile keeps it.
    with suppress(OSError):
        old.rename(folder)
