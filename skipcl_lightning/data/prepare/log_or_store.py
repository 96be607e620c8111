"""The two inputs of a data module: a log that is prepared in memory, or a store on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import polars as pl
from lightning.pytorch.utilities import rank_zero_only

from skipcl_lightning._checks import check_choice
from skipcl_lightning.data.prepare.filters import SessionFilter
from skipcl_lightning.data.prepare.on_disk import open_store, read_settings
from skipcl_lightning.data.prepare.prepared_data import ColdTargets, PreparedData
from skipcl_lightning.data.schema import Table, check_log_columns, to_frame
from skipcl_lightning.data.splits import LeaveOneOut, Split, check_split

__all__ = ["Source", "make_source"]


class Source(Protocol):
    """A log or a store."""

    @property
    def skip_threshold(self) -> float:
        """Feedback below it is a skip."""
        ...

    def prepare(self) -> PreparedData:
        """Return the prepared data."""
        ...


@dataclass(frozen=True)
class _Log:
    log: pl.LazyFrame | pl.DataFrame
    session_filter: SessionFilter
    split: Split
    cold_targets: ColdTargets

    @property
    def skip_threshold(self) -> float:
        return self.session_filter.skip_threshold

    def prepare(self) -> PreparedData:
        return PreparedData.from_log(self.log, self.session_filter, self.split, self.cold_targets)


@dataclass(frozen=True)
class _Store:
    folder: Path
    skip_threshold: float

    def prepare(self) -> PreparedData:
        # Only one process of a run reads the whole store to compare the checksums.
        return open_store(self.folder, verify=getattr(rank_zero_only, "rank", 0) == 0)


def make_source(
    log: Table | str | Path,
    *,
    split: Split | None,
    cold_targets: ColdTargets | None,
    min_session_length: int | None,
    min_item_count: int | None,
    require_skip: bool | None,
    skip_threshold: float | None,
) -> Source:
    """Return a log or a store, after a check of the settings; nothing is read yet.

    Raises:
        TypeError: `log` is neither a table nor a path, or a setting has the wrong type.
        ValueError: A setting is out of range, or is given although the store has its own.
    """
    settings: dict[str, Any] = {
        "min_session_length": min_session_length,
        "min_item_count": min_item_count,
        "require_skip": require_skip,
        "skip_threshold": skip_threshold,
    }
    if isinstance(log, str | Path):
        given = [
            name
            for name, value in ({"split": split, "cold_targets": cold_targets} | settings).items()
            if value is not None
        ]
        if given:
            raise ValueError(
                f"`{given[0]}` must be left alone with the store {str(log)!r}, got a value: how it was "
                "prepared is settled. Give it to `prepare_store`, or prepare another store."
            )
        return _Store(
            Path(log).expanduser().absolute(), float(read_settings(log)["filter"]["skip_threshold"])
        )
    frame = to_frame("log", log)
    columns = check_log_columns(frame)
    session_filter = SessionFilter(**{name: value for name, value in settings.items() if value is not None})
    split = LeaveOneOut() if split is None else split
    check_split(split, session_filter.min_session_length, columns)
    cold_targets = "miss" if cold_targets is None else cold_targets
    check_choice("cold_targets", cold_targets, get_args(ColdTargets))
    return _Log(frame, session_filter, split, cold_targets)
