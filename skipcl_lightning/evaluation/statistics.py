"""Intervals: a bootstrap over sessions for one run, Student's t over seeds for several."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

__all__ = ["Quotient", "Ratio", "bootstrap", "judge", "ratio_values", "student_margin"]

Floats = NDArray[np.float64]

# Resamples times sessions held at once.
_MOST_WEIGHTS = 2**24


@dataclass(frozen=True)
class Quotient:
    """A sum over targets divided by another sum, with a sign.

    Args:
        numerator: [N], each target's share of the numerator.
        denominator: [N], its share of the denominator: 1 in the population, or a number of pairs.
        sign: 1, or -1 if it is subtracted.
    """

    numerator: Floats
    denominator: Floats
    sign: int = 1


@dataclass(frozen=True)
class Ratio:
    """A metric as a sum of quotients of sums over targets.

    Args:
        quotients: At least one.

    Examples:
        >>> one = Ratio.of(np.array([1.0, 0.0]), np.ones(2))
        >>> ratio_values({"difference": one - one})
        {'difference': 0.0}
    """

    quotients: tuple[Quotient, ...]

    @classmethod
    def of(cls, numerator: Floats, denominator: Floats) -> "Ratio":
        """Return a single quotient."""
        return cls((Quotient(numerator, denominator),))

    @property
    def members(self) -> NDArray[np.bool_]:
        """[N] bool: the targets that at least one quotient counts."""
        counted: NDArray[np.bool_] = np.any([quotient.denominator > 0 for quotient in self.quotients], axis=0)
        return counted

    def __sub__(self, other: "Ratio") -> "Ratio":
        subtracted = (Quotient(q.numerator, q.denominator, -q.sign) for q in other.quotients)
        return Ratio((*self.quotients, *subtracted))


def ratio_values(ratios: dict[str, Ratio]) -> dict[str, float]:
    """Return each metric over all targets; NaN for an empty population.

    Args:
        ratios: The metrics by name.

    Returns:
        Their values.

    Examples:
        >>> ratio_values({"mean": Ratio.of(np.array([1.0, 0.0]), np.ones(2))})
        {'mean': 0.5}
    """
    sums = _sums(ratios)
    return dict(zip(ratios, _divide(np.ones((1, sums.shape[0])) @ sums, ratios)[:, 0].tolist(), strict=True))


def bootstrap(
    ratios: dict[str, Ratio],
    *,
    sessions: NDArray[np.int64],
    confidence: float,
    num_resamples: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of the metrics, from resamples of whole sessions with replacement.

    The targets of one session depend on each other, so intervals from resampled targets would be too narrow.

    Args:
        ratios: The metrics by name, all over the same N targets.
        sessions: [N] int64, the session of each target, numbered from 0 without gaps.
        confidence: The coverage, in (0, 1).
        num_resamples: The number of resamples.
        seed: Seed of the resamples.

    Returns:
        The two ends of each; NaN if a metric is undefined in some resample (its population has very few
        sessions), or if there is only one session.

    Reference:
        Efron and Tibshirani: An Introduction to the Bootstrap, 1993, section 13.3, for percentile intervals;
        Davison and Hinkley: Bootstrap Methods and their Application, 1997, section 3.8, for clusters. The
        draws and the percentiles are `scipy.stats.bootstrap`'s.

    Examples:
        >>> ratio = Ratio.of(np.array([1.0, 0.0] * 50), np.ones(100))
        >>> settings = {"confidence": 0.9, "num_resamples": 200, "seed": 0}
        >>> low, high = bootstrap({"mean": ratio}, sessions=np.arange(100), **settings)["mean"]
        >>> low < 0.5 < high
        True
    """
    sums = _sum_by_session(_sums(ratios), sessions)
    num_sessions = sums.shape[0]
    if num_sessions < 2:
        return dict.fromkeys(ratios, (np.nan, np.nan))
    with warnings.catch_warnings():
        # The warning of metrics that are undefined in some resample; their ends are NaN.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            (np.arange(num_sessions),),
            _statistic(ratios, sums),
            n_resamples=num_resamples,
            batch=max(1, min(num_resamples, _MOST_WEIGHTS // num_sessions)),
            vectorized=True,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return dict(zip(ratios, zip(interval.low.tolist(), interval.high.tolist(), strict=True), strict=True))


def student_margin(
    deviation: float | Floats, num_values: int | NDArray[np.int64], confidence: float = 0.95
) -> Floats:
    """Return half the width of Student's t interval of a mean.

    For differences of two models that are paired by seed, the interval covers the variation between seeds.

    Args:
        deviation: Standard deviation of the values, with n - 1 in the denominator.
        num_values: n, the number of values.
        confidence: The coverage, in (0, 1).

    Returns:
        The margin, of the shape of the arguments; NaN for fewer than two values.

    Reference:
        Student: The Probable Error of a Mean, Biometrika 6(1), 1908, doi 10.1093/biomet/6.1.1.

    Examples:
        >>> round(float(student_margin(1.0, 4)), 3)
        1.591
    """
    count = np.asarray(num_values, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        quantile = stats.t.ppf((1 + confidence) / 2, np.where(count > 1, count - 1, np.nan))
        margin: Floats = np.asarray(quantile * np.asarray(deviation) / np.sqrt(count))[()]
    return margin


def judge(low: float, high: float, *, higher_is_better: bool | None) -> str:
    """Return the verdict of an interval of a difference.

    Args:
        low: Lower end of the interval of `after - before`; NaN if undefined.
        high: Upper end.
        higher_is_better: None for a metric without a better side.

    Returns:
        "better", "worse", "higher", "lower", "no significant difference" if the interval contains 0, or
        "undefined".

    Examples:
        >>> judge(0.1, 0.2, higher_is_better=True), judge(-0.1, 0.2, higher_is_better=True)
        ('better', 'no significant difference')
    """
    if low != low or high != high:
        return "undefined"
    if low <= 0 <= high:
        return "no significant difference"
    if higher_is_better is None:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) == higher_is_better else "worse"


def _statistic(ratios: dict[str, Ratio], sums: Floats) -> Callable[..., Any]:
    """Return a function from the sessions of resamples to the metrics."""
    sessions = sums.shape[0]

    def statistic(rows: NDArray[np.int64], axis: int = -1) -> Floats:
        # The count of each session in a resample; one matrix product then sums all metrics.
        drawn = np.atleast_2d(np.moveaxis(rows, axis, -1))
        flat = drawn + sessions * np.arange(len(drawn))[:, None]
        weights = np.bincount(flat.ravel(), minlength=flat.shape[0] * sessions).reshape(-1, sessions)
        values = _divide(weights.astype(np.float64) @ sums, ratios)
        return values if rows.ndim > 1 else values[:, 0]

    return statistic


def _sums(ratios: dict[str, Ratio]) -> Floats:
    """[N, 2 · quotients]: numerators and denominators side by side."""
    quotients = [quotient for ratio in ratios.values() for quotient in ratio.quotients]
    columns = [q.numerator for q in quotients] + [q.denominator for q in quotients]
    return np.stack(columns, axis=1).astype(np.float64)


def _sum_by_session(sums: Floats, sessions: NDArray[np.int64]) -> Floats:
    """[sessions, 2 · quotients]: the sums over each session's targets."""
    targets = np.arange(len(sessions))
    members = sparse.csr_array((np.ones(len(sessions)), (sessions, targets)))
    totals: Floats = members @ sums
    return totals


def _divide(totals: Floats, ratios: dict[str, Ratio]) -> Floats:
    """[metrics, R] from the [R, 2 · quotients] sums of R resamples."""
    half = totals.shape[1] // 2
    with np.errstate(invalid="ignore", divide="ignore"):
        quotients = totals[:, :half] / totals[:, half:]
    rows, place = [], 0
    for ratio in ratios.values():
        signs = np.array([quotient.sign for quotient in ratio.quotients])
        rows.append(quotients[:, place : place + len(signs)] @ signs)
        place += len(signs)
    return np.stack(rows)
