"""Callback that saves the configuration of a run beside its checkpoints."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

__all__ = ["SaveRunConfig"]


class SaveRunConfig(SaveConfigCallback):
    """Callback that writes `config.yaml` into the folder of a training run.

    Lightning's own callback writes at every stage into the logger's folder, for some loggers the current one.
    This callback writes only into a folder of one run, so it never overwrites a user's file.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Write the configuration at the start of training; do nothing at other stages."""
        if stage != "fit" or trainer.logger is None or self.already_saved:
            return
        self.already_saved = True
        # Every process must read it, since it is a broadcast.
        folder = trainer.log_dir
        if not trainer.is_global_zero:
            return
        logger = trainer.logger
        if folder is None or not isinstance(logger, CSVLogger | TensorBoardLogger):
            # Lightning's folder for checkpoints.
            root = logger.save_dir or trainer.default_root_dir
            folder = str(Path(root) / str(logger.name) / str(logger.version))
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = Path(folder) / self.config_filename
        self.parser.save(self.config, file, skip_unset=False, overwrite=True, multifile=self.multifile)
