"""Results of runs: means, differences paired by seed, and their intervals."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl

from skipcl_lightning.evaluation.report_metrics import is_higher_better
from skipcl_lightning.evaluation.statistics import judge, student_margin
from skipcl_lightning.study.runs import Run, read_record
from skipcl_lightning.study.variants import INPUT_SUFFIX, PLAIN

__all__ = [
    "METRICS",
    "compare_all",
    "compare_with",
    "gains_by_skip_rate",
    "read_hits",
    "read_metrics",
]

_NAMES = {
    "dataset": pl.String,
    "backbone": pl.String,
    "variant": pl.String,
    "weight": pl.Float64,
    "seed": pl.Int64,
}


def read_metrics(runs: Sequence[Run], folder: Path) -> pl.DataFrame:
    """Return the metrics of finished runs.

    Args:
        runs: The runs.
        folder: The folder of the study.

    Returns:
        One row for each run and metric: `dataset`, `backbone`, `variant`, `weight` (null without a head),
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
    """Return HitRate@10 of finished runs by the skip rate of the session.

    Args:
        runs: The runs.
        folder: The folder of the study.

    Returns:
        One row for each run and segment with sessions: the columns of `read_metrics` with `segment`, an
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


# The name in a report, and in tables.
METRICS: Mapping[str, str] = MappingProxyType(
    {
        "hit_rate@1": "HR@1",
        "hit_rate@5": "HR@5",
        "hit_rate@10": "HR@10",
        "hit_rate@20": "HR@20",
        "mrr@10": "MRR@10",
        "skip_mrr@10": "SkipMRR@10",
        "skip_hit_rate@10": "SkipHR@10",
        "skip_rank_percentile": "SkipPercentile",
        "pairwise_skip_accuracy": "PairAccuracy",
    }
)
_MODEL = ["dataset", "backbone", "variant", "weight"]
_PLACE = ["dataset", "backbone", "seed"]
_LEAST_MARGIN = 1e-12


def compare_with(against: str, metrics: pl.DataFrame) -> pl.DataFrame:
    """Return the differences of each variant to another one, paired by seed.

    Args:
        against: The variant to compare with.
        metrics: The result of `read_metrics`.

    Returns:
        One row for each data set, backbone, variant, weight and metric: `seeds`, the number of seeds with
        both values; `mean` and `against`, the two means; `difference` with `low` and `high` (a 95 %
        t-interval over seeds) and `relative`, in percent; and `verdict` (`judge`). There is no interval for
        one seed, nor if all differences are equal, which happens by chance with few sessions. The rows of
        `against` itself have null differences.

    Examples:
        >>> names = {"dataset": "dense", "backbone": "SASRec", "weight": None, "metric": "hit_rate@1"}
        >>> values = [("none", 0, 0.5), ("none", 1, 0.5), ("session", 0, 0.61), ("session", 1, 0.62)]
        >>> rows = [names | dict(zip(("variant", "seed", "value"), row, strict=True)) for row in values]
        >>> compare_with("none", pl.DataFrame(rows)).select("seeds", "verdict").row(1)
        (2, 'better')
    """
    frame = _pair(metrics, against, "metric")
    ours = pl.col("variant") == against
    numbers = ["difference", "low", "high", "relative"]
    frame = frame.with_columns(
        pl.Series("verdict", [_verdict(row) for row in frame.iter_rows(named=True)], dtype=pl.String)
    )
    return frame.with_columns(
        pl.when(~ours).then(pl.col(name)).alias(name) for name in [*numbers, "verdict"]
    ).drop("sessions")


def compare_all(metrics: pl.DataFrame) -> pl.DataFrame:
    """Return the differences to the plain model, with feedback input also to the plain model with it.

    Only the second comparison shows the effect of a head beyond that of the input.

    Args:
        metrics: The result of `read_metrics`, of `none` and others.

    Returns:
        The rows of `compare_with`, with `compared_with` before them.
    """
    with_input = metrics.filter(pl.col("variant").str.ends_with(INPUT_SUFFIX))
    parts = [(PLAIN, metrics), (PLAIN + INPUT_SUFFIX, with_input)]
    return pl.concat(
        compare_with(against, part).select(pl.lit(against).alias("compared_with"), pl.all())
        for against, part in parts
        if part["variant"].n_unique() > 1 or against == PLAIN
    )


def gains_by_skip_rate(against: str, hits: pl.DataFrame) -> pl.DataFrame:
    """Return the difference of HitRate@10 to another variant, by the skip rate of the session.

    Args:
        against: The variant to compare with.
        hits: The result of `read_hits`.

    Returns:
        One row for each data set, backbone, variant other than `against`, weight and segment: the numbers of
        `compare_with`, and `sessions`, the mean number of sessions over seeds.
    """
    return _pair(hits, against, "segment").filter(pl.col("variant") != against)


def _pair(values: pl.DataFrame, against: str, kind: str) -> pl.DataFrame:
    """Return means, and differences to another variant of the same seed with intervals."""
    if "sessions" not in values.columns:
        values = values.with_columns(pl.lit(None, pl.Int64).alias("sessions"))
    other = values.filter(pl.col("variant") == against).select(*_PLACE, kind, pl.col("value").alias("other"))
    both = (
        values.join(other, on=[*_PLACE, kind], how="inner", maintain_order="left")
        .filter(pl.col("value").is_not_null() & pl.col("other").is_not_null())
        .group_by(*_MODEL, kind, maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("seeds"),
            pl.col("value").mean().alias("mean"),
            pl.col("other").mean().alias("against"),
            (pl.col("value") - pl.col("other")).mean().alias("difference"),
            (pl.col("value") - pl.col("other")).std().alias("deviation"),
            pl.col("sessions").mean(),
        )
    )
    deviation = both["deviation"].cast(pl.Float64).to_numpy()
    margin = pl.Series(student_margin(deviation, both["seeds"].to_numpy()), dtype=pl.Float64).fill_nan(None)
    # Above the rounding error of equal differences.
    margin = pl.select(pl.when(margin > _LEAST_MARGIN).then(margin)).to_series()
    relative = 100 * pl.col("difference") / pl.col("against")
    return both.with_columns(
        (pl.col("difference") - margin).alias("low"),
        (pl.col("difference") + margin).alias("high"),
        pl.when(pl.col("against") != 0).then(relative).alias("relative"),
    ).drop("deviation")


def _verdict(row: dict[str, Any]) -> str:
    low, high = (math.nan if row[name] is None else row[name] for name in ("low", "high"))
    return judge(low, high, higher_is_better=is_higher_better(row["metric"]))
