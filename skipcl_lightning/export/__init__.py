"""A trained model as a folder: weights, items and graphs for use without the training code."""

from skipcl_lightning.export.folder import export_model, load_export

__all__ = ["export_model", "load_export"]
