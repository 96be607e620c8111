"""Commands `skipcl fit`, `validate`, `test` and `predict`, based on LightningCLI."""

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

# No default parts: jsonargparse would pass all settings of a default part to the part that replaces it.
MODEL = {"class_path": "skipcl_lightning.SkipCLModule"}
DATA = {"class_path": "skipcl_lightning.data.SessionDataModule"}
# A small log has fewer than Lightning's default of 50 batches; Lightning would log nothing and warn.
TRAINER = {"log_every_n_steps": 1}


class TrainingCLI(LightningCLI):
    """LightningCLI for any LightningModule and LightningDataModule, `SkipCLModule` by default.

    Args:
        arguments: The arguments of the command line after `skipcl`.
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
            # The module makes its own optimizers, and its checkpoints need no settings of the parser.
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return, for each command, the arguments of the Trainer's method that the CLI itself passes."""
        given = {"model", "datamodule", "train_dataloaders", "val_dataloaders", "dataloaders"}
        return dict.fromkeys(("fit", "validate", "test", "predict"), given)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:  # noqa: ARG002
        """Parse the command line given at construction; `args` is unused."""
        self.config = parser.parse_args(self.arguments)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set the default model and data, and link the number of items from the data to the model."""
        parser.set_defaults({"model": MODEL, "data": DATA})
        # jsonargparse omits the link if the data or the model has no `num_items`.
        parser.link_arguments("data.num_items", "model.init_args.num_items", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Silence Lightning's warning about the checkpoint folder in runs that only evaluate."""
        if self.subcommand != "fit":
            warnings.filterwarnings("ignore", message="The dirpath has changed from")

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; exit with a short message if a setting or a file is wrong."""
        try:
            if output := self._get(self.config, "output"):
                RecommendationWriter(output)  # Check the path before any work starts.
            super().instantiate_classes()
            self._check_num_items()
        except (ValueError, OSError, pl.exceptions.PolarsError) as error:
            raise SystemExit(f"skipcl {self.subcommand}: {root_cause(error)}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with extra arguments; it logs to a CSV file unless another logger is set."""
        settings = self._get(self.config_init, "trainer")
        # Not set as the parser's default: a logger of another class would inherit its `name`. Lightning's
        # own default depends on which packages are installed.
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
        # Lightning would override the configuration with the checkpoint's hyperparameters, in a format that
        # only `load_from_checkpoint_support` writes. The weights are still loaded.
        pass


def _watch_nothing(trainer: Trainer) -> None:
    """Remove early stopping and checkpoint selection on validation metrics, which are not computed."""
    kept: list[Any] = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # typed elsewhere
        monitor = getattr(callback, "monitor", None) or ""
        if isinstance(callback, EarlyStopping) and monitor.startswith("val/"):
            continue
        if isinstance(callback, ModelCheckpoint) and monitor.startswith("val/"):
            callback.monitor = None
        kept.append(callback)
    trainer.callbacks = kept  # type: ignore[attr-defined]
    rank_zero_info("Validation is off: training does not stop early, and the latest checkpoint is kept.")


def run_training(arguments: Sequence[str]) -> Any:
    """Run a training command with its settings; return the CLI with its model, data module and trainer."""
    return TrainingCLI(arguments)
