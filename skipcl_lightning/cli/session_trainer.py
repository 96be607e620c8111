"""Lightning's Trainer, whose predictions go to a file."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from skipcl_lightning.cli.predictions import RecommendationWriter

__all__ = ["SessionTrainer"]


class SessionTrainer(Trainer):
    """Customize every aspect of training."""  # Lightning's own line, which heads the settings.

    def predict(  # type: ignore[override]  # has a setting more, and no dataloaders of their own
        self,
        model: LightningModule | None = None,
        datamodule: LightningDataModule | None = None,
        *,
        output: Path | None = Path("recommendations.parquet"),
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Write the best next tracks of every session, with external ids, to a file.

        Args:
            model: The model to predict with.
            datamodule: The sessions.
            output: The file, .parquet or .csv, with the columns session_id, rank, item_id and score; it
                appears whole or not at all. Null for a model of your own that writes elsewhere.
            ckpt_path: The checkpoint of a trained model.
            weights_only: Whether only plain tensors and values may be loaded from it.

        Returns:
            None; without `output` what Lightning gives.
        """
        writers = [] if output is None else [RecommendationWriter(output)]
        # mypy finds no such list, since Lightning types it elsewhere.
        self.callbacks.extend(writers)  # type: ignore[attr-defined]
        return super().predict(
            model,
            datamodule=datamodule,
            return_predictions=None if output is None else False,
            ckpt_path=ckpt_path,
            weights_only=weights_only,
        )
