"""Session stores on disk: prepare one from a log of any size, and open it."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import count
from pathlib import Path

import numpy as np

from skipcl_lightning._checks import check_flag, check_integer
from skipcl_lightning.data.canonical_table import Progress, Table, no_progress
from skipcl_lightning.data.prepare.inputs import (
    ContextEncoder,
    NewItems,
    VocabularySource,
    choose_context,
    resolve_vocabulary,
    to_context,
)
from skipcl_lightning.data.prepare.preparation import DropReport, HistoryRules, SessionFilter
from skipcl_lightning.data.prepare.prepared_data import (
    ColdTargets,
    PreparationSettings,
    PreparedData,
    Storage,
    prepare_into,
)
from skipcl_lightning.data.splits import LeaveOneOut, Split
from skipcl_lightning.data.store.folder import (
    MANIFEST,
    SPLIT_NAMES,
    Manifest,
    check_folder,
    describe_files,
    fingerprint_log,
    map_array,
    new_store,
    publish,
    read_column,
    read_version,
    refuse_damage,
)
from skipcl_lightning.data.store.listeners import Listeners
from skipcl_lightning.data.store.session_store import SessionStore, SessionView
from skipcl_lightning.data.vocabulary import ItemVocabulary

__all__ = ["open_store", "prepare_store"]

_MOST_ATTEMPTS = 50


def prepare_store(
    log: Table,
    folder: str | Path,
    *,
    split: Split | None = None,
    cold_targets: ColdTargets = "miss",
    min_session_length: int = 3,
    min_item_count: int = 1,
    require_skip: bool = False,
    skip_threshold: float = 0.0,
    vocabulary: VocabularySource | None = None,
    new_items: NewItems | None = None,
    gap_minutes: float | None = None,
    skip_seconds: float | None = None,
    context: Sequence[str] | ContextEncoder = (),
    rows_in_memory: int = 5_000_000,
    rebuild: bool = False,
    on_progress: Progress = no_progress,
) -> PreparedData:
    """Prepare a log of any size and write it as a session store, from which training maps its batches.

    The log is read once, as a stream, and sorted on disk. Memory holds about `rows_in_memory` rows and the
    item ids; the result does not depend on that number. The store is written beside `folder` and then
    renamed, so an interrupted run leaves the previous store, and several processes may prepare the same one.
    On Linux both stores are exchanged in one step, so a reader always finds one of them. A killed run also
    leaves a hidden folder `.NAME-….partial`, which may be deleted once the store opens: on other systems, if
    the kill came between two renames, opening takes the previous store from there. A store of the same log,
    settings and version is used again.

    Args:
        log: A canonical table, best a lazy one over files. With `gap_minutes` a listening history: `item_id`,
            `timestamp`, optionally `user_id` and `feedback`, and no `session_id`.
        folder: The store's own folder, which may not hold anything else.
        split: How targets are held out: `LeaveOneOut` (None), `SplitBySession`, or `SplitByTime`.
        cold_targets: How held-out targets are treated that are not in the training set: `miss` ranks them
            last, `drop` leaves them out, `score` ranks them like others, for a model with `item_features`.
            They are always counted. Rejected cold targets are left out except by `score`, because no other
            model could have recommended them.
        min_session_length: Items that a session needs, at least 2; 3 for leave-one-out.
        min_item_count: Rows that an item needs. Items of a given `vocabulary` need none.
        require_skip: Whether a session needs a skipped item.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        vocabulary: The items of a trained model, which keep their indices, as for `SessionDataModule`.
        new_items: Whether rows of other items are dropped (`drop` or None), or the items appended (`append`).
        gap_minutes: The longest pause within a session in minutes, above 0, to cut a history; a user's plays
            must fit into memory. None if the log has sessions.
        skip_seconds: With `gap_minutes`, for a log without feedback: a play that is followed by another
            within this time was skipped.
        context: The inputs of a play's context: `gap`, `hour`, `weekday`, `place` and names of columns of the
            log, whose categories come from the training set (`ContextEncoder`); or a trained model's
            `encoder.context`. Empty for those of the `vocabulary`'s model.
        rows_in_memory: The approximate number of rows in memory, at least 1.
        rebuild: Whether to prepare it again even if the store is there.
        on_progress: Called with the name of the step, the amount done, and the total (None if unknown).

    Returns:
        The opened store; `SessionDataModule(folder)` opens it for training.

    Raises:
        TypeError: `log` is no table or a setting has the wrong type.
        ValueError: A setting is out of range, the log is wrong (see `prepare_sessions`), `folder` holds
            something else, or its store is damaged.
        OSError: The disk is full, or `folder` cannot be written.

    Examples:
        >>> import tempfile
        >>> from skipcl_lightning.data import simulate_sessions
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = prepare_store(simulate_sessions(50, num_items=40), Path(folder) / "store")
        ...     len(data.store), len(data.views["test"])
        (49, 49)
    """
    session_filter = SessionFilter(min_session_length, min_item_count, require_skip, skip_threshold)
    check_integer("rows_in_memory", rows_in_memory)
    if skip_seconds is not None and gap_minutes is None:
        raise ValueError(
            f"`skip_seconds` must be None without `gap_minutes`, got {skip_seconds}. "
            "A log with sessions has feedback of its own."
        )
    history = None if gap_minutes is None else HistoryRules(gap_minutes, skip_seconds)
    split = LeaveOneOut() if split is None else split
    known = None if vocabulary is None else resolve_vocabulary(vocabulary)
    settings = PreparationSettings(
        session_filter,
        split,
        cold_targets,
        history,
        None if known is None else known.vocabulary,
        new_items,
        choose_context(context, known),
    )
    log = settings.check(log)
    check_flag("rebuild", rebuild)
    folder = check_folder(folder)
    manifest = Manifest(
        settings=settings.describe() | {"package": version("skipcl-lightning")},
        source=fingerprint_log(log),
        versions={name: version(name) for name in ("polars", "numpy")},
        counts={},
        files={},
    )
    if not rebuild and _is_same(folder, manifest):
        return open_store(folder)
    with new_store(folder) as (work, store_folder):
        data = prepare_into(
            Storage(store_folder),
            log,
            settings,
            rows_in_memory=rows_in_memory,
            folder=work,
            on_progress=on_progress,
        )
        data.vocabulary.to_series().to_frame("item_id").write_ipc(store_folder / "item_id.arrow")
        counts = {
            "drop_report": asdict(data.drop_report),
            "targets": {name: len(view) for name, view in data.views.items() if view.with_target},
            "cold_targets": dict(data.num_cold_targets),
            "longest_input": data.longest_input,
            "caution": data.caution,
            "known_items": data.num_known_items,
            "context": None if data.context is None else data.context.state_dict(),
        }
        on_progress("Taking checksums", 0, 1)
        replace(manifest, counts=counts, files=describe_files(store_folder)).write(store_folder)
        on_progress("Taking checksums", 1, 1)
        if rebuild or not _is_same(folder, manifest):
            publish(store_folder, folder)
    return _open_steadily(folder, verify=False)


def open_store(folder: str | Path, *, verify: bool = True) -> PreparedData:
    """Open a session store; its arrays stay on disk until they are used.

    Args:
        folder: The store's folder.
        verify: Whether to compare the checksums of all files, which reads them once; sizes are always
            compared.

    Raises:
        ValueError: The folder is no store, or a file is missing or damaged; the message names it.

    Examples:
        >>> open_store("no/such/folder")
        Traceback (most recent call last):
            ...
        ValueError: `folder` must be a session store, got 'no/such/folder' without a manifest.json: ...
    """
    folder = Path(folder).expanduser()
    if not (folder / MANIFEST).is_file():
        Manifest.read(folder)  # raises, unless there is one to take back
    # An absolute path, because another process may open it from another folder.
    return _open_steadily(folder.absolute(), verify=verify)


def _open_steadily(folder: Path, *, verify: bool) -> PreparedData:
    """Open a store that another process may be replacing, and read again what was replaced."""
    for attempt in count():
        before = _read_state(folder)
        try:
            data = _open(folder, before[0], verify=verify)
        except (OSError, ValueError):
            changed = not before[0] or _read_state(folder) != before
            if not changed or attempt == _MOST_ATTEMPTS:
                raise
        else:
            if _read_state(folder) == before or attempt == _MOST_ATTEMPTS:
                return data
        time.sleep(0.01 * (1 + attempt))
    raise AssertionError


def _read_state(folder: Path) -> tuple[str, int, int]:
    """Return the version of a store, and what a rename of its folder changes: the version may come again."""
    try:
        place = folder.stat()
    except OSError:
        return "", 0, 0
    return read_version(folder), place.st_ino, place.st_ctime_ns


def _open(folder: Path, digest: str, *, verify: bool) -> PreparedData:
    manifest = Manifest.read(folder)
    manifest.check_files(folder, contents=verify)
    # A manifest that was written again may describe any files.
    with refuse_damage(folder):
        data = _assemble(SessionStore.open(folder, digest), folder, manifest)
        if verify:
            _check_contents(data)
    return data


def _assemble(store: SessionStore, folder: Path, manifest: Manifest) -> PreparedData:
    return PreparedData(
        vocabulary=ItemVocabulary(read_column(folder / "item_id.arrow")),
        store=store,
        views={
            name: SessionView.open(store, name, with_target=name in SPLIT_NAMES[1:])
            for name in (*SPLIT_NAMES, "predict")
        },
        item_counts=map_array(folder / "item_counts.npy"),
        drop_report=DropReport(**manifest.counts["drop_report"]),
        num_cold_targets=manifest.counts["cold_targets"],
        longest_input=int(manifest.counts["longest_input"]),
        caution=manifest.counts["caution"],
        scores_cold=manifest.settings["cold_targets"] == "score",
        listeners=Listeners.open(folder),
        num_known_items=int(manifest.counts.get("known_items", 0)),
        context=to_context(manifest.counts.get("context")),
    )


def _check_contents(data: PreparedData) -> None:
    """Raise unless the items of a store are those of its vocabulary."""
    num_items, items, counts = len(data.vocabulary), data.store.items, data.item_counts
    if items.ndim != 1 or items.min() < 1 or items.max() > num_items:
        raise ValueError(f"items are not all in 1..{num_items}, the indices of the vocabulary")
    if counts.shape != (num_items + 1,) or counts.dtype != np.int64 or counts.min() < 0:
        raise ValueError(f"item_counts are not {num_items + 1} counts")
    if data.num_known_items > num_items:
        raise ValueError(f"{data.num_known_items} items are known, of {num_items}")


def _is_same(folder: Path, manifest: Manifest) -> bool:
    """Return whether the folder holds a store of the same log and settings."""
    if manifest.source is None or not (folder / MANIFEST).is_file():
        return False
    try:
        there = Manifest.read(folder)
    except ValueError:
        # Another process may be replacing it just now.
        if (folder / MANIFEST).is_file():
            raise
        return False
    return (there.source, there.settings) == (manifest.source, manifest.settings)
