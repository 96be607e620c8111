"""Sessions in flat arrays, from which whole batches are gathered, and views of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from skipcl_lightning._checks import check_integer
from skipcl_lightning.data.store.folder import map_array, read_column, read_version, refuse_damage

__all__ = ["SessionStore", "SessionView"]

_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class SessionStore:
    """Sessions in flat arrays: session `s` is `items[offsets[s]:offsets[s + 1]]`.

    The arrays are only read, so they may be memory-mapped, and worker processes share them.

    Args:
        items: [items] int32 item indices in 1..V.
        feedback: [items] float32 in [-1, 1].
        offsets: [sessions + 1] int64, rising from 0 to the number of items; no session is empty.
        session_ids: The external id of each session, or the file with them, which is read at the first use.
        explicit_feedback: [items] float32 in [-1, 1], below 0 disliked, above 0 liked; None if there is none.
        context: [items, C] int16, the codes of the context of each play (`ContextEncoder`); None if there is
            none.
        folder: The folder of mapped arrays; None for arrays in memory.
        version: The version of a mapped store (`read_version`), which detects a replaced one.

    Raises:
        TypeError: An array has another dtype.
        ValueError: The lengths disagree or a session is empty.

    Examples:
        >>> store = SessionStore(
        ...     items=np.array([5, 3, 4, 2], dtype=np.int32),
        ...     feedback=np.array([1, -1, 1, 1], dtype=np.float32),
        ...     offsets=np.array([0, 3, 4]),
        ...     session_ids=pl.Series(["a", "b"]),
        ... )
        >>> store.gather(np.array([0, 1]), np.array([3, 1]), max_length=2)["items"]
        tensor([[3, 4],
                [2, 0]])
    """

    items: NDArray[np.int32]
    feedback: NDArray[np.float32]
    offsets: NDArray[np.int64]
    session_ids: pl.Series | Path
    explicit_feedback: NDArray[np.float32] | None = None
    context: NDArray[np.int16] | None = None
    folder: Path | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        for name, dtype in (("items", np.int32), ("feedback", np.float32), ("offsets", np.int64)):
            found = getattr(self, name).dtype
            if found != dtype:
                raise TypeError(f"`{name}` must be {dtype.__name__}, got {found}. Cast it with `astype`.")
        explicit = self.explicit_feedback
        if explicit is not None and (explicit.dtype != np.float32 or len(explicit) != len(self.items)):
            raise ValueError(
                f"`explicit_feedback` must be float32 and as long as `items`, got {explicit.dtype} and "
                f"{len(explicit)} for {len(self.items)}. Take both from one table."
            )
        tracks = len(self.items)
        context = self.context
        if context is not None and (context.dtype != np.int16 or context.shape[:1] != (tracks,)):
            raise ValueError(
                f"`context` must be int16 and as long as `items`, got {context.dtype} of shape "
                f"{context.shape} for {tracks}. Take both from one table."
            )
        num_ids = len(self) if isinstance(self.session_ids, Path) else len(self.session_ids)
        if len(self.feedback) != tracks or num_ids != len(self):
            raise ValueError(
                "`feedback` must be as long as `items`, and `session_ids` one shorter than `offsets`, got "
                f"{len(self.feedback)} and {tracks}, {num_ids} and {len(self.offsets)}. "
                "Take them from one table."
            )
        if len(self.offsets) < 2 or self.offsets[[0, -1]].tolist() != [0, tracks] or not _rises(self.offsets):
            raise ValueError(
                f"`offsets` must rise from 0 to {tracks}, got {self.offsets}. Leave empty sessions out."
            )

    @classmethod
    def open(cls, folder: Path, version: str | None = None) -> "SessionStore":
        """Map a store from its files, of any version if `version` is None.

        A copy in another process opens the files again.

        Raises:
            OSError: A file is missing.
            ValueError: Another store is in its place.
        """
        _check_version(folder, version)
        explicit, context = folder / "explicit_feedback.npy", folder / "context.npy"
        items = map_array(folder / "items.npy")
        return cls(
            items=items,
            feedback=map_array(folder / "feedback.npy"),
            offsets=map_array(folder / "offsets.npy"),
            session_ids=folder / "session_id.arrow",
            explicit_feedback=map_array(explicit) if explicit.exists() else None,
            context=map_array(context).reshape(len(items), -1) if context.exists() else None,
            folder=folder,
            version=version,
        )

    def __reduce__(self) -> Any:
        # Another process maps the same files instead of receiving their contents.
        return super().__reduce__() if self.folder is None else (type(self).open, (self.folder, self.version))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def ids(self) -> pl.Series:
        """[sessions] the external id of each session, kept in memory from now on."""
        if not isinstance(self.session_ids, Path):
            return self.session_ids
        with refuse_damage(self.session_ids.parent):
            found = read_column(self.session_ids)
            _check_version(self.session_ids.parent, self.version)
            if len(found) != len(self):
                raise ValueError(f"there are {len(found)} names of {len(self)} sessions")
        return found

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[sessions] int64: the number of items of each session."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the lengths, [B] int64, of the sessions `rows` [B], without reading all lengths.

        Examples:
            >>> store = SessionStore(
            ...     items=np.array([5, 3, 4], dtype=np.int32), feedback=np.ones(3, dtype=np.float32),
            ...     offsets=np.array([0, 3]), session_ids=pl.Series(["a"]),
            ... )
            >>> store.lengths_of(np.array([0, 0]))
            array([3, 3])
        """
        return self.offsets[rows + 1] - self.offsets[rows]

    def gather(self, rows: NDArray[np.int64], ends: NDArray[np.int64], *, max_length: int) -> dict[str, Any]:
        """Return the items of some sessions before given ends, padded on the right to the longest.

        Args:
            rows: [B] session numbers, possibly repeated.
            ends: [B] the number of visible items of each session, from 1 to all.
            max_length: The largest number of items to keep; the latest are kept.

        Returns:
            By the names of `SessionBatch`: `items` [B, L] int64, `feedback` [B, L] float32, and if the store
            has them `explicit_feedback` [B, L] float32 and `context` [B, L, C] int64; all 0 at padding.

        Raises:
            TypeError: `max_length` is no integer.
            ValueError: A row or an end does not exist, or `max_length` is below 1.

        Examples:
            >>> store = SessionStore(
            ...     items=np.array([5, 3, 4], dtype=np.int32), feedback=np.ones(3, dtype=np.float32),
            ...     offsets=np.array([0, 3]), session_ids=pl.Series(["a"]),
            ... )
            >>> store.gather(np.array([0, 0]), np.array([3, 1]), max_length=50)["items"]
            tensor([[5, 3, 4],
                    [5, 0, 0]])
        """
        places, valid = self._places(rows, ends, max_length)
        found = {"items": _take(self.items, places, valid).astype(np.int64)}
        found["feedback"] = _take(self.feedback, places, valid)
        if self.explicit_feedback is not None:
            found["explicit_feedback"] = _take(self.explicit_feedback, places, valid)
        if self.context is not None:
            taken = self.context.take(places, axis=0, mode="clip").astype(np.int64)
            found["context"] = taken * valid[..., None]
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def _places(
        self, rows: NDArray[np.int64], ends: NDArray[np.int64], max_length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """[B, L] positions in the flat arrays, and which of them belong to the session."""
        check_integer("max_length", max_length)
        rows, ends = np.asarray(rows, dtype=np.int64), np.asarray(ends, dtype=np.int64)
        if rows.shape != ends.shape or rows.ndim != 1:
            raise ValueError(
                f"`rows` and `ends` must have the same length, got shapes {rows.shape} and {ends.shape}. "
                "Give one end a row."
            )
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise ValueError(f"`rows` must be in 0..{len(self) - 1}, got {rows}. Count sessions from 0.")
        starts = self.offsets.take(rows)
        # Without this check, an end past the session would read another session.
        if not np.all((ends >= 1) & (ends <= self.offsets.take(rows + 1) - starts)):
            raise ValueError(f"`ends` must be from 1 to each session's length, got {ends}. Check the split.")
        lengths = np.minimum(ends, max_length)
        columns = np.arange(lengths.max(initial=0))
        return (starts + ends - lengths)[:, None] + columns, columns < lengths[:, None]


def _check_version(folder: Path, version: str | None) -> None:
    """Raise unless a folder still holds the store of a version; of any, if it is None."""
    if version is not None and (found := read_version(folder)) != version:
        there = f"with version {found} in place of {version}" if found else "without one"
        raise ValueError(
            f"`folder` must hold the store that was opened, got {str(folder)!r} {there}. "
            "Do not replace a store that a run uses: start the run again."
        )


def _take(values: NDArray[Any], places: NDArray[np.int64], valid: NDArray[np.bool_]) -> NDArray[Any]:
    """[B, L] the values at the positions, 0 where they are not valid."""
    # Positions beyond a session hold other sessions' values, which are overwritten.
    taken = values.take(places, mode="clip")
    np.copyto(taken, 0, where=~valid)
    return taken


def _rises(values: NDArray[np.int64]) -> bool:
    """Return whether the values rise strictly, in blocks, because memory may not hold them all."""
    return all(
        bool(np.all(np.diff(values[start : start + _BLOCK + 1]) > 0))
        for start in range(0, len(values) - 1, _BLOCK)
    )


@dataclass(frozen=True, eq=False)
class SessionView:
    """A part of a store: the first `ends[n]` items of session `rows[n]`, and perhaps the next one as target.

    Args:
        store: The sessions.
        rows: [N] int64, session numbers.
        ends: [N] int64, the number of input items of each.
        with_target: Whether the item after the input is the held-out target.
        name: The name of its files in a mapped store; None in memory.

    Raises:
        ValueError: The lengths differ, or a row or an end does not exist.

    Examples:
        >>> import polars as pl
        >>> store = SessionStore(
        ...     items=np.array([5, 3, 4], dtype=np.int32), feedback=np.ones(3, dtype=np.float32),
        ...     offsets=np.array([0, 3]), session_ids=pl.Series(["a"]),
        ... )
        >>> SessionView(store, np.array([0]), np.array([2]), with_target=True).targets
        array([2])
    """

    store: SessionStore
    rows: NDArray[np.int64]
    ends: NDArray[np.int64]
    with_target: bool
    name: str | None = None

    def __post_init__(self) -> None:
        fits = self.rows.shape == self.ends.shape
        for rows, ends in self.blocks() if fits else ():
            last = ends + 1 if self.with_target else ends
            fits &= bool(np.all((rows >= 0) & (rows < len(self.store)) & (ends >= 1)))
            fits = fits and bool(np.all(last <= self.store.lengths_of(rows)))
        if not fits:
            raise ValueError(
                "`rows` and `ends` must point at tracks of the store, got some that do not. "
                "A target needs a track after the input."
            )

    @classmethod
    def open(cls, store: SessionStore, name: str, *, with_target: bool) -> "SessionView":
        """Map a view from the files `name` of its mapped store."""
        assert store.folder is not None, "only the views of a mapped store have files"  # noqa: S101
        rows, ends = (map_array(store.folder / f"{name}_{part}.npy") for part in ("rows", "ends"))
        return cls(store, rows, ends, with_target=with_target, name=name)

    def __reduce__(self) -> Any:
        if self.name is None:
            return super().__reduce__()
        return partial(type(self).open, with_target=self.with_target), (self.store, self.name)

    def blocks(self, size: int = _BLOCK) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield rows and ends, [size] int64 each or less, because memory may not hold them all."""
        for start in range(0, len(self.rows), size):
            yield self.rows[start : start + size], self.ends[start : start + size]

    @property
    def targets(self) -> NDArray[np.int64]:
        """[N] int64: the position of each target in the store's flat arrays."""
        return self.store.offsets[self.rows] + self.ends

    def __len__(self) -> int:
        return len(self.rows)
