"""From the metrics of runs to figures: means, differences paired by seed, and their intervals."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from skipcl_lightning.evaluation.statistics import HIGHER_IS_BETTER
from skipcl_lightning.study.variants import INPUT_SUFFIX, PLAIN

__all__ = [
    "METRICS",
    "compare_all",
    "compare_with",
    "gains_by_skip_rate",
    "higher_is_better",
]

# By the name in a report, what tables call it.
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
_CONFIDENCE = 0.95
_LEAST_MARGIN = 1e-12


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better.

    Args:
        metric: A key of `METRICS`.

    Returns:
        False where less is.

    Examples:
        >>> higher_is_better("skip_mrr@10")
        False
    """
    return bool(HIGHER_IS_BETTER[metric.split("@")[0]])


def compare_with(against: str, metrics: pl.DataFrame) -> pl.DataFrame:
    """Each variant beside another, with the differences within each seed.

    Args:
        against: The variant to compare with.
        metrics: As `read_metrics` gives them.

    Returns:
        A row a data set, backbone, variant, weight and metric: `seeds`, how many have a value of both;
        `mean` over them and `against`, the other's; `difference`, its `low` and `high` (a 95 %
        t-interval over seeds) and `relative`, in percent; and `verdict`: "better", "worse", "no
        difference to be told", or "undefined" without an interval. There is none for one seed, nor where all
        seeds differ alike: counts of few sessions do that by chance. The variant `against` itself has null
        in place of a difference.

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
    """Every variant beside the plain model, and those with feedback as an input beside the plain one with it.

    Only the second comparison tells what a head does that the input alone does not.

    Args:
        metrics: As `read_metrics` gives them, of `none` and others.

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
    """The difference of HitRate@10 to another variant, by the skip rate of the session.

    Args:
        against: The variant to compare with.
        hits: As `read_hits` gives them.

    Returns:
        A row a data set, backbone, variant other than `against`, weight and segment: the numbers of
        `compare_with`, and `sessions`, how many the segment has in a seed's log on average.
    """
    return _pair(hits, against, "segment").filter(pl.col("variant") != against)


def _pair(values: pl.DataFrame, against: str, kind: str) -> pl.DataFrame:
    """Means of values, and of their differences to another variant of the same seed, with intervals."""
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
    seeds = both["seeds"].to_numpy()
    quantile = stats.t.ppf((1 + _CONFIDENCE) / 2, np.maximum(seeds - 1, 1)) / np.sqrt(seeds)
    margin = pl.Series(quantile, dtype=pl.Float64) * both["deviation"]
    # Above what rounding makes of differences that are equal.
    margin = pl.select(pl.when(margin > _LEAST_MARGIN).then(margin)).to_series()
    relative = 100 * pl.col("difference") / pl.col("against")
    return both.with_columns(
        (pl.col("difference") - margin).alias("low"),
        (pl.col("difference") + margin).alias("high"),
        pl.when(pl.col("against") != 0).then(relative).alias("relative"),
    ).drop("deviation")


def _verdict(row: dict[str, Any]) -> str:
    if row["low"] is None:
        return "undefined"
    if row["low"] <= 0 <= row["high"]:
        return "no difference to be told"
    return "better" if (row["low"] > 0) == higher_is_better(row["metric"]) else "worse"
