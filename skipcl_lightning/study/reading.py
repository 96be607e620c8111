"""What the runs on disk hold, as frames."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from skipcl_lightning.study.results import METRICS
from skipcl_lightning.study.runs import Run, read_record

__all__ = ["read_hits", "read_metrics"]

_NAMES = {
    "dataset": pl.String,
    "backbone": pl.String,
    "variant": pl.String,
    "weight": pl.Float64,
    "seed": pl.Int64,
}


def read_metrics(runs: Sequence[Run], folder: Path) -> pl.DataFrame:
    """The metrics of finished runs.

    Args:
        runs: Which.
        folder: Of the study.

    Returns:
        A row a run and metric: `dataset`, `backbone`, `variant`, `weight` (null without a head),
        `seed`, `metric`, and `value`. A metric whose population is empty has no row.

    Raises:
        ValueError: A run is not finished.
    """
    rows = []
    for run in runs:
        metrics = _record(run, folder)["metrics"]
        rows += [(*_names(run), metric, metrics[metric]) for metric in METRICS if metric in metrics]
    schema = {**_NAMES, "metric": pl.String, "value": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def read_hits(runs: Sequence[Run], folder: Path) -> pl.DataFrame:
    """HitRate@10 of finished runs by the skip rate of the session.

    Args:
        runs: Which.
        folder: Of the study.

    Returns:
        A row a run and segment that has sessions: the columns of `read_metrics`, with `segment`, an
        ordered category, in place of `metric`, and `sessions`.

    Raises:
        ValueError: A run is not finished.
    """
    frames = []
    for run in runs:
        _record(run, folder)
        sessions = pl.read_parquet(
            folder / "runs" / f"{run.key}.parquet", columns=["rank", "skipped", "skip_segment"]
        )
        hits = (
            sessions.filter(~pl.col("skipped"))
            .group_by(pl.col("skip_segment").alias("segment"))
            .agg((pl.col("rank") <= 10).mean().alias("value"), pl.len().cast(pl.Int64).alias("sessions"))
            .sort("segment")
        )
        names = pl.DataFrame([_names(run)], schema=_NAMES, orient="row")
        frames.append(names.join(hits, how="cross"))
    return pl.concat(frames)


def _names(run: Run) -> tuple[str, str, str, float | None, int]:
    return run.title, run.backbone, run.variant, run.weight, run.seed


def _record(run: Run, folder: Path) -> dict[str, Any]:
    record = read_record(run, folder)
    if record is None:
        raise ValueError(f"`runs` must be finished, got {run.label}, which is not. Do it with `execute`.")
    return record
