"""Baselines that a neural model must beat, under the same evaluation."""

from skipcl_lightning.evaluation.baselines.factorisation import BPR, WRMF
from skipcl_lightning.evaluation.baselines.markov import LastItemMarkov
from skipcl_lightning.evaluation.baselines.neighbours import SessionKNN
from skipcl_lightning.evaluation.baselines.popularity import Popularity, SessionPopularity
from skipcl_lightning.evaluation.baselines.skip_rates import (
    ItemAndLastSkipRate,
    ItemSkipRate,
    LastSkipRate,
)

__all__ = [
    "BPR",
    "WRMF",
    "ItemAndLastSkipRate",
    "ItemSkipRate",
    "LastItemMarkov",
    "LastSkipRate",
    "Popularity",
    "SessionKNN",
    "SessionPopularity",
]
