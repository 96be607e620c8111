"""Ranks of targets in the catalogue, the metrics that are computed from them, and nearest items."""
