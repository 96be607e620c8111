"""The metrics of a report, as quotients of sums over its rows."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from skipcl_lightning.evaluation.statistics import Ratio

__all__ = ["HIGHER_IS_BETTER", "is_higher_better", "session_ratios"]

# By the name up to "@" or "/". None has no better side.
HIGHER_IS_BETTER = {
    "hit_rate": True,
    "ndcg": True,
    "mrr": True,
    "skip_hit_rate": False,
    "skip_mrr": False,
    "delta_hit_rate": True,
    "skip_rank_percentile": True,
    "pairwise_skip_accuracy": True,
    "coverage": True,
    "novelty": None,
    "last_item_first": None,
    "last_item_next": None,
}


def is_higher_better(metric: str) -> bool | None:
    """Return whether a higher value of a metric is better.

    Args:
        metric: A name as in a report, with its cut-off and postfix.

    Returns:
        None for novelty and the shares of the last item, which have no better side.

    Examples:
        >>> is_higher_better("skip_mrr@10"), is_higher_better("hit_rate@5/repeat")
        (False, True)
    """
    return HIGHER_IS_BETTER[metric.split("@")[0].split("/")[0]]


def session_ratios(
    sessions: pl.DataFrame, *, top_k: Sequence[int], num_candidates: int, postfix: str = ""
) -> dict[str, Ratio]:
    """Return every metric that is a mean over targets.

    Args:
        sessions: The rows of a report: `rank`, `skipped`, `repeat`, `half_points`, `pairs`, `novelty`,
            `last_first` and `last_next`.
        top_k: The cut-offs.
        num_candidates: The number of ranked items, the target included.
        postfix: The end of the names of metrics of ranks.

    Returns:
        The metrics by name; formulas as in `skipcl_lightning.functional`.
    """
    rank = sessions["rank"].to_numpy()
    skipped, repeat = sessions["skipped"].to_numpy(), sessions["repeat"].to_numpy()
    listened = ~skipped
    ratios = {}
    for k in top_k:
        hit = rank <= k
        gains = {"hit_rate": hit, "ndcg": hit / np.log2(rank + 1), "mrr": hit / rank}
        for name, gain in gains.items():
            ratios[f"{name}@{k}"] = _mean(gain, listened)
        ratios[f"hit_rate@{k}/repeat"] = _mean(hit, listened & repeat)
        ratios[f"hit_rate@{k}/explore"] = _mean(hit, listened & ~repeat)
        ratios[f"skip_hit_rate@{k}"] = _mean(hit, skipped)
        ratios[f"skip_mrr@{k}"] = _mean(hit / rank, skipped)
        ratios[f"delta_hit_rate@{k}"] = ratios[f"hit_rate@{k}"] - ratios[f"skip_hit_rate@{k}"]
    ratios["skip_rank_percentile"] = _mean((rank - 1) / max(num_candidates - 1, 1), skipped)
    named = {name + postfix: ratio for name, ratio in ratios.items()}
    half_points, pairs = (sessions[name].to_numpy() for name in ("half_points", "pairs"))
    named["pairwise_skip_accuracy"] = Ratio.of(half_points * listened, 2.0 * pairs * listened)
    if "novelty" in sessions.columns:
        novelty = sessions["novelty"].to_numpy()
        has_list = ~np.isnan(novelty)
        named[f"novelty@{max(top_k)}"] = _mean(np.where(has_list, novelty, 0.0), has_list)
    if "last_first" in sessions.columns:
        first, following = (sessions[name].to_numpy() for name in ("last_first", "last_next"))
        named["last_item_first"] = _mean(first, np.ones(len(first), dtype=bool))
        named["last_item_next"] = _mean(following, listened)
    return named


def _mean(values: np.ndarray, members: np.ndarray) -> Ratio:
    return Ratio.of(np.where(members, values, 0.0), members.astype(np.float64))
