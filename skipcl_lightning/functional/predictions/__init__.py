"""Formulas that compare predicted probabilities of skips with what listeners did."""
