"""Command `skipcl export`: a trained model as a folder for use without the training code."""

from pathlib import Path

from rich.console import Console

from skipcl_lightning.export import export_model
from skipcl_lightning.recommender import Recommender

__all__ = ["export"]


def export(checkpoint: Path, folder: Path, onnx: bool = True, pt2: bool = True) -> None:
    """Write a trained model to a folder: weights, items with their vectors, and graphs.

    Args:
        checkpoint: The checkpoint of a trained model, such as checkpoints/best.ckpt.
        folder: The new folder.
        onnx: Write model.onnx, for onnxruntime.
        pt2: Write model.pt2, for torch.export.load.

    Raises:
        FileExistsError: The folder exists.
        FileNotFoundError: There is no such checkpoint.
        ImportError: The extra `export` is not installed.
        ValueError: The checkpoint cannot be used, or a graph would give other results than the model.
    """
    recommender = Recommender.from_checkpoint(checkpoint)
    written = export_model(recommender.scorer, recommender.encoder, folder, onnx=onnx, pt2=pt2)
    lines = [f"{path.name}: {path.stat().st_size:,} bytes" for path in sorted(written.iterdir())]
    if recommender.scorer.transition_weight > 0:
        lines.append(
            "Vectors and graphs know no transitions, so they rank otherwise than `skipcl recommend`. "
            "model.safetensors has them; the guide's page on export adds them to the scores."
        )
    Console().print("\n".join([f"{recommender} in {written}", *lines]), markup=False, highlight=False)
