"""A trained model outside training: a folder with weights and graphs, the Hugging Face Hub, an item index."""

from skipcl_lightning.export.folder import export_model, load_export

__all__ = ["export_model", "load_export"]
