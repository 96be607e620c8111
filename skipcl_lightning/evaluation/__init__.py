"""What a trained model is held against: baselines without parameters, measured in the same way."""

from skipcl_lightning.evaluation.baselines import Baseline, LastItemMarkov, Popularity, evaluate_baseline

__all__ = ["Baseline", "LastItemMarkov", "Popularity", "evaluate_baseline"]
