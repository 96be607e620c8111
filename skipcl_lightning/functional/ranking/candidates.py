"""Ranks among sampled candidates, for comparison with papers that report them."""

import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer, check_shape
from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.functional.ranking.ranks import TieRule, score_ranks

__all__ = ["CandidateSampler", "candidate_ranks", "sample_candidates"]

CandidateSampler = Literal["uniform", "popularity"]

_WARNING = (
    "Ranks among sampled candidates order models differently from ranks among the whole catalogue, even in "
    "expectation (Krichene and Rendle: On Sampled Metrics for Item Recommendation, KDD 2020, "
    "doi 10.1145/3394486.3403226). Use them only to compare with a paper that reports them."
)


def sample_candidates(
    target: Tensor,
    num_candidates: int,
    num_items: int,
    *,
    sampler: CandidateSampler = "uniform",
    item_counts: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the items among which each target is ranked, and warn that such ranks mislead.

    Args:
        target: [N] int64 in 1..V.
        num_candidates: n, items drawn for each target, with replacement.
        num_items: V, at least 2.
        sampler: `uniform`, or in proportion to `popularity`.
        item_counts: [V + 1] int64, the count of each item in the training set; for `popularity` only.
        generator: The source of randomness; None for torch's global generator.

    Returns:
        [N, n] int64 in 0..V, never a row's target; by popularity, 0 where the target was drawn.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: A setting is out of range, or `item_counts` is given or missing against the sampler.

    Reference:
        Krichene and Rendle: On Sampled Metrics for Item Recommendation, KDD 2020, doi
        10.1145/3394486.3403226.

    Examples:
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     sample_candidates(torch.tensor([2, 1]), 3, num_items=2)
        tensor([[1, 1, 1],
                [2, 2, 2]])
    """
    sizes = check_shape("target", target, "N", dtype=torch.int64)
    check_integer("num_candidates", num_candidates)
    check_integer("num_items", num_items, minimum=2)
    check_choice("sampler", sampler, get_args(CandidateSampler))
    if (item_counts is None) == (sampler == "popularity"):
        raise ValueError(
            f"`item_counts` must be given for the sampler 'popularity' and no other, got {sampler!r} "
            f"{'without' if item_counts is None else 'with'} them. `datamodule.item_counts` are such counts."
        )
    warnings.warn(_WARNING, stacklevel=2)
    shape = (sizes["N"], num_candidates)
    if item_counts is None:
        drawn = torch.randint(1, num_items, shape, device=target.device, generator=generator)
        # Drawn from V - 1 numbers; those from the target on move up by one.
        return drawn + (drawn >= target[:, None])
    check_shape("item_counts", item_counts, "V+1", {"V+1": num_items + 1}, dtype=torch.int64)
    weights = item_counts.to(target.device, torch.float64)
    weights[PADDING_INDEX] = 0
    # Not `multinomial`, which is limited to 2^24 categories.
    ends = weights.cumsum(0)
    if item_counts.device.type == "cpu" and not ends[-1] > 0:
        raise ValueError(
            "`item_counts` must have a count above 0, got none. Count the plays of the training set."
        )
    places = torch.rand(shape, device=target.device, generator=generator, dtype=torch.float64) * ends[-1]
    drawn = torch.searchsorted(ends, places, right=True).clamp(max=num_items)
    return torch.where(drawn == target[:, None], PADDING_INDEX, drawn)


def candidate_ranks(
    target_scores: Tensor, scores: Tensor, candidates: Tensor, *, ties: TieRule = "pessimistic"
) -> Tensor:
    """Return the rank of each target among its own candidates.

    Args:
        target_scores: [N] floating point.
        scores: [N, n] floating point, of the candidates.
        candidates: [N, n] int64; 0 is no candidate.
        ties: The rule for equal scores; see `score_ranks`.

    Returns:
        [N] ranks in 1..n + 1: int64, or float32 for `mean`. A target whose score is NaN ranks n + 1.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Shapes disagree or the rule is unknown.

    Examples:
        >>> scores, candidates = torch.tensor([[0.9, 0.1, 0.7]]), torch.tensor([[4, 7, 0]])
        >>> candidate_ranks(torch.tensor([0.5]), scores, candidates)
        tensor([2])
    """
    sizes = check_shape("target_scores", target_scores, "N", floating=True)
    sizes = check_shape("scores", scores, "N n", sizes, floating=True)
    check_shape("candidates", candidates, "N n", sizes, dtype=torch.int64)
    scores = torch.where(candidates == PADDING_INDEX, -torch.inf, scores)
    together = torch.cat([target_scores[:, None], scores], dim=1)  # [N, 1 + n]
    return score_ranks(together, torch.zeros_like(candidates[:, 0]), ties=ties)
