"""A wrong argument is an error that names it, in all public functions, heads and metrics."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from skipcl_lightning import functional, heads, metrics
from skipcl_lightning.batch import SessionBatch

B, L, N, D, V, K, S = 2, 3, 4, 5, 6, 2, 3
ITEMS = torch.tensor([[1, 2, 3], [4, 5, 0]])
FEEDBACK = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 0.0]])
SESSIONS = SessionBatch(ITEMS, FEEDBACK)
CONTRAST = functional.session_contrast(SESSIONS)
COUNTS = torch.tensor([0, 5, 4, 3, 2, 1, 1])
SOME_ITEMS = torch.ones(N, S, dtype=torch.int64)
TRUTH = torch.tensor([True, False, True, False])
INTEGERS = torch.arange(N)

# One word is one thing everywhere, so an argument's name says what is right.
RIGHT = {
    "query": torch.ones(N, D),
    "queries": torch.ones(N, D),
    "item_embeddings": torch.ones(V + 1, D),
    "target": torch.tensor([1, 2, 3, 6]),
    "negatives": torch.tensor([2, 5]),
    "weight": torch.ones(N),
    "negative_log_probability": torch.zeros(K),
    "chunk_size": 2,
    "regularisation": 0.5,
    "calibration": 0.5,
    "keys": torch.ones(B, L, D),
    "opposing": torch.ones(B, L, D),
    "session_vectors": torch.ones(B, L, D),
    "item_vectors": torch.ones(B, L, D),
    "item_bias": torch.ones(B, L),
    "samples": torch.tensor([2, 5]),
    "items": ITEMS,
    "feedback": FEEDBACK,
    "explicit_feedback": FEEDBACK,
    "listened_mask": FEEDBACK > 0,
    "cloze_mask": FEEDBACK > 0,
    "valid_mask": ITEMS > 0,
    "sequence": torch.ones(B, L, D),
    "temperature": 0.5,
    "num_hardest": 1,
    "mined_positive_weight": 0.5,
    "reduction": "sum",
    "anchors": "all",
    "skip_weights": "strength",
    "dislike_weight": 2.0,
    "like_weight": 2.0,
    "skip_threshold": 0.5,
    "top_k": 2,
    "num_items": V,
    "item_counts": COUNTS,
    "counts": COUNTS,
    "information": torch.ones(V + 1),
    "recommended": torch.tensor([[1, 2]]),
    "points": torch.randn(N, D, generator=torch.Generator().manual_seed(0)),
    "left": torch.ones(N, D),
    "right": torch.ones(N, D),
    "ranks": INTEGERS + 1,
    "scores": torch.ones(N, V + 1),
    "target_feedback": torch.tensor([1.0, -1.0, 1.0, -1.0]),
    "target_seen": TRUTH,
    "skip_predictions": torch.tensor([0.1, 0.2, 0.3, 0.4]),
    "target_scores": torch.ones(N),
    "skip_scores": torch.ones(N, S),
    "skip_mask": torch.ones(N, S, dtype=torch.bool),
    "exclude": torch.zeros(N, S, dtype=torch.int64),
    "retired": COUNTS > 4,
    "candidates": torch.ones(N, K, dtype=torch.int64),
    "num_candidates": 2,
    "ties": "mean",
    "sampler": "uniform",
    "rule": "next_listened",
    "probability": torch.tensor([0.1, 0.2, 0.3, 0.4]),
    "logits": torch.tensor([0.1, -0.2, 0.3, 0.4]),
    "outcome": TRUTH,
    "skipped": TRUTH,
    "correct": TRUTH,
    "session_index": INTEGERS,
    "place": INTEGERS + 1,
    "num_bins": 3,
    "num_samples": 2,
    "num_negatives": 2,
    "embedding_size": D,
    "sequence_weight": 0.5,
    "bank_size": 2,
    "vector_size": 2,
    "among": "repeat",
    "population": "skipped",
    "num_places": 2,
    "penalty": 0.5,
    "last_probability": 0.5,
    "loss": "hinge",
    "margin": 0.5,
    "weighting": "uncertainty",
    "sessions": SESSIONS,
    "contrast": CONTRAST,
    "added": functional.SparseScores(torch.ones(N, K, dtype=torch.int64), torch.ones(N, K)),
}
# A skip loss has a query for each position, and its negatives are a rule.
IN_SESSIONS = {"query": torch.ones(B, L, D), "negatives": "past"}
A_HEAD = {"weight": 0.5, "negatives": "past", "query": "item"}
OTHERS = {
    "CombinedHead": {"heads": [heads.SkipMargin(), heads.SkipInfoNCE()]},
    "ContrastSettings": IN_SESSIONS,
    "candidate_ranks": {"scores": torch.ones(N, K)},
    "draw_cloze_mask": {"candidates": ITEMS > 0, "probability": 0.5},
    "look_up_scores": {"items": SOME_ITEMS},
    "opposing_contrast": IN_SESSIONS,
    "sample_candidates": {"sampler": "popularity"},
    "skip_info_nce": {
        "query": torch.ones(B, L, D),
        "candidates": functional.Candidates(ITEMS[0], torch.ones(L, D)),
    },
    **{each: {"top_k": [2]} for each in ("RankingMetrics", "SkipRankMetrics", "session_metrics")},
    **dict.fromkeys(("skip_margin", "skip_softmax", "skip_unlikelihood"), IN_SESSIONS),
    **{each: {"items": SOME_ITEMS} for each in ("skip_pair_mask", "skip_pair_scores")},
    "HitRate.update": {"preds": torch.ones(N, V), "target": INTEGERS, "ranks": None},
    "SkipPrediction.listen_logits": {"items": SOME_ITEMS, "query": RIGHT["query"]},
    "SkipPrediction.skip_probability": {"items": SOME_ITEMS, "query": RIGHT["query"]},
}
# The ends of what is accepted, and what lies just beyond them.
ENDS = {
    "bank_size": ([0], [-1]),
    "calibration": ([0, 1], [-0.1, 1.1]),
    "chunk_size": ([1], [0]),
    "dislike_weight": ([0.01], [0]),
    "embedding_size": ([1], [0]),
    "last_probability": ([0, 1], [-0.1, 1.1]),
    "like_weight": ([0.01], [0]),
    "margin": ([0.01], [0]),
    "mined_positive_weight": ([0], [-0.1]),
    "num_bins": ([1], [0]),
    "num_candidates": ([1], [0]),
    "num_hardest": ([1], [0]),
    "num_items": ([V], [0]),
    "num_negatives": ([1], [0]),
    "num_places": ([1], [0]),
    "num_samples": ([1, V - 1], [-1]),
    "probability": ([0.01, 1], [0, 1.1]),
    "regularisation": ([0], [-0.1]),
    "sequence_weight": ([0], [-0.1]),
    "skip_threshold": ([-0.99, 1], [-1, 1.01]),
    "temperature": ([0.01, 100], [0]),
    "top_k": ([1], [0]),
    "vector_size": ([1], [0]),
    "weight": ([0], [-0.1]),
}
# Not checked: most are numbers of which each is taken alone, or a table in which nothing is looked up.
TAKE_ANY = {
    *(f"{each}.ranks" for each in ("average_precision", "hit_rate", "mrr", "ndcg", "rank_percentile")),
    *(f"{each}.skip_threshold" for each in ("next_item_targets", "next_listened", "target_positions")),
    "catalogue_coverage.counts",
    "fit_temperature.outcome",
    "last_position.sequence",
    "opposing_contrast.temperature",
    "sampling_log_probability.items",
    "rejected_candidates.items",
    "rejected_candidates.keys",
    "skip_info_nce.item_embeddings",
    "skip_softmax.item_embeddings",
}
ROOMS = {"functional": functional, "heads": heads, "metrics": metrics}


def predicting():
    head = heads.SkipPrediction(vector_size=2)
    head.materialise(RIGHT["item_embeddings"])
    return head


METHODS = {
    "HitRate.update": metrics.HitRate(2, among="repeat").update,
    "PairwiseSkipAccuracy.update": metrics.PairwiseSkipAccuracy().update,
    "SkipAUC.update": metrics.SkipAUC().update,
    "SkipAccuracyByPlace.update": metrics.SkipAccuracyByPlace().update,
    "MeanAverageAccuracy.update": metrics.MeanAverageAccuracy().update,
    "SkipCalibrationError.update": metrics.SkipCalibrationError().update,
    "CatalogueCoverage.update": metrics.CatalogueCoverage(V, 2).update,
    "Novelty.update": metrics.Novelty(COUNTS, 2).update,
    "SkipPrediction.listen_logits": predicting().listen_logits,
    "SkipPrediction.skip_probability": predicting().skip_probability,
}


def find(room, name):
    return METHODS[name] if name in METHODS else getattr(ROOMS[room], name)


def given_to(room, name):
    """A right value for each argument, or None if one is not in the tables."""
    parameters = inspect.signature(find(room, name)).parameters.values()
    table = {**RIGHT, **(A_HEAD if room == "heads" else {}), **OTHERS.get(name, {})}
    named = [each for each in parameters if each.kind is not each.VAR_KEYWORD]
    if any(each.default is each.empty and each.name not in table for each in named):
        return None
    return {each.name: table[each.name] for each in named if each.name in table}


def is_record(one):
    return inspect.isclass(one) and issubclass(one, tuple)


CASES = [
    (room, name)
    for room, module in ROOMS.items()
    for name in module.__all__
    if callable(getattr(module, name)) and not is_record(getattr(module, name)) and given_to(room, name)
] + [("metrics", name) for name in METHODS]


def wrong_values(name, value):
    """Values that are wrong in place of a right one."""
    if isinstance(value, Tensor):
        return [value[None], value.long() if value.is_floating_point() else value.float()]
    if isinstance(value, str):
        return ["nonsense"]
    return ["1", True, math.nan, *ENDS[name][1]] if isinstance(value, int | float) else []


@pytest.mark.filterwarnings("ignore:Ranks among sampled candidates")
@pytest.mark.parametrize(("room", "name"), CASES)
def test_a_wrong_argument_is_named_and_the_ends_of_its_range_are_right(room, name):
    function, given = find(room, name), given_to(room, name)
    function(**given)
    for argument, value in given.items():
        if f"{name}.{argument}" in TAKE_ANY:
            continue
        for wrong in wrong_values(argument, value):
            with pytest.raises((TypeError, ValueError), match=rf"^`{argument}` must .+, got .+"):
                function(**{**given, argument: wrong})
        if isinstance(value, int | float):
            for right in ENDS[argument][0]:
                function(**{**given, argument: right})


def test_nearly_all_public_functions_heads_and_metrics_are_tested_so():
    assert len(CASES) >= 90
