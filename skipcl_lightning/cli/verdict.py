"""What the demo's figures show, and what they do not, in words."""

import statistics

__all__ = ["Results", "describe_results"]

Results = dict[str, list[dict[str, float]]]

# Two-sided 95 % quantiles of Student's t for 1, 2, … degrees of freedom.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def describe_results(results: Results, *, plain: str, contrastive: str) -> str:
    """Compare two models by the differences within each seed.

    Args:
        results: By model, the metrics of each seed's run.
        plain: The model without the head.
        contrastive: The model with it.

    Returns:
        Sentences: each difference with a 95 % interval over seeds, and whether it can be told from noise.

    Examples:
        >>> keys = ["hit_rate@10", "skip_mrr@10", "skip_rank_percentile", "pairwise_skip_accuracy"]
        >>> results = {"a": [dict.fromkeys(keys, 0.5)] * 3, "b": [dict.fromkeys(keys, 0.5)] * 3}
        >>> print(describe_results(results, plain="a", contrastive="b").splitlines()[1])
          HitRate@10: +0.000 ± 0.000, not distinguishable from no effect
    """
    runs = len(results[plain])
    lines = [f"{contrastive} minus {plain}, paired by seed, with 95 % intervals over {runs} seeds:"]
    for label, key in (
        ("HitRate@10", "hit_rate@10"),
        ("SkipMRR@10", "skip_mrr@10"),
        ("skip rank percentile", "skip_rank_percentile"),
        ("pairwise skip accuracy", "pairwise_skip_accuracy"),
    ):
        pairs = zip(results[plain], results[contrastive], strict=True)
        # A small log may hold no rejected target, and then has no such metric.
        differences = [after[key] - before[key] for before, after in pairs if key in before and key in after]
        if len(differences) < runs:
            continue
        mean = statistics.mean(differences)
        margin = _student(runs - 1) * statistics.stdev(differences) / runs**0.5
        lower_is_better = key == "skip_mrr@10"
        lines.append(f"  {label}: {mean:+.3f} ± {margin:.3f}, {_verdict(mean, margin, lower_is_better)}")
    lines.append(
        "What this does not show: the logs are simulated, and skips follow the listener's mood by "
        "construction, so it says little about real listeners. Each track often follows the one before, "
        "which is all that last-item Markov uses. And the plain model is trained towards the next listened "
        "track too, which already keeps skipped tracks out of its targets."
    )
    return "\n".join(lines)


def _student(degrees: int) -> float:
    # From 10 degrees on the normal quantile is within 15 %, on the narrow side; the tenth is kept instead.
    return STUDENT[min(degrees, len(STUDENT)) - 1]


def _verdict(mean: float, margin: float, lower_is_better: bool) -> str:
    if abs(mean) <= margin:
        return "not distinguishable from no effect"
    return "better" if (mean < 0) == lower_is_better else "worse"
