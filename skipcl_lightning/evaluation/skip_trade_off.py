"""The trade-off between listened and skipped tracks in the ranking, and the penalty that it suggests."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from skipcl_lightning._checks import check_number
from skipcl_lightning._files import write_whole
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.evaluation.compare import compare
from skipcl_lightning.evaluation.evaluate import Split, evaluate
from skipcl_lightning.evaluation.report import EvaluationReport
from skipcl_lightning.module import SkipCLModule

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SkipTradeOff", "skip_trade_off"]

PENALTIES = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)


def check_penalties(penalties: Any) -> None:
    """Raise unless these are several numbers of at least 0."""
    if isinstance(penalties, str) or not isinstance(penalties, Iterable):
        raise TypeError(
            f"`penalties` must be a sequence of numbers, got {penalties!r}. Write one as `[0.5]`."
        )
    for penalty in penalties:
        check_number("penalties", penalty, minimum=0)


@dataclass(frozen=True, eq=False)
class SkipTradeOff:
    """The result of `skip_trade_off`.

    Args:
        table: One row for each penalty, ascending: `skip_penalty`; the hit rate and skip hit rate at the
            cut-off; and for both, the paired difference from a penalty of 0, or from the reference, with its
            interval by session, as `hit_rate_difference`, `hit_rate_low`, `hit_rate_high`, and with
            `skip_hit_rate_` before.
        penalty: The largest penalty whose hit rate is not significantly lower, and whose skip hit rate is
            lower than at 0; 0 if there is none.
        cut_off: k of the metrics.
        split: The set on which they were measured.
    """

    table: pl.DataFrame
    penalty: float
    cut_off: int
    split: Split

    def save_plot(self, path: str | Path) -> Path:
        """Write a PNG of both metrics against each other, with intervals of the differences.

        Args:
            path: The file.

        Returns:
            The file.
        """
        import matplotlib as mpl

        mpl.use("agg")
        from matplotlib.figure import Figure

        table, k = self.table, self.cut_off
        hits, skips = (table[f"{name}@{k}"].to_numpy() for name in ("hit_rate", "skip_hit_rate"))
        base = {
            "hit_rate": hits[0] - table["hit_rate_difference"][0],
            "skip_hit_rate": skips[0] - table["skip_hit_rate_difference"][0],
        }
        low, high = ({n: base[n] + table[f"{n}_{side}"].to_numpy() for n in base} for side in ("low", "high"))
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.errorbar(
            skips,
            hits,
            xerr=[(skips - low["skip_hit_rate"]).clip(0), (high["skip_hit_rate"] - skips).clip(0)],
            yerr=[(hits - low["hit_rate"]).clip(0), (high["hit_rate"] - hits).clip(0)],
            marker="o",
            capsize=2,
            linewidth=1,
        )
        for penalty, x, y in zip(table["skip_penalty"], skips, hits, strict=True):
            chosen = penalty == self.penalty
            axes.annotate(
                f"{penalty:g}" + (" (chosen)" if chosen else ""),
                (x, y),
                xytext=(6, 6),
                textcoords="offset points",
                fontweight="bold" if chosen else "normal",
            )
        axes.invert_xaxis()
        axes.set_xlabel(f"SkipHitRate@{k} (fewer skipped tracks to the right)")
        axes.set_ylabel(f"HitRate@{k}")
        axes.set_title(f"Skip penalty, {self.split} set; bars: intervals of the difference")
        axes.grid(alpha=0.3)
        path = Path(path)
        write: Callable[[Path], None] = lambda part: figure.savefig(part, format="png", dpi=150)  # noqa: E731
        write_whole(path, write)
        return path


def skip_trade_off(
    module: SkipCLModule,
    data: SessionDataModule,
    *,
    penalties: Sequence[float] = PENALTIES,
    cut_off: int = 10,
    split: Split = "validation",
    reference: EvaluationReport | None = None,
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

    Args:
        module: A trained module with a `SkipPrediction` head; its `skip_penalty` stays as it is.
        data: The sessions.
        penalties: The penalties, each at least 0; 0 is added if it is missing.
        cut_off: k of the hit rates.
        split: `validation` or `test`.
        reference: The report on the same split whose hit rate must be kept, with `cut_off` among its
            `top_k` and with intervals; None for the module's own at a penalty of 0.
        confidence: The coverage of the intervals, in (0, 1).
        num_resamples: Bootstrap resamples of the sessions, at least 1.
        seed: Seed of the resamples.

    Returns:
        The table, the chosen penalty and a plot.

    Raises:
        TypeError: A setting has the wrong type.
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
    check_penalties(penalties)
    if not num_resamples:
        raise ValueError("`num_resamples` must be at least 1, got 0. The choice needs intervals.")
    reports = {
        penalty: evaluate(
            module,
            data,
            split=split,
            top_k=(cut_off,) if reference is None else reference.settings["top_k"],
            confidence=confidence,
            num_resamples=num_resamples,
            seed=seed,
            compare_markov=False,
            skip_penalty=penalty,
        )
        for penalty in sorted({0.0, *map(float, penalties)})
    }
    counts = reports[0.0].populations
    for kind in ("listened", "skipped"):
        if not counts[kind]:
            raise ValueError(
                f"`data` must have {kind} targets in its {split} set, got none of {counts['targets']:,}. A "
                "trade-off needs both kinds; hold out every track of a session with `targets='every'`."
            )
    names = {"hit_rate": f"hit_rate@{cut_off}", "skip_hit_rate": f"skip_hit_rate@{cut_off}"}
    rows = []
    for penalty, report in reports.items():
        row = {"skip_penalty": penalty} | {metric: report[metric] for metric in names.values()}
        differences = compare(reports[0.0] if reference is None else reference, report)
        for name, metric in names.items():
            found = differences.row(by_predicate=pl.col("metric") == metric, named=True)
            row |= {f"{name}_{column}": found[column] for column in ("difference", "low", "high")}
        rows.append(row)
    table = pl.DataFrame(rows)
    skips = pl.col(names["skip_hit_rate"])
    harmless = table.filter(pl.col("hit_rate_high") >= 0, skips < skips.first())["skip_penalty"].to_list()
    return SkipTradeOff(table, max(harmless, default=0.0), cut_off, split)
