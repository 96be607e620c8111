"""The manifest of a session store on disk: what it was made from, what is in it, and whether it is whole."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MANIFEST", "Manifest", "describe_files", "read_version"]

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What a store says of itself.

    Args:
        settings: How it was made; stores with the same settings and source are the same.
        source: What it was made from, as a digest; None where that cannot be told.
        versions: Of the libraries that made it.
        counts: What was read, dropped, kept and held out.
        files: By name, `bytes` and `sha256`.

    Examples:
        >>> import tempfile
        >>> manifest = Manifest({"top": 1}, "abc", {}, {}, {})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     manifest.write(Path(folder))
        ...     Manifest.read(Path(folder)) == manifest
        True
    """

    settings: Mapping[str, Any]
    source: str | None
    versions: Mapping[str, str]
    counts: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]

    def write(self, folder: Path) -> None:
        """Write it into the folder of the store.

        Args:
            folder: The folder.
        """
        content = {"format": FORMAT, **vars(self)}
        text = json.dumps(content | {"sha256": _digest(content)}, indent=2)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read and check the manifest itself, not yet the other files.

        Args:
            folder: The folder of a store.

        Returns:
            The manifest.

        Raises:
            ValueError: There is no such folder or no manifest in it, it is damaged, or of another format.
        """
        try:
            content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            told, version = content.pop("sha256"), content["format"]
        except (FileNotFoundError, NotADirectoryError) as error:
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
        if told != _digest(content):
            raise ValueError(_describe_damage(folder, MANIFEST, "has another checksum than it says"))
        del content["format"]
        return cls(**content)

    def check_files(self, folder: Path, *, contents: bool) -> None:
        """Look whether all files of the store are there and whole.

        Args:
            folder: The folder.
            contents: Whether to read them to compare their checksums, and not only their sizes.

        Raises:
            ValueError: A file is missing, of another size, or of another content; the message names it.
        """
        for name, told in self.files.items():
            file = folder / name
            if not file.is_file():
                raise ValueError(_describe_damage(folder, name, "is missing"))
            size = file.stat().st_size
            if size != told["bytes"]:
                raise ValueError(
                    _describe_damage(folder, name, f"has {size:,} bytes in place of {told['bytes']:,}")
                )
            if contents and _digest_file(file) != told["sha256"]:
                raise ValueError(
                    _describe_damage(folder, name, "has another checksum than the manifest says")
                )


def read_version(folder: Path) -> str:
    """What tells a store from another: the checksum of its manifest, and so of all that is in it.

    Args:
        folder: The folder of a store.

    Returns:
        A digest; of nothing where there is no manifest.
    """
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return ""


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The size and checksum of each file in a folder.

    Args:
        folder: The folder.

    Returns:
        By name, `bytes` and `sha256`.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.npy").write_bytes(b"abc")
        ...     describe_files(Path(folder))["a.npy"]["bytes"]
        3
    """
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": _digest_file(file)}
        for file in sorted(_files(folder))
    }


def _files(folder: Path) -> Iterable[Path]:
    return (file for file in folder.iterdir() if file.is_file() and file.name != MANIFEST)


def _digest_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _describe_damage(folder: Path, name: str, what: str) -> str:
    return (
        f"`folder` must be a whole session store, got {str(folder)!r}, of which {name!r} {what}: it is "
        "damaged or was copied in part. Copy it again, or prepare it again with `rebuild=True`."
    )
