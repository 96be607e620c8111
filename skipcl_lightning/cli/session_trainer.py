"""Lightning's Trainer, with predictions written to a file."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from skipcl_lightning.cli.predictions import RecommendationWriter

__all__ = ["SessionTrainer"]


class SessionTrainer(Trainer):
    """Customize every aspect of training."""  # Lightning's own line, the heading of the settings.

    def predict(  # type: ignore[override]  # one more setting, and no dataloaders
        self,
        model: LightningModule | None = None,
        datamodule: LightningDataModule | None = None,
        *,
        output: Path | None = Path("recommendations.parquet"),
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Write the top next items of every session, with external ids, to a file.

        Args:
            model: The model to predict with.
            datamodule: The sessions.
            output: The file, .parquet or .csv, with the columns session_id, rank, item_id and score; it
                appears only when complete. Use null if your own model writes its predictions elsewhere.
            ckpt_path: The checkpoint of a trained model.
            weights_only: Whether to load only plain tensors and values from the checkpoint.

        Returns:
            None; without `output`, the predictions as Lightning returns them.
        """
        writers = [] if output is None else [RecommendationWriter(output)]
        # mypy does not find this attribute, since Lightning types it elsewhere.
        self.callbacks.extend(writers)  # type: ignore[attr-defined]
        return super().predict(
            model,
            datamodule=datamodule,
            return_predictions=None if output is None else False,
            ckpt_path=ckpt_path,
            weights_only=weights_only,
        )
