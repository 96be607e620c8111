"""Two models on the same sessions: which differences can be told from noise."""

import math

import polars as pl

from skipcl_lightning.evaluation.report import EvaluationReport
from skipcl_lightning.evaluation.report_metrics import is_higher_better
from skipcl_lightning.evaluation.statistics import bootstrap, judge, ratio_values

__all__ = ["compare"]

_PROTOCOL = ("split", "top_k", "ties", "exclude_seen", "num_candidates", "sampler", "num_items")


def compare(before: EvaluationReport, after: EvaluationReport) -> pl.DataFrame:
    """The differences of two reports, with intervals paired by session.

    Both models are resampled together, so that what makes a session easy or hard for both cancels out.
    Sessions are resampled whole, with all their targets. At 95 % one metric in twenty differs significantly
    by chance, so decide beforehand which one counts. The intervals do not cover the variation between
    training runs with different seeds.

    Args:
        before: The model to compare with.
        after: The model that is compared.

    Returns:
        A row a metric: `metric`, `before`, `after`, `difference` (after less before), `low`,
        `high`, and `verdict`: "better", "worse" or, where the interval holds 0, "no difference to be
        told"; "higher" or "lower" for a metric that has no better side; "undefined" where a population is
        empty in some resample. Metrics whose population is empty in the reports are left out.

    Raises:
        ValueError: The reports are of other sessions or another protocol, or have no resamples.

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
    # Who was skipped depends on the data's threshold, and pairs on how many tracks a model is given.
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
    differences = {name: ratio - ratios[0][name] for name, ratio in ratios[1].items()}
    intervals = bootstrap(
        differences,
        sessions=after.session_numbers(after.sessions),
        confidence=settings["confidence"],
        num_resamples=settings["num_resamples"],
        seed=settings["seed"],
    )
    defined = [name for name in differences if not math.isnan(values[0][name] + values[1][name])]
    rows = [
        (name, values[0][name], values[1][name], values[1][name] - values[0][name], *intervals[name])
        for name in defined
    ]
    columns = ["metric", "before", "after", "difference", "low", "high"]
    frame = pl.DataFrame(
        rows, schema={columns[0]: pl.String} | dict.fromkeys(columns[1:], pl.Float64), orient="row"
    )
    verdicts = [judge(*intervals[name], higher_is_better=is_higher_better(name)) for name in defined]
    return frame.with_columns(pl.Series("verdict", verdicts))
