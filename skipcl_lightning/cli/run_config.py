"""What a run was configured with, kept beside its checkpoints."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

__all__ = ["SaveRunConfig"]


class SaveRunConfig(SaveConfigCallback):
    """Writes `config.yaml` into the folder of a training run.

    Lightning's own writes it wherever the logger does, which for some is the current folder, and for every
    stage. Here it only ever goes into a folder that belongs to one run: a file of the user's is never met.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Write the configuration.

        Args:
            trainer: Lightning's.
            pl_module: The model.
            stage: Lightning's; only training writes.
        """
        if stage != "fit" or trainer.logger is None or self.already_saved:
            return
        self.already_saved = True
        # Asked on every process, since it is a broadcast.
        folder = trainer.log_dir
        if not trainer.is_global_zero:
            return
        logger = trainer.logger
        if folder is None or not isinstance(logger, CSVLogger | TensorBoardLogger):
            # Where Lightning puts the checkpoints.
            root = logger.save_dir or trainer.default_root_dir
            folder = str(Path(root) / str(logger.name) / str(logger.version))
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = Path(folder) / self.config_filename
        self.parser.save(self.config, file, skip_unset=False, overwrite=True, multifile=self.multifile)
