"""The trade-off between listened and skipped tracks in the ranking, and the penalty that it suggests."""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from skipcl_lightning._checks import check_number
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.evaluation.compare import compare
from skipcl_lightning.evaluation.evaluate import Split, evaluate
from skipcl_lightning.evaluation.plots import make_figure, save_figure
from skipcl_lightning.evaluation.report import EvaluationReport
from skipcl_lightning.evaluation.target_rows import check_scoring
from skipcl_lightning.module import SkipCLModule

__all__ = ["SkipTradeOff", "skip_trade_off"]

PENALTIES = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
Row = dict[str, float]


def check_penalties(penalties: Any, name: str = "penalties") -> None:
    """Raise unless these are several numbers of at least 0."""
    # Not an iterator, which is empty after the check.
    if isinstance(penalties, str) or not isinstance(penalties, Collection):
        raise TypeError(f"`{name}` must be a sequence of numbers, got {penalties!r}. Write one as `[0.5]`.")
    for penalty in penalties:
        check_number(name, penalty, minimum=0)


def check_margin(margin: Any) -> None:
    """Raise unless this is None, or a number above 0 and below 1."""
    if margin is not None:
        check_number("margin", margin, minimum=0, maximum=1, open_minimum=True, open_maximum=True)


@dataclass(frozen=True, eq=False)
class SkipTradeOff:
    """The result of `skip_trade_off`.

    Args:
        table: One row for each pair that was measured, ascending: `transition_weight` and `skip_penalty`;
            hit rate, skip hit rate and skip MRR at the cut-off; and for each of the three, the paired
            difference from the first row, or from the reference, with its interval by session, as
            `hit_rate_difference`, `hit_rate_low`, `hit_rate_high`, and with `skip_hit_rate_` or `skip_mrr_`
            before.
        penalty: The chosen penalty.
        transition_weight: The chosen weight of the transitions; the module's own if there was no choice.
        cut_off: k of the metrics.
        split: The set on which they were measured.
    """

    table: pl.DataFrame
    penalty: float
    transition_weight: float
    cut_off: int
    split: Split

    def save_plot(self, path: str | Path) -> Path:
        """Write a PNG of both metrics against each other, with intervals of the differences.

        Args:
            path: The file.

        Returns:
            The file.
        """
        hits, skips = f"hit_rate@{self.cut_off}", f"skip_hit_rate@{self.cut_off}"
        figure = make_figure(6.4, 4.4, dpi=150)
        axes = figure.subplots()
        for (weight,), rows in self.table.group_by("transition_weight", maintain_order=True):
            axes.errorbar(
                rows[skips],
                rows[hits],
                xerr=_bars(rows, "skip_hit_rate"),
                yerr=_bars(rows, "hit_rate"),
                marker="o",
                capsize=2,
                linewidth=1,
                label=f"transition weight {weight:g}",
            )
        if self.table["transition_weight"].n_unique() > 1:
            axes.legend(frameon=False)
        for row in self.table.iter_rows(named=True):
            penalty = row["skip_penalty"]
            chosen = (row["transition_weight"], penalty) == (self.transition_weight, self.penalty)
            axes.annotate(
                f"{penalty:g}" + (" (chosen)" if chosen else ""),
                (row[skips], row[hits]),
                xytext=(6, 6),
                textcoords="offset points",
                fontweight="bold" if chosen else "normal",
            )
        axes.invert_xaxis()
        axes.set_xlabel(f"SkipHitRate@{self.cut_off} (fewer skipped tracks to the right)")
        axes.set_ylabel(f"HitRate@{self.cut_off}")
        axes.set_title(f"Skip penalty, {self.split} set; bars: intervals of the difference")
        axes.grid(alpha=0.3)
        save_figure(figure, path)
        return Path(path)


def _bars(rows: pl.DataFrame, metric: str) -> list[pl.Series]:
    """Return how far the interval of a difference goes to each side."""
    difference, low, high = (rows[f"{metric}_{column}"] for column in ("difference", "low", "high"))
    return [(difference - low).clip(0), (high - difference).clip(0)]


def skip_trade_off(
    module: SkipCLModule,
    data: SessionDataModule,
    *,
    penalties: Sequence[float] = PENALTIES,
    transition_weights: Sequence[float] | None = None,
    cut_off: int = 10,
    split: Split = "validation",
    reference: EvaluationReport | None = None,
    margin: float | None = None,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> SkipTradeOff:
    """Measure hit rate against skip hit rate at several penalties, and choose a penalty.

    The choice is the largest penalty that lowers the skip hit rate, and whose hit rate is not significantly
    lower than without a penalty, by a paired bootstrap over whole sessions. With a `reference`, another
    model's report, its hit rate must be kept instead: a model that hits more often can spend what it gained
    on fewer skipped tracks. Choose on the validation set, then read the test set once:

        front = skip_trade_off(module, data)
        module.skip_penalty = front.penalty
        report = evaluate(module, data)

    With `transition_weights`, both are chosen together: the pair with the lowest skip MRR among those whose
    hit rate is at least that of the module without transitions and penalty, or of the `reference`. If there
    is none, it is the pair of the highest hit rate. For each weight, bisection finds the largest penalty that
    keeps the hit rate, so only some of the penalties are measured.

    With few targets, a large loss is not significant either. A `margin` asks for evidence instead (a test of
    non-inferiority): the interval of the difference must exclude a larger loss than this.

    Args:
        module: A trained module with a `SkipPrediction` head; its `skip_penalty` and `transition_weight` stay
            as they are.
        data: The sessions.
        penalties: The penalties, each at least 0; 0 is added if it is missing.
        transition_weights: The weights of the transitions, each at least 0, of a module that was trained with
            a `transition_weight` above 0; 0 is added if it is missing. None for the module's own weight.
        cut_off: k of the hit rates.
        split: `validation` or `test`.
        reference: The report on the same split whose hit rate must be kept, with `cut_off` among its
            `top_k` and with intervals; None for the module's own at a penalty of 0, and at a transition
            weight of 0 with `transition_weights`.
        margin: The largest loss of hit rate to accept, above 0 and below 1, such as 0.005; None for the rules
            above.
        confidence: The coverage of the intervals, in (0, 1).
        num_resamples: Bootstrap resamples of the sessions, at least 1.
        seed: Seed of the resamples.

    Returns:
        The table, the chosen penalty and transition weight, and a plot.

    Raises:
        TypeError: `module` is another object, or a setting has the wrong type.
        ValueError: The module has no `SkipPrediction` head, a setting is out of range, the set has no
            listened or no skipped targets, or `reference` has another protocol.

    Examples:
        >>> from skipcl_lightning.backbones import GRU4Rec
        >>> from skipcl_lightning.data import simulate_sessions
        >>> from skipcl_lightning.heads import SkipPrediction
        >>> data = SessionDataModule(simulate_sessions(50, num_items=40, num_moods=4))
        >>> module = SkipCLModule(GRU4Rec(8), SkipPrediction(), num_items=data.num_items)
        >>> front = skip_trade_off(module, data, penalties=(0.0, 0.5), num_resamples=100)
        >>> front.table.height, front.penalty in (0.0, 0.5)
        (2, True)
    """
    check_scoring(module)
    check_penalties(penalties)
    if not num_resamples:
        raise ValueError("`num_resamples` must be at least 1, got 0. The choice needs intervals.")
    if transition_weights is not None:
        check_penalties(transition_weights, "transition_weights")
    check_margin(margin)
    _check_reference(reference, cut_off)

    def measure(weight: float, penalty: float) -> EvaluationReport:
        before, module.transition_weight = module.transition_weight, weight
        try:
            return evaluate(
                module,
                data,
                split=split,
                top_k=(cut_off,) if reference is None else reference.settings["top_k"],
                confidence=confidence,
                num_resamples=num_resamples,
                seed=seed,
                compare_markov=False,
                skip_penalty=penalty,
                list_recommendations=False,
            )
        finally:
            module.transition_weight = before

    first = (module.transition_weight if transition_weights is None else 0.0, 0.0)
    own = measure(*first)
    _check_both_kinds(own)
    base = own if reference is None else reference
    ascending = sorted({0.0, *map(float, penalties)})
    rows = {first: _describe(first, own, base, cut_off)}

    def row(pair: tuple[float, float]) -> Row:
        if pair not in rows:
            rows[pair] = _describe(pair, measure(*pair), base, cut_off)
        return rows[pair]

    if transition_weights is None:
        found = [row((first[0], penalty)) for penalty in ascending]
        chosen = _largest_penalty(found, cut_off, margin)
    else:
        for weight in sorted({0.0, *map(float, transition_weights)}):
            # The hit rate falls with the penalty.
            bisect_left(
                [(weight, value) for value in ascending], True, key=lambda p: not _keeps(row(p), margin)
            )
        found = [rows[pair] for pair in sorted(rows)]
        chosen = _fewest_skips(found, cut_off, margin)
    return SkipTradeOff(
        pl.DataFrame(found), chosen["skip_penalty"], chosen["transition_weight"], cut_off, split
    )


def _check_reference(reference: EvaluationReport | None, cut_off: int) -> None:
    """Raise unless a report has the hit rate that must be kept."""
    if reference is not None and cut_off not in reference.settings["top_k"]:
        raise ValueError(
            f"`reference` must have `cut_off` {cut_off} among its `top_k`, got "
            f"{reference.settings['top_k']}. Evaluate it with that cut-off, or choose one of these."
        )


def _check_both_kinds(report: EvaluationReport) -> None:
    """Raise unless there are listened and skipped targets."""
    for kind in ("listened", "skipped"):
        if not report.populations[kind]:
            raise ValueError(
                f"`data` must have {kind} targets in its {report.settings['split']} set, got none of "
                f"{report.populations['targets']:,}. A trade-off needs both kinds; hold out every track of a "
                "session with `targets='every'`."
            )


def _describe(
    pair: tuple[float, float], report: EvaluationReport, base: EvaluationReport, cut_off: int
) -> Row:
    """Return the row of a pair of weight and penalty, with the differences from a report."""
    row = dict(zip(("transition_weight", "skip_penalty"), pair, strict=True))
    names = {metric: f"{metric}@{cut_off}" for metric in ("hit_rate", "skip_hit_rate", "skip_mrr")}
    row |= {metric: report[metric] for metric in names.values()}
    differences = compare(base, report)
    for name, metric in names.items():
        found = differences.row(by_predicate=pl.col("metric") == metric, named=True)
        row |= {f"{name}_{column}": found[column] for column in ("difference", "low", "high")}
    return row


def _largest_penalty(rows: Sequence[Row], cut_off: int, margin: float | None) -> Row:
    """Return the row of the largest penalty that lowers the skip hit rate alone; the first without one."""
    skips = f"skip_hit_rate@{cut_off}"
    harmless = [row for row in rows if (row["hit_rate_high"] >= 0 if margin is None else _keeps(row, margin))]
    return [rows[0], *(row for row in harmless if row[skips] < rows[0][skips])][-1]


def _fewest_skips(rows: Sequence[Row], cut_off: int, margin: float | None) -> Row:
    """Return the row of the lowest skip MRR among those that keep the hit rate; if none does, the nearest."""
    kept = [row for row in rows if _keeps(row, margin)]
    if not kept:
        return max(rows, key=lambda row: row["hit_rate_difference"])
    return min(kept, key=lambda row: row[f"skip_mrr@{cut_off}"])


def _keeps(row: Row, margin: float | None) -> bool:
    """Return whether the hit rate is no lower, or certainly by no more than the margin."""
    return row["hit_rate_difference"] >= 0 if margin is None else row["hit_rate_low"] >= -margin
