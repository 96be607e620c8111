"""Paired comparison of two models on the same sessions."""

import math

import polars as pl

from skipcl_lightning.evaluation.report import EvaluationReport
from skipcl_lightning.evaluation.report_metrics import is_higher_better
from skipcl_lightning.evaluation.statistics import bootstrap, judge, ratio_values

__all__ = ["compare"]

_PROTOCOL = ("split", "top_k", "ties", "exclude_seen", "num_candidates", "sampler", "num_items")


def compare(before: EvaluationReport, after: EvaluationReport) -> pl.DataFrame:
    """Return the paired differences between two reports, with bootstrap confidence intervals.

    Choose the deciding metric in advance: at 95 %, one metric in twenty is significant by chance. Both models
    share the resampled sessions, so the difficulty of a session cancels out. Sessions are resampled with all
    their targets. The intervals do not cover the variation between training runs with different seeds.

    Args:
        before: The report of the reference model.
        after: The report of the model to compare with it.

    Returns:
        One row per metric: `metric`, `before`, `after`, `difference` (after minus before), `low`, `high` and
        `verdict`. The verdict is "better" or "worse", or "higher" or "lower" for a metric without a better
        direction. It is "no significant difference" if the interval contains 0, and "undefined" if the
        metric's population is empty in some resample. Metrics that are undefined in a report are omitted.

    Raises:
        ValueError: The reports have different sessions or protocols, or no resamples.

    Examples:
        >>> from skipcl_lightning.data import SessionDataModule, simulate_sessions
        >>> from skipcl_lightning.evaluation import LastItemMarkov, Popularity, evaluate
        >>> data = SessionDataModule(simulate_sessions(200, num_items=40, num_moods=4))
        >>> markov = LastItemMarkov(data)
        >>> models = (Popularity(data.item_counts), markov)
        >>> reports = [evaluate(model, data, num_resamples=200) for model in models]
        >>> compare(*reports).filter(pl.col("metric") == "hit_rate@5")["verdict"].item()
        'better'
    """
    for setting in _PROTOCOL:
        one, other = before.settings[setting], after.settings[setting]
        if one != other:
            raise ValueError(
                f"`before` and `after` must share the protocol, got {setting} {one!r} and {other!r}. "
                "Evaluate both in the same way."
            )
    # `skipped` depends on the data's skip threshold, `pairs` on the number of items that a model receives.
    keys = ["session_id", "target", "skipped", "repeat", "pairs"]
    if not before.sessions.select(keys).equals(after.sessions.select(keys)):
        raise ValueError(
            "`before` and `after` must be of the same sessions, got others. Evaluate both on the same data."
        )
    settings = after.settings
    if not settings["num_resamples"]:
        raise ValueError(
            "`after` must have intervals, got `num_resamples` 0. Evaluate it with some resamples."
        )
    ratios = [report.ratios(report.sessions) for report in (before, after)]
    values = [ratio_values(each) for each in ratios]
    # Perhaps only one of the reports has recommendations.
    differences = {name: ratio - ratios[0][name] for name, ratio in ratios[1].items() if name in ratios[0]}
    intervals = bootstrap(
        differences,
        sessions=after.session_numbers(after.sessions),
        confidence=settings["confidence"],
        num_resamples=settings["num_resamples"],
        seed=settings["seed"],
    )
    rows = []
    for name, interval in intervals.items():
        one, other = (of_report[name] for of_report in values)
        if not math.isnan(one + other):
            verdict = judge(*interval, higher_is_better=is_higher_better(name))
            rows.append((name, one, other, other - one, *interval, verdict))
    numbers = dict.fromkeys(("before", "after", "difference", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, {"metric": pl.String, **numbers, "verdict": pl.String}, orient="row")
