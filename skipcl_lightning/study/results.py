"""Results of a study: means, and differences paired by seed with their intervals."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl

from skipcl_lightning.evaluation.report_metrics import is_higher_better
from skipcl_lightning.evaluation.statistics import judge, student_margin
from skipcl_lightning.study.choices import INPUT_SUFFIX, PLAIN
from skipcl_lightning.study.runs import Run, read_record

__all__ = [
    "METRICS",
    "MISSING",
    "compare_all",
    "compare_with",
    "describe_choices",
    "describe_runs",
    "gains_by_skip_rate",
    "read_hits",
    "read_metrics",
]

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
_NAMES = {
    "dataset": pl.String,
    "backbone": pl.String,
    "variant": pl.String,
    "weight": pl.Float64,
    "seed": pl.Int64,
}
# Above the rounding error of equal differences.
_LEAST_MARGIN = 1e-12
MISSING = "–"  # noqa: RUF001 - the dash of an empty cell


def read_metrics(runs: Sequence[Run], folder: Path) -> pl.DataFrame:
    """Return a row for each finished run and metric: `_NAMES`, `metric` and `value`.

    A metric whose population is empty has no row; the weight is null without a head.
    """
    rows = []
    for run in runs:
        metrics = _record(run, folder)["metrics"]
        rows += [(*_names(run), metric, metrics[metric]) for metric in METRICS if metric in metrics]
    schema = {**_NAMES, "metric": pl.String, "value": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def read_hits(runs: Sequence[Run], folder: Path) -> pl.DataFrame:
    """Return HitRate@10 of finished runs by the skip rate of the session.

    The columns are those of `read_metrics`, with `segment`, an ordered category, in place of `metric`, and
    `sessions`. A segment without sessions has no row.
    """
    frames = []
    for run in runs:
        _record(run, folder)
        hits = (
            pl.read_parquet(run.file(folder, "parquet"), columns=["rank", "skipped", "skip_segment"])
            .filter(~pl.col("skipped"))
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
    """
    frame = _pair(metrics, against, "metric")
    ours = pl.col("variant") == against
    numbers = ["difference", "low", "high", "relative"]
    frame = frame.with_columns(
        pl.Series("verdict", [_verdict(row) for row in frame.iter_rows(named=True)], dtype=pl.String)
    )
    return frame.with_columns(pl.when(~ours).then(pl.col(name)).alias(name) for name in [*numbers, "verdict"])


def compare_all(metrics: pl.DataFrame) -> pl.DataFrame:
    """Return `compare_with` the plain model, and with feedback input also with the plain model that has it.

    Only the second comparison shows the effect of a head beyond that of the input. The first column is
    `compared_with`.
    """
    with_input = metrics.filter(pl.col("variant").str.ends_with(INPUT_SUFFIX))
    parts = [(PLAIN, metrics), (PLAIN + INPUT_SUFFIX, with_input)]
    return pl.concat(
        compare_with(against, part).select(pl.lit(against).alias("compared_with"), pl.all())
        for against, part in parts
        if part["variant"].n_unique() > 1 or against == PLAIN
    )


def gains_by_skip_rate(against: str, hits: pl.DataFrame) -> pl.DataFrame:
    """Return the differences of HitRate@10 (`read_hits`) to another variant, by the skip rate of the session.

    The columns are those of `compare_with`, and `sessions`, the mean number of sessions over seeds.
    """
    return _pair(hits, against, "segment").filter(pl.col("variant") != against)


def _pair(values: pl.DataFrame, against: str, kind: str) -> pl.DataFrame:
    """Return means, and differences to another variant of the same seed with intervals."""
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
            pl.col("^sessions$").mean(),  # where there is this column
        )
    )
    deviation = both["deviation"].cast(pl.Float64).to_numpy()
    margin = pl.Series(student_margin(deviation, both["seeds"].to_numpy()), dtype=pl.Float64).fill_nan(None)
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


def describe_runs(runs: Sequence[Run], folder: Path) -> list[dict[str, Any]]:
    """Return a row for each data set and backbone; the median of numbers that differ between runs."""
    found: dict[tuple[str, str], list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        record = read_record(run, folder)
        if record is not None:
            found.setdefault((run.title, run.backbone), []).append((run, record))
    return [_describe(dataset, backbone, pairs) for (dataset, backbone), pairs in found.items()]


def describe_choices(runs: Sequence[Run], folder: Path) -> list[dict[str, Any]]:
    """Return a row for each model with settings that the validation set chose: their values, seed by seed."""
    found: dict[tuple[str, ...], list[Mapping[str, float]]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        chosen = _record(run, folder).get("chosen")
        if chosen:
            weight = "" if run.weight is None else f"{run.weight:g}"
            found.setdefault((run.title, run.backbone, run.variant, weight), []).append(chosen)
    titles = {"transition_weight": "transition weight", "skip_penalty": "skip penalty"}
    return [
        dict(zip(("data set", "backbone", "variant", "λ"), names, strict=True))
        | {
            title: ", ".join(f"{each[name]:g}" for each in values if name in each) or MISSING
            for name, title in titles.items()
        }
        for names, values in found.items()
    ]


def _describe(dataset: str, backbone: str, pairs: Sequence[tuple[Run, dict[str, Any]]]) -> dict[str, Any]:
    run, first = pairs[0]
    records = [record for _, record in pairs]
    trained = [record for record in records if "parameters" in record]  # all but the baselines

    def median(numbers: Sequence[float]) -> str:
        return f"{statistics.median(numbers):,.0f}"

    return {
        "data set": dataset,
        "backbone": backbone,
        "runs": len(pairs),
        "seeds": len({run.seed for run, _ in pairs}),
        "epochs": run.epochs,
        "learning rate": f"{first['settings']['learning_rate']:g}",
        "items": median([record["items"] for record in records]),
        "listened targets": median([record["populations"]["listened"] for record in records]),
        "skipped targets": median([record["populations"]["skipped"] for record in records]),
        "parameters": median([record["parameters"] for record in trained]),
        "seconds a training": median([record["seconds"] for record in trained]),
        "torch": ", ".join(sorted({record["torch"] for record in records})),
    }
