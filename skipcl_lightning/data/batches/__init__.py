"""Sampler, dataset and loader: which sessions make a batch, and how it is gathered."""
