"""`skipcl fit`, `validate`, `test` and `predict`: LightningCLI with the library's parts."""

import warnings
from collections.abc import Sequence
from typing import Any

import polars as pl
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info

from skipcl_lightning.cli.configs import expand_arguments
from skipcl_lightning.cli.parser import TrainingParser, root_cause
from skipcl_lightning.cli.predictions import RecommendationWriter
from skipcl_lightning.cli.run_config import SaveRunConfig
from skipcl_lightning.cli.session_trainer import SessionTrainer

__all__ = ["TrainingCLI", "run_training"]

# Without parts: jsonargparse hands the settings of a default part, all of them, on to the part that takes its
# place.
MODEL = {"class_path": "skipcl_lightning.SkipCLModule"}
DATA = {"class_path": "skipcl_lightning.data.SessionDataModule"}
# Lightning's own 50 steps are more than the batches of a small log, of which it would log none, and warn.
TRAINER = {"log_every_n_steps": 1}


class TrainingCLI(LightningCLI):
    """LightningCLI for any LightningModule and LightningDataModule, `SkipCLModule` by default.

    Args:
        arguments: What stands on the command line behind `skipcl`.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = expand_arguments(arguments)
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=SaveRunConfig,
            trainer_class=SessionTrainer,
            trainer_defaults=TRAINER,
            seed_everything_default=0,
            parser_kwargs={
                "prog": "skipcl",
                **{name: {"prog": f"skipcl {name}"} for name in self.subcommands()},
            },
            parser_class=TrainingParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            # Of the module's own making, and its checkpoints are whole without the parser's notes.
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, each with the arguments of the Trainer's method that the CLI itself gives.

        Returns:
            By command.
        """
        given = {"model", "datamodule", "train_dataloaders", "val_dataloaders", "dataloaders"}
        return dict.fromkeys(("fit", "validate", "test", "predict"), given)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:  # noqa: ARG002
        """Parse what the command line says.

        Args:
            parser: The parser of all commands.
            args: Lightning's; unused.
        """
        self.config = parser.parse_args(self.arguments)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Say what is trained if nothing else is asked for, and what one part knows of another.

        Args:
            parser: The parser of a command.
        """
        parser.set_defaults({"model": MODEL, "data": DATA})
        # Left out by jsonargparse where the data has no such attribute, or the model no such argument.
        parser.link_arguments("data.num_items", "model.init_args.num_items", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Keep quiet what Lightning says of the folder of a run that only evaluates."""
        if self.subcommand != "fit":
            warnings.filterwarnings("ignore", message="The dirpath has changed from")

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; what is wrong with a setting or a file is told in a few lines."""
        try:
            if output := self._get(self.config, "output"):
                RecommendationWriter(output)  # Before all work, not after it.
            super().instantiate_classes()
            self._check_num_items()
        except (ValueError, OSError, pl.exceptions.PolarsError) as error:
            raise SystemExit(f"skipcl {self.subcommand}: {root_cause(error)}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, which logs to a CSV file unless it is told otherwise.

        Args:
            kwargs: More arguments of the trainer.

        Returns:
            The trainer.
        """
        settings = self._get(self.config_init, "trainer")
        # Not as the parser's default, whose `name` a logger of another class would take over; and Lightning's
        # own choice depends on what else is installed.
        if settings["logger"] is None:
            kwargs["logger"] = CSVLogger(settings["default_root_dir"] or ".", name="lightning_logs")
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.limit_val_batches == 0:
            _watch_nothing(trainer)
        return trainer

    def _check_num_items(self) -> None:
        given = self._get(self.config, "model").get("init_args", {}).get("num_items")
        known = getattr(self.datamodule, "num_items", given)
        if given is not None and given != known:
            raise ValueError(
                f"`num_items` must be left alone where the data knows it, got {given} for {known}. "
                "Take it out."
            )

    def _parse_ckpt_path(self) -> None:
        # Lightning would overlay the configuration with the checkpoint's hyperparameters, in a form that only
        # its own `load_from_checkpoint_support` writes. The weights are loaded all the same.
        pass


def _watch_nothing(trainer: Trainer) -> None:
    """Drop early stopping by, and the choice of checkpoints by, metrics that no validation computes."""
    kept: list[Any] = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # as above
        monitor = getattr(callback, "monitor", None) or ""
        if isinstance(callback, EarlyStopping) and monitor.startswith("val/"):
            continue
        if isinstance(callback, ModelCheckpoint) and monitor.startswith("val/"):
            callback.monitor = None
        kept.append(callback)
    trainer.callbacks = kept  # type: ignore[attr-defined]
    rank_zero_info("Validation is off: training does not stop early, and the latest checkpoint is kept.")


def run_training(arguments: Sequence[str]) -> Any:
    """Do what the command line says.

    Args:
        arguments: The command, and its settings.

    Returns:
        The `TrainingCLI`, with the `model`, `datamodule` and `trainer` that were used.
    """
    return TrainingCLI(arguments)
