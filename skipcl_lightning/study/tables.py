"""The results of the study as Markdown, and as tables for a terminal."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.table import Table

from skipcl_lightning.evaluation.report_metrics import is_higher_better
from skipcl_lightning.metrics.session_metrics import describe_left_out
from skipcl_lightning.study.results import METRICS
from skipcl_lightning.study.runs import Run, read_record
from skipcl_lightning.study.variants import PLAIN

__all__ = ["describe_runs", "make_markdown", "make_terminal_tables"]

MISSING = "–"  # noqa: RUF001 - the dash of an empty cell
_TOLD = ("better", "worse")
_TERMINAL = ("hit_rate@10", "mrr@10", "skip_mrr@10", "skip_hit_rate@10", "pairwise_skip_accuracy")


def make_markdown(summary: pl.DataFrame, gains: pl.DataFrame, facts: Sequence[dict[str, Any]]) -> str:
    """Return the whole study as Markdown.

    Args:
        summary: The result of `compare_all`.
        gains: The result of `gains_by_skip_rate`.
        facts: The result of `describe_runs`.

    Returns:
        Text.
    """
    lines = ["# What the skip heads do", "", *_explain(summary), "", "## What was run", ""]
    lines += _grid(list(facts[0]), [list(map(str, row.values())) for row in facts])
    for (dataset, backbone), part in summary.group_by("dataset", "backbone", maintain_order=True):
        lines += ["", f"## {dataset}, {backbone}", "", "Mean over seeds (change in %):", ""]
        lines += _metric_grid(part.filter(pl.col("compared_with") == PLAIN), _level)
        left_out = describe_left_out(metric for metric in METRICS if metric not in _present(METRICS, part))
        lines += ["", left_out] if left_out else []
        for (against,), compared in part.group_by("compared_with", maintain_order=True):
            others = compared.filter(pl.col("difference").is_not_null())
            if others.height:
                lines += ["", f"Difference to `{against}`, with 95 % intervals over seeds:", ""]
                lines += _metric_grid(others, _difference)
        own = gains.filter((pl.col("dataset") == dataset) & (pl.col("backbone") == backbone))
        if own.height:
            lines += ["", f"Difference of HR@10 to `{PLAIN}` by the skip rate of the session:", ""]
            lines += _segment_grid(own)
    return "\n".join(lines) + "\n"


def make_terminal_tables(summary: pl.DataFrame) -> Iterator[Table]:
    """Yield the main metrics as tables for a terminal.

    Args:
        summary: The result of `compare_all`.

    Yields:
        One table for each data set and backbone: the plain model's values, and the others' differences.
    """
    plain = summary.filter(pl.col("compared_with") == PLAIN)
    for (dataset, backbone), part in plain.group_by("dataset", "backbone", maintain_order=True):
        table = Table(
            title=f"{dataset}, {backbone}: means of {PLAIN}, differences to it by seed",
            caption="* the 95 % confidence interval over seeds excludes zero",
        )
        metrics = _present(_TERMINAL, part)
        for column in ("", "λ", *map(_head, metrics)):
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
        for variant, weight, cells in _models(part):
            row = [_for_terminal(cells.get(metric)) for metric in metrics]
            table.add_row(variant, weight, *row)
        yield table


def _explain(summary: pl.DataFrame) -> list[str]:
    told = summary["verdict"].is_in(_TOLD).sum()
    tried = summary.filter(pl.col("low").is_not_null()).height
    return [
        "Test, whole catalogue. ↑ higher is better, ↓ lower is better. Differences are paired by seed, and ± "
        "is half of a 95 % t-interval over seeds. One seed has no interval, nor have equal differences of "
        "all seeds, which small counts give by chance. **Bold**: the interval excludes zero.",
        "",
        "Each seed of a simulated data set has a log of its own. The seeds of a real one share theirs: its "
        "intervals say whether another seed would show the same, not whether other listeners would.",
        "",
        f"{told} of {tried} differences are bold. If no head had an effect, about one in twenty would be, "
        f"{tried / 20:.0f}.",
    ]


def _metric_grid(part: pl.DataFrame, form: Any) -> list[str]:
    metrics = _present(METRICS, part)
    rows = [
        [f"`{variant}`", weight, *(_bold(cells.get(metric), form) for metric in metrics)]
        for variant, weight, cells in _models(part)
    ]
    return _grid(["variant", "λ", *map(_head, metrics)], rows)


def _present(metrics: Iterable[str], part: pl.DataFrame) -> list[str]:
    """Return the metrics that some run has."""
    known = set(part["metric"])
    return [metric for metric in metrics if metric in known]


def _segment_grid(gains: pl.DataFrame) -> list[str]:
    sizes = dict(gains.sort("segment").select("segment", "sessions").unique("segment").iter_rows())
    segments = gains["segment"].unique().sort().to_list()
    heads = [f"{segment} ({sizes[segment]:,.0f} sessions)" for segment in segments]
    rows = [
        [f"`{variant}`", weight, *(_bold(cells.get(segment), _difference) for segment in segments)]
        for variant, weight, cells in _models(gains, "segment")
    ]
    return _grid(["variant", "λ", *heads], rows)


def _models(part: pl.DataFrame, kind: str = "metric") -> Iterator[tuple[str, str, dict[str, dict[str, Any]]]]:
    """Return the rows by metric or segment, by variant and weight."""
    for (variant, weight), rows in part.group_by("variant", "weight", maintain_order=True):
        name = "" if weight is None else f"{weight:g}"
        yield str(variant), name, {row[kind]: row for row in rows.iter_rows(named=True)}


def _bold(row: dict[str, Any] | None, form: Any) -> str:
    if row is None:
        return MISSING
    cell: str = form(row)
    return f"**{cell}**" if _is_told(row) else cell


def _is_told(row: dict[str, Any]) -> bool:
    return row["low"] is not None and not row["low"] <= 0 <= row["high"]


def _level(row: dict[str, Any]) -> str:
    relative = "" if row["relative"] is None else f" ({_signed(row['relative'], 1)})"
    return _short(f"{row['mean']:.4f}") + relative


def _difference(row: dict[str, Any]) -> str:
    margin = "" if row["low"] is None else " ± " + _short(f"{(row['high'] - row['low']) / 2:.4f}")
    return _signed(row["difference"], 4) + margin


def _for_terminal(row: dict[str, Any] | None) -> str:
    if row is None:
        return MISSING
    if row["difference"] is None:
        return _short(f"{row['mean']:.3f}")
    return _signed(row["difference"], 3) + ("*" if _is_told(row) else " ")


def _signed(value: float, digits: int) -> str:
    return _short(f"{value:+.{digits}f}").replace("-", "−")  # noqa: RUF001 - a minus, which is as wide as a plus


def _short(number: str) -> str:
    """Return a share without its leading zero."""
    return number.replace("0.", ".", 1) if number.lstrip("+-").startswith("0.") else number


def _head(metric: str) -> str:
    return f"{METRICS[metric]} {'↑' if is_higher_better(metric) else '↓'}"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def describe_runs(runs: Sequence[Run], folder: Path) -> list[dict[str, Any]]:
    """Return a description of the runs.

    Args:
        runs: Finished runs.
        folder: The folder of the study.

    Returns:
        One row for each data set and backbone, by column; the median of numbers that differ between runs.
    """
    found: dict[tuple[str, str], list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        record = read_record(run, folder)
        if record is not None:
            found.setdefault((run.title, run.backbone), []).append((run, record))
    return [_describe(dataset, backbone, pairs) for (dataset, backbone), pairs in found.items()]


def _describe(dataset: str, backbone: str, pairs: Sequence[tuple[Run, dict[str, Any]]]) -> dict[str, Any]:
    run, first = pairs[0]
    records = [record for _, record in pairs]

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
        "parameters": median([record["parameters"] for record in records]),
        "seconds a training": median([record["seconds"] for record in records]),
        "torch": ", ".join(sorted({record["torch"] for record in records})),
    }
