"""Losses that use skips: anchors, positives and negatives of sessions, and the formulas that compare them."""
