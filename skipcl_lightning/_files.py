"""Files that are whole or absent, and checkpoints that are checked before they are used.

torch writes a checkpoint as a zip archive with a CRC-32 of each record, but does not compare them when it
loads. We do, so a flipped bit is an error.
"""

import errno
import hashlib
import json
import os
import pickle
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import Tensor, nn

__all__ = [
    "check_num_items",
    "check_weights",
    "check_weights_only",
    "digest_file",
    "digest_json",
    "is_full_disk",
    "make_beside",
    "named_in_errors",
    "newest_first",
    "newest_whole",
    "open_checkpoint",
    "path_in_errors",
    "save_checkpoint",
    "sync",
    "write_whole",
]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_BLOCK = 1 << 20


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that it appears complete or not at all, also if the process is killed.

    The bytes go to the file system of `path`, not to a folder of temporary files; they are on the disk before
    the file gets its name. On Linux the new file has no name until then, so a kill leaves nothing behind.

    Args:
        path: The file; an existing one is replaced.
        write: Function that writes to a given path, without an ending.

    Raises:
        OSError: The file cannot be written; the message names `path`.
    """
    # Not from `tempfile`, whose files only their owner may read.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with path_in_errors(path):
        try:
            _write_beside(temporary, write)
            temporary.replace(path)
            sync(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def make_beside(folder: Path) -> Iterator[Path]:
    """Yield an empty working folder beside `folder`, on the same file system, and remove it at the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_json(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain values, in hexadecimal digits; the order of the keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write_beside(temporary: Path, write: Callable[[Path], Any]) -> None:
    descriptor, place = _create(temporary)
    try:
        with _room_checked(descriptor):
            write(place)
        os.fsync(descriptor)
        if place != temporary:
            temporary.unlink(missing_ok=True)
            folder = os.open(temporary.parent, os.O_RDONLY)
            try:
                # `dir_fd` makes Python call `linkat`, which follows the link in /proc.
                os.link(place, temporary.name, dst_dir_fd=folder, follow_symlinks=True)
            finally:
                os.close(folder)
    finally:
        os.close(descriptor)


@contextmanager
def _room_checked(descriptor: int) -> Iterator[None]:
    """Raise the error of a full disk after one that does not say so, as those of polars about a footer."""
    try:
        yield
    except Exception:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, _BLOCK)
        raise


@contextmanager
def path_in_errors(path: Path) -> Iterator[None]:
    """Let the error of a disk, from any library, name what is being written, and say if the disk is full.

    Args:
        path: The file or folder, of which nothing is left after an error.

    Raises:
        OSError: The disk had an error.
    """
    try:
        yield
    except Exception as error:
        if is_full_disk(error):
            raise OSError(
                errno.ENOSPC,
                "`path` must be on a disk with room for the file, got a full one. No part of it was left. "
                "Free some room, or name another place",
                str(path),
            ) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _create(temporary: Path) -> tuple[int, Path]:
    """Return an open new file and the path for writing to it: one without a name, where the system has it."""
    unnamed = getattr(os, "O_TMPFILE", None)
    if unnamed is not None:
        # Some network file systems cannot.
        with suppress(OSError):
            descriptor = os.open(temporary.parent, unnamed | os.O_WRONLY, 0o666)
            place = Path(f"/proc/self/fd/{descriptor}")
            if place.exists():
                return descriptor, place
            os.close(descriptor)
    return os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666), temporary


def sync(place: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; Windows has no such call for folders."""
    with suppress(OSError):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_full_disk(error: BaseException) -> bool:
    """Return whether an error, or what it was raised from, is that of a full disk."""
    if getattr(error, "errno", None) in _FULL:
        return True
    # polars and torch have the number only in the text, or in the error before.
    if any(f"(os error {number})" in str(error) for number in _FULL):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and is_full_disk(before)


def save_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint so that it appears complete or not at all.

    Args:
        checkpoint: Tensors and plain values.
        path: The file; an existing one is replaced.

    Raises:
        OSError: The file cannot be written.
    """

    def write(place: Path) -> None:
        # Not by the path, for which torch hides the error of a full disk.
        with place.open("wb") as stream:
            torch.save(checkpoint, stream)

    write_whole(path, write)


def open_checkpoint(
    path: str | Path,
    *,
    records: Literal["all", "settings"] = "all",
    map_location: Any = "cpu",
    mmap: bool = True,
) -> dict[str, Any]:
    """Return the values of a checkpoint, after a comparison of its checksums; no code of the file runs.

    Args:
        path: A file on this machine.
        records: The records whose checksums are compared: `all`, or `settings` for those without tensors,
            which takes no time.
        map_location: Where tensors go, as for `torch.load`.
        mmap: Whether tensors stay on the disk until they are used.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: `path` is a URL, or the file is no checkpoint, is damaged, or holds objects other than
            tensors and plain values.
    """
    if "://" in str(path):
        raise ValueError(
            f"`path` must be a file on this machine, got {str(path)!r}. Download it first, and give the file."
        )
    if Path(path).is_dir():
        raise _refuse(path, "which is a folder. Give a file in it")
    if not Path(path).exists():
        raise FileNotFoundError(
            f"`path` must be a checkpoint that exists, got {str(path)!r}. `skipcl fit` prints its best one."
        )
    _check_records(path, with_tensors=records == "all")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        # Without torch's own message, which advises to run the code.
        raise _refuse(
            path,
            "with objects other than tensors and plain values; loading them could run code. If one is of a "
            "class of your own, allow that class with `torch.serialization.add_safe_globals`",
        ) from error
    except Exception as error:
        raise _refuse(path, f"which torch cannot read ({type(error).__name__}). {_CURE}") from error
    if not isinstance(checkpoint, dict):
        raise _refuse(path, f"with a {type(checkpoint).__name__}. {_CURE}")
    return checkpoint


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Return files in the order of their last change, the newest first."""
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def newest_whole(paths: Iterable[Path], *, quietly: bool = False) -> Path | None:
    """Return the first whole checkpoint of several, and warn of damaged ones before it; None without one.

    Args:
        paths: Files, the preferred one first.
        quietly: Whether no warning is wanted.
    """
    skipped = []
    for path in paths:
        try:
            open_checkpoint(path)
        except (OSError, ValueError) as error:
            skipped.append(str(error))
            continue
        if skipped and not quietly:
            warnings.warn(f"Took {str(path)!r} for the last checkpoint: {' '.join(skipped)}", stacklevel=2)
        return path
    return None


def check_weights_only(value: bool | None) -> None:
    """Raise for Lightning's `weights_only=False`, by which the code of a checkpoint would run."""
    if value is False:
        raise ValueError(
            "`weights_only` must be True or None, got False. If a checkpoint holds a class of your own, "
            "allow that class with `torch.serialization.add_safe_globals`."
        )


@contextmanager
def named_in_errors(path: str | Path | None, what: str = "`path` must be a checkpoint") -> Iterator[None]:
    """Turn each error of a checkpoint that does not fit into a `ValueError` that names the file.

    Args:
        path: The checkpoint; None if an outer context names it.
        what: The start of the message.

    Raises:
        ValueError: There was an error other than an `OSError`.
    """
    try:
        yield
    except Exception as error:
        if path is None or isinstance(error, OSError) or repr(str(path)) in str(error):
            raise
        why = str(error)
        if not isinstance(error, ValueError):
            cure = "Load it with the class and settings that were trained."
            if "got multiple values for" in why:
                cure = (
                    "A subclass that sets an argument of its base itself must name the others in its "
                    "`__init__`, in place of `**settings`."
                )
            why = f"{type(error).__name__}: {why}. {cure}"
        raise ValueError(f"{what} that fits the model, got {str(path)!r}, which does not. {why}") from error


def check_num_items(checkpoint: Mapping[str, Any]) -> None:
    """Raise unless the item table of a checkpoint is as large as its settings say, before one is built.

    Args:
        checkpoint: The checkpoint of a `SkipCLModule`.

    Raises:
        ValueError: The number of items is another, or the table is a small one that is repeated.
    """
    table = checkpoint["state_dict"]["model.item_embedding.weight"]
    num_items = checkpoint.get("hyper_parameters", {}).get("num_items")
    rows = table.shape[0] if table.untyped_storage().nbytes() >= table.nbytes else 0
    if num_items is not None and num_items + 1 != rows:
        raise ValueError(
            f"`num_items` must be that of the item table, {rows - 1}, got {num_items}. The file "
            "was changed: take another checkpoint of the run."
        )


def check_weights(state: Mapping[str, Any], own: nn.Module, *, strict: bool = True) -> None:
    """Raise unless a state dict has the weights of a module, with their shapes and finite.

    Args:
        state: The state dict of a checkpoint.
        own: The module that is about to load it.
        strict: Whether each weight must be in both.

    Raises:
        ValueError: A weight is missing, unknown, of another shape, or not finite.
    """
    known, weights = own.state_dict(), dict(own.named_parameters())
    cure = "Load it with the class and settings that were trained."
    if strict and known.keys() != state.keys():
        odd = {"missing": known.keys() - state.keys(), "unknown": state.keys() - known.keys()}
        counts = [f"{len(names)} {kind} such as {min(names)!r}" for kind, names in odd.items() if names]
        raise ValueError(f"`state` must be the weights of the model, got {' and '.join(counts)}. {cure}")
    for name in known.keys() & state.keys():
        value, shape = state[name], list(known[name].shape)
        if not isinstance(value, Tensor) or list(value.shape) != shape:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"`{name}` must be of shape {shape}, got {found}. {cure}")
        # In one pass: both ends of values with a NaN are NaN.
        numbers = name in weights and value.is_floating_point() and value.numel() > 0
        if numbers and not all(end.isfinite() for end in value.aminmax()):
            raise ValueError(
                f"`{name}` must be finite, got NaN or infinity. The training diverged: take an earlier "
                "checkpoint, and lower the learning rate or clip gradients."
            )


# The attribute by which an archive's directory marks a folder.
_FOLDER = 0x10
_CURE = "Copy it again, or take another checkpoint of the run; `skipcl fit` writes them"


def _refuse(path: str | Path, what: str) -> ValueError:
    return ValueError(f"`path` must be a checkpoint of Lightning, got {str(path)!r}, {what}.")


def _check_records(path: str | Path, *, with_tensors: bool) -> None:
    """Raise unless a file is an archive as torch writes it and its records have their checksums."""
    with Path(path).open("rb") as stream:
        start = stream.read(2)
        if start != b"PK":
            what = "is no archive that torch writes" if start else "is empty"
            raise _refuse(path, f"which {what}. {_CURE}")
        try:
            _read_records(stream, with_tensors=with_tensors)
        except Exception as error:
            raise _refuse(path, f"which is cut or damaged: {error}. {_CURE}") from error


def _read_records(stream: IO[bytes], *, with_tensors: bool) -> None:
    size = stream.seek(0, os.SEEK_END)
    with zipfile.ZipFile(stream) as archive:
        records = archive.infolist()
        # A compressed or overlapping record may fill the memory.
        packed = any(one.compress_type != zipfile.ZIP_STORED for one in records)
        if packed or sum(one.file_size for one in records) > size:
            raise ValueError("it has compressed records, which torch never writes")
        if any(one.external_attr & _FOLDER for one in records):
            raise ValueError("it has folders, whose contents torch does not read")
        for one in records:
            if with_tensors or Path(one.filename).parent.name != "data":
                with archive.open(one) as record:
                    # Its end raises an error for another checksum.
                    while record.read(_BLOCK):
                        pass
