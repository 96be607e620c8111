"""Metrics of a target's rank: counts, and gains of the first k places."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from skipcl_lightning._checks import check_choice, check_integer, check_number, check_shape
from skipcl_lightning.functional.ranking.metrics import average_precision, hit_rate, mrr, ndcg
from skipcl_lightning.functional.ranking.ranks import TieRule, score_ranks

__all__ = [
    "MAP",
    "MRR",
    "NDCG",
    "Among",
    "CountMetric",
    "FeedbackMetric",
    "HitRate",
    "Population",
    "RankMetric",
    "SkipHitRate",
    "SkipMRR",
    "TargetCount",
    "TopKMetric",
    "join_name",
]


def join_name(*parts: object) -> str:
    """Return a name for a state, without dots, which `torch.compile` does not take in an attribute."""
    return "_".join(map(str, parts)).replace(".", "_")


class CountMetric(Metric):
    """Metric whose states are sums of integers.

    With integers, a result is equal to the last bit for any split into batches, any order and any number of
    processes, and no state grows with the number of samples. An undefined result is NaN, not 0.

    Args:
        kwargs: Settings of `torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound: float | None = 1.0

    def set_dtype(self, dst_type: str | torch.dtype) -> Self:  # noqa: ARG002 - torchmetrics' signature
        """Return the metric as it is: counts stay integers, because floats would lose or overflow them."""
        return self

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot one value or several.

        Args:
            val: The result of `compute` or `forward`, or several of them; None for `compute()`.
            ax: The matplotlib axes; None for new ones.

        Returns:
            The matplotlib figure and axes.
        """
        return self._plot(val, ax)

    def _add_count(self, name: str, *size: int) -> str:
        """Register an int64 state and return its name.

        `MetricCollection` lets metrics share one update if their states agree in name and value after the
        first batch, and values can agree by chance. So the name must contain everything on which the update
        depends, except what the state's size shows.
        """
        self.add_state(name, torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")
        return name

    def _sum(self, name: str) -> Tensor:
        total: Tensor = getattr(self, name)
        return total

    def _increase(self, name: str, by: Tensor) -> None:
        setattr(self, name, self._sum(name) + by)


Population = Literal["listened", "skipped"]
Among = Literal["all", "repeat", "explore"]


class FeedbackMetric(CountMetric):
    """Metric with sums of integers over a population of targets.

    Args:
        ties: The rule for equal scores, if this metric compares scores.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        among: Which targets count: `all`, those that the session already held (`repeat`), or those that it
            did not (`explore`).
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        ValueError: A setting is unknown or out of range.
    """

    def __init__(
        self,
        *,
        ties: TieRule = "pessimistic",
        skip_threshold: float = 0.0,
        among: Among = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("ties", ties, get_args(TieRule))
        check_number("skip_threshold", skip_threshold, minimum=-1, maximum=1, open_minimum=True)
        check_choice("among", among, get_args(Among))
        self.ties: TieRule = ties
        self.skip_threshold = float(skip_threshold)
        self.among: Among = among

    def _add_sum(self, name: str, population: Population, *size: int) -> str:
        """Register a state whose name contains everything on which the update depends."""
        settings = population, self.among, self.ties, self.skip_threshold
        return self._add_count(join_name(name, *settings), *size)

    def _members(
        self,
        population: Population,
        like: Tensor,
        target_feedback: Tensor | None,
        target_seen: Tensor | None = None,
    ) -> Tensor:
        """[N] bool: the rows of `like` that count."""
        sizes = {"N": len(like)}
        if target_feedback is None:
            members = torch.ones(len(like), dtype=torch.bool, device=like.device)
        else:
            check_shape("target_feedback", target_feedback, "N", sizes, floating=True)
            if population == "listened":
                members = target_feedback >= self.skip_threshold
            else:
                members = target_feedback < self.skip_threshold
        if self.among == "all":
            return members
        if target_seen is None:
            raise ValueError(
                f"`target_seen` must be given to a metric among {self.among!r} targets, got None. Say which "
                "targets the session already held."
            )
        check_shape("target_seen", target_seen, "N", sizes, dtype=torch.bool)
        return members & (target_seen if self.among == "repeat" else ~target_seen)


RANK_DTYPES = (torch.int64, torch.float32, torch.float64)


class RankMetric(FeedbackMetric):
    """Metric of ranks, which are given or computed from scores."""

    def update(
        self,
        preds: Tensor | None = None,
        target: Tensor | None = None,
        *,
        ranks: Tensor | None = None,
        target_feedback: Tensor | None = None,
        target_seen: Tensor | None = None,
    ) -> None:
        """Count the targets of a batch, given by scores or by ranks.

        Each metric ranks `preds` again; ranks that are computed once can feed any number of metrics.

        Args:
            preds: [N, C] floating-point scores of C candidates.
            target: [N] int64, the target's column in 0..C-1.
            ranks: [N] int64 or float32, in 1..V and in whole or half steps, as `target_ranks` returns them.
                The metric's tie rule then has no effect.
            target_feedback: [N] floating point, the feedback on the target; NaN counts in neither population.
                None counts every row.
            target_seen: [N] bool, whether the session already held the target; needed with `among` other than
                `all`.

        Raises:
            TypeError: A tensor has the wrong dtype.
            ValueError: Shapes disagree, not exactly one of `preds` and `ranks` is given, or `target_seen` is
                needed and missing.
        """
        if ranks is None:
            ranks = self._rank(preds, target)
        elif preds is not None or target is not None:
            raise ValueError(
                "`ranks` must be given without `preds` and `target`, got both. "
                "Give ranks, or the scores to make them from."
            )
        check_shape("ranks", ranks, "N")
        if ranks.dtype not in RANK_DTYPES:
            raise TypeError(
                f"`ranks` must be of dtype torch.int64 or torch.float32, got {ranks.dtype}. "
                "`target_ranks` returns either."
            )
        self._count(ranks, target_feedback, target_seen)

    def _rank(self, preds: Tensor | None, target: Tensor | None) -> Tensor:
        if preds is None or target is None:
            missing = "`preds`" if preds is None else "`target`"
            raise ValueError(
                f"{missing} must be given unless `ranks` are, got None. "
                "Give `preds` and `target`, or `ranks` alone."
            )
        sizes = check_shape("preds", preds, "N C", floating=True)
        check_shape("target", target, "N", sizes, dtype=torch.int64)
        return score_ranks(preds, target, ties=self.ties)

    @abstractmethod
    def _count(self, ranks: Tensor, target_feedback: Tensor | None, target_seen: Tensor | None) -> None:
        """Add the rows of this metric's population to its states."""


class TargetCount(RankMetric):
    """The number of targets in a population; report it beside every mean over that population.

    Args:
        population: `listened` or `skipped`.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        among: `all` targets, only those that the session already held (`repeat`), or only new ones
            (`explore`).
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is unknown or out of range.

    Examples:
        >>> import torch
        >>> metric = TargetCount("skipped")
        >>> metric(ranks=torch.tensor([5, 1, 2]), target_feedback=torch.tensor([-1.0, 1.0, -0.5]))
        tensor(2.)
    """

    plot_upper_bound = None

    def __init__(
        self,
        population: Population = "listened",
        *,
        skip_threshold: float = 0.0,
        among: Among = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(skip_threshold=skip_threshold, among=among, **kwargs)
        check_choice("population", population, get_args(Population))
        self.population: Population = population
        self._targets = self._add_sum("targets", population)

    def _count(self, ranks: Tensor, target_feedback: Tensor | None, target_seen: Tensor | None) -> None:
        self._increase(
            self._targets, self._members(self.population, ranks, target_feedback, target_seen).sum()
        )

    def compute(self) -> Tensor:
        """Return the number of targets so far, as float32, because Lightning warns about logged integers."""
        return self._sum(self._targets).float()


class TopKMetric(RankMetric):
    """Mean over a population of a gain that is 0 beyond rank k.

    Its states count the targets of each rank up to k, in half steps, and all targets. `compute` applies the
    gain to the ranks, so metrics of one population and k share their states.

    Args:
        top_k: k, at least 1.
        ties: The rule for equal scores; see `score_ranks`.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        among: `all` targets, only those that the session already held (`repeat`), or only new ones
            (`explore`).
        kwargs: Settings of `torchmetrics.Metric`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is unknown or out of range.
    """

    population: ClassVar[Population] = "listened"

    def __init__(
        self,
        top_k: int = 10,
        *,
        ties: TieRule = "pessimistic",
        skip_threshold: float = 0.0,
        among: Among = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(ties=ties, skip_threshold=skip_threshold, among=among, **kwargs)
        check_integer("top_k", top_k)
        self.top_k = top_k
        self._histogram = self._add_sum("histogram", self.population, 2 * top_k - 1)
        self._targets = self._add_sum("targets", self.population)

    def _count(self, ranks: Tensor, target_feedback: Tensor | None, target_seen: Tensor | None) -> None:
        members = self._members(self.population, ranks, target_feedback, target_seen)
        # Not `bincount`, for whose size the host would wait on a GPU.
        at_rank = (ranks[:, None] == self._ranks(ranks.device)) & members[:, None]  # [N, 2 * top_k - 1]
        self._increase(self._histogram, at_rank.sum(dim=0))
        self._increase(self._targets, members.sum())

    def compute(self) -> Tensor:
        """Return the mean gain over all targets so far; NaN without any."""
        histogram = self._sum(self._histogram)
        gains = self._gain(self._ranks(histogram.device))
        return (histogram * gains).sum() / self._sum(self._targets)

    def _ranks(self, device: torch.device) -> Tensor:
        """Return the ranks of possible hits: 1, 1.5 (a mean tie), 2, up to k."""
        return torch.arange(2, 2 * self.top_k + 1, device=device).float() / 2

    @abstractmethod
    def _gain(self, ranks: Tensor) -> Tensor:
        """Return the gain at each rank."""


class HitRate(TopKMetric):
    """HR@k: the share of listened targets among the first k. Higher is better.

    Arguments as in `TopKMetric`; formula in `skipcl_lightning.functional.hit_rate`.

    Examples:
        >>> metric = HitRate(top_k=2)
        >>> metric.update(ranks=torch.tensor([1, 3, 2]), target_feedback=torch.tensor([1.0, 1.0, -1.0]))
        >>> metric.compute()
        tensor(0.5000)
        >>> HitRate(top_k=1)(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        tensor(0.5000)
    """

    higher_is_better = True

    def _gain(self, ranks: Tensor) -> Tensor:
        return hit_rate(ranks, top_k=self.top_k)


class NDCG(TopKMetric):
    """NDCG@k: the mean of 1 / log2(rank + 1) of the listened targets. Higher is better.

    Arguments as in `TopKMetric`; formula in `skipcl_lightning.functional.ndcg`.

    Examples:
        >>> NDCG(top_k=3)(ranks=torch.tensor([1, 3, 4]))
        tensor(0.5000)
    """

    higher_is_better = True

    def _gain(self, ranks: Tensor) -> Tensor:
        return ndcg(ranks, top_k=self.top_k)


class MRR(TopKMetric):
    """MRR@k: the mean reciprocal rank of the listened targets. Higher is better.

    Arguments as in `TopKMetric`; formula in `skipcl_lightning.functional.mrr`.

    Examples:
        >>> MRR(top_k=2)(ranks=torch.tensor([1, 2, 3]))
        tensor(0.5000)
    """

    higher_is_better = True

    def _gain(self, ranks: Tensor) -> Tensor:
        return mrr(ranks, top_k=self.top_k)


class MAP(TopKMetric):
    """MAP@k of the listened targets, which equals MRR@k: each has one target. Higher is better.

    Arguments as in `TopKMetric`; formula in `skipcl_lightning.functional.average_precision`.

    Examples:
        >>> MAP(top_k=2)(ranks=torch.tensor([1, 2, 3]))
        tensor(0.5000)
    """

    higher_is_better = True

    def _gain(self, ranks: Tensor) -> Tensor:
        return average_precision(ranks, top_k=self.top_k)


class SkipHitRate(HitRate):
    """SkipHitRate@k: the share of skipped targets among the first k. Lower is better.

    Arguments as in `TopKMetric`; formula in `skipcl_lightning.functional.hit_rate`.

    Examples:
        >>> metric = SkipHitRate(top_k=2)
        >>> metric(ranks=torch.tensor([1, 2, 3]), target_feedback=torch.tensor([1.0, -1.0, -0.2]))
        tensor(0.5000)
    """

    higher_is_better = False
    population = "skipped"


class SkipMRR(MRR):
    """SkipMRR@k: the mean reciprocal rank of the skipped targets. Lower is better.

    Arguments as in `TopKMetric`; formula in `skipcl_lightning.functional.mrr`.

    Reference:
        Seshadri, Shashaani, Knees: Enhancing Sequential Music Recommendation with Negative
        Feedback-informed Contrastive Learning, RecSys 2024, doi 10.1145/3640457.3688188.

    Examples:
        >>> metric = SkipMRR(top_k=2)
        >>> metric(ranks=torch.tensor([1, 2, 3]), target_feedback=torch.tensor([1.0, -1.0, -0.2]))
        tensor(0.2500)
    """

    higher_is_better = False
    population = "skipped"
