"""Baselines that a neural model must beat, under the same evaluation."""

from skipcl_lightning.evaluation.baselines.factorisation import BPR, WRMF
from skipcl_lightning.evaluation.baselines.markov import LastItemMarkov
from skipcl_lightning.evaluation.baselines.neighbours import SessionKNN
from skipcl_lightning.evaluation.baselines.popularity import Popularity, SessionPopularity

__all__ = ["BPR", "WRMF", "LastItemMarkov", "Popularity", "SessionKNN", "SessionPopularity"]
