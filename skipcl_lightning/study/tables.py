"""Tables of a study's results, for Markdown and for a terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import polars as pl
from rich.table import Table

from skipcl_lightning.evaluation.report_metrics import is_higher_better
from skipcl_lightning.metrics.session_metrics import describe_left_out
from skipcl_lightning.study.choices import PLAIN
from skipcl_lightning.study.results import METRICS, MISSING

__all__ = ["make_markdown", "make_paper_tables", "make_terminal_tables"]

# As in the paper; MAP@10 is MRR@10, because each session has one target.
_PAPER: Mapping[str, str] = MappingProxyType(
    {name: METRICS[name] for name in ("hit_rate@1", "hit_rate@5", "hit_rate@10", "hit_rate@20")}
    | {"mrr@10": "MAP@10", "skip_mrr@10": METRICS["skip_mrr@10"]}
)
_TERMINAL = ("hit_rate@10", "mrr@10", "skip_mrr@10", "skip_hit_rate@10", "pairwise_skip_accuracy")


def make_markdown(
    summary: pl.DataFrame,
    gains: pl.DataFrame,
    facts: Sequence[dict[str, Any]],
    choices: Sequence[dict[str, Any]] = (),
) -> str:
    """Return `compare_all`, `gains_by_skip_rate`, `describe_runs` and `describe_choices` as Markdown."""
    lines = ["# What the skip heads do", "", *_explain(summary), "", "## What was run", ""]
    lines += _grid(list(facts[0]), [list(map(str, row.values())) for row in facts])
    if choices:
        lines += ["", "Chosen on the validation set, for seeds 0, 1, …:", ""]
        lines += _grid(list(choices[0]), [list(map(str, row.values())) for row in choices])
    lines += ["", "## The paper's columns", "", _PAPER_NOTE]
    for dataset, heads, rows in _paper_grids(summary):
        lines += ["", f"{dataset}:", "", *_grid(heads, rows)]
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
    """Yield a table of the main metrics for each data set and backbone, from the result of `compare_all`."""
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


_PAPER_NOTE = (
    "Mean over seeds. MAP@10 is MRR@10, because each session has one target. "
    f"{MISSING}: no session has such a target."
)


def make_paper_tables(summary: pl.DataFrame) -> Iterator[Table]:
    """Yield a table of the paper's columns for each data set, from the result of `compare_all`."""
    for dataset, heads, rows in _paper_grids(summary):
        table = Table(title=f"{dataset}: the paper's columns", caption=_PAPER_NOTE)
        for head in heads:
            table.add_column(
                head, justify="left" if head in ("backbone", "variant") else "right", no_wrap=True
            )
        for row in rows:
            table.add_row(*row)
        yield table


def _paper_grids(summary: pl.DataFrame) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    plain = summary.filter(pl.col("compared_with") == PLAIN)
    for (dataset,), part in plain.group_by("dataset", maintain_order=True):
        metrics = list(_PAPER)
        heads = ["backbone", "variant", "λ", *(_head(metric, _PAPER) for metric in metrics)]
        rows = []
        for (backbone,), own in part.group_by("backbone", maintain_order=True):
            for variant, weight, cells in _models(own):
                found = [cells.get(metric) for metric in metrics]
                means = [MISSING if row is None else _short(f"{row['mean']:.4f}") for row in found]
                rows.append([str(backbone), variant, weight, *means])
        yield str(dataset), heads, rows


def _explain(summary: pl.DataFrame) -> list[str]:
    bold = summary["verdict"].is_in(("better", "worse")).sum()
    tried = summary.filter(pl.col("low").is_not_null()).height
    return [
        "Test, whole catalogue. ↑ higher is better, ↓ lower is better. Differences are paired by seed, and ± "
        "is half of a 95 % t-interval over seeds. One seed has no interval, nor have equal differences of "
        "all seeds, which small counts give by chance. **Bold**: the interval excludes zero.",
        "",
        "Each seed of a simulated data set has a log of its own. The seeds of a real one share theirs: its "
        "intervals say whether another seed would show the same, not whether other listeners would.",
        "",
        f"{bold} of {tried} differences are bold. If no head had an effect, about one in twenty would be, "
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
    return f"**{cell}**" if _is_significant(row) else cell


def _is_significant(row: dict[str, Any]) -> bool:
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
    return _signed(row["difference"], 3) + ("*" if _is_significant(row) else " ")


def _signed(value: float, digits: int) -> str:
    return _short(f"{value:+.{digits}f}").replace("-", "−")  # noqa: RUF001 - a minus, which is as wide as a plus


def _short(number: str) -> str:
    """Return a share without its leading zero."""
    return number.replace("0.", ".", 1) if number.lstrip("+-").startswith("0.") else number


def _head(metric: str, titles: Mapping[str, str] = METRICS) -> str:
    return f"{titles[metric]} {'↑' if is_higher_better(metric) else '↓'}"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
