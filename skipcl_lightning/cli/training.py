"""Commands `skipcl fit`, `validate`, `test` and `predict`, based on LightningCLI."""

import re
import sys
import traceback
import warnings
from argparse import Action
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc import locate
from types import MappingProxyType
from typing import IO, Any, NoReturn

import polars as pl
import torch
from jsonargparse import DefaultHelpFormatter, Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
)
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from skipcl_lightning._files import newest_first, newest_whole, open_checkpoint, write_whole
from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.cli import suggest
from skipcl_lightning.cli.configs import expand_arguments, parser_mode
from skipcl_lightning.cli.predictions import RecommendationWriter, SessionTrainer
from skipcl_lightning.data.prepare.inputs import CHECKPOINT_KEY
from skipcl_lightning.heads import NEXT_ITEM_LOSSES, SKIP_HEADS
from skipcl_lightning.module import SkipCLModule
from skipcl_lightning.module.checkpoint import DIALS
from skipcl_lightning.module.training_run import keep_checkpoints_whole

__all__ = ["ShortProgressBar", "TrainingCLI", "run_training"]

# No default parts: jsonargparse would pass all settings of a default part to the part that replaces it.
MODEL = {"class_path": "skipcl_lightning.SkipCLModule"}
# Of the model that only checks its settings.
FEW_ITEMS = 2
DATA = {"class_path": "skipcl_lightning.data.SessionDataModule"}
# A small log has fewer than Lightning's default of 50 batches; Lightning would log nothing and warn.
TRAINER = {"log_every_n_steps": 1}
# jsonargparse would list all the hundreds of subclasses of `torch.nn.Module`.
PARTS: Mapping[str, Mapping[str, type]] = MappingProxyType(
    {
        "backbone": BACKBONES,
        "skip_head": SKIP_HEADS,
        "heads": SKIP_HEADS,
        "next_item_loss": NEXT_ITEM_LOSSES,
    }
)
# Lightning gives the metrics about 17 of 80 columns.
SHORT_METRICS = {"train/loss": "loss", "val/skip_hit_rate@": "SkipHR@", "val/hit_rate@": "HR@"}
# A longer line of help or of an error lists all classes or settings.
LONGEST_LINE = 400


class ShortHelp(DefaultHelpFormatter):
    """Help formatter that names only the classes that suit an argument."""

    def _get_help_string(self, action: Action) -> str:
        part = PARTS.get(action.dest.rpartition(".")[2])
        if part is None:
            return _cut_lines(super()._get_help_string(action))
        return f"{action.help} (one of {', '.join(part)}, or the path of a class of your own)"


class TrainingParser(LightningArgumentParser):
    """LightningCLI's parser with a one-line usage and short error messages."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"formatter_class": ShortHelp, "parser_mode": parser_mode(), **settings})

    def print_usage(self, file: IO[str] | None = None) -> None:  # type: ignore[override]  # argparse's own type
        """Print the usage in one line, to standard output by default; all settings would take a hundred."""
        prog = self.prog.replace(" [options]", "")
        (file or sys.stdout).write(f"usage: {prog} --config CONFIG [--SETTING VALUE …]\n")

    def instantiate_classes(self, cfg: Any, **settings: Any) -> Any:
        """Call `instantiate`: Lightning 2.6 still uses this old name, for which jsonargparse warns."""
        return self.instantiate(cfg, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print a shortened message of jsonargparse and the cause `ex` of the error, and exit."""
        text, cause = _cut_lines(message), _root_cause(ex) if ex else None
        text = text if cause is None or cause is ex else f"{text}\nThe cause: {cause}"
        suggestion = _suggest_part(str(cause or message))
        super().error(f"{text}.{suggestion}" if suggestion else text, ex)


class ShortProgressBar(RichProgressBar):
    """Lightning's progress bar, with short names of our metrics, each on a line of its own."""

    def __init__(self) -> None:
        super().__init__(theme=RichProgressBarTheme(metrics_text_delimiter="\n"))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics without the version of the run, which is the name of its folder."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {_shorten_metric(name): value for name, value in metrics.items()}


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
        # Other commands do not know it, and a run that resumes does not begin with it again.
        config = self.config.clone()
        config.pop("init_from", None)
        config.pop("compile", None)
        text = self.parser.dump(config, skip_unset=False)
        write_whole(file, lambda place: place.write_text(text, encoding="utf-8"))


class TrainingCLI(LightningCLI):
    """LightningCLI for any LightningModule and LightningDataModule, `SkipCLModule` by default."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(expand_arguments(arguments))
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

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning calls it on the object
        """Return the arguments of the Trainer's method that the CLI itself passes, of the command that runs.

        The parser of each further command would take as long as that of this one.
        """
        given = {"model", "datamodule", "train_dataloaders", "val_dataloaders", "dataloaders", "weights_only"}
        return {self.arguments[0]: given}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:  # noqa: ARG002
        """Parse the command line given at construction; `args` is unused."""
        self.config = parser.parse_args(self.arguments)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set the default model and data, and link what the data know from the data to the model."""
        parser.set_defaults({"model": MODEL, "data": DATA})
        # jsonargparse omits a link if the data or the model does not have it.
        for name in ("num_items", "context_sizes", "item_features"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Silence Lightning's warning that the checkpoint is from another run's folder, as it should be."""
        warnings.filterwarnings("ignore", message="The dirpath has changed from")

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; exit with a short message if a setting or a file is wrong."""
        try:
            # All that can be checked without the data comes first.
            self._check_parts()
            if output := self._get(self.config, "output"):
                RecommendationWriter(output)
            self._find_checkpoint()
            self._check_model()
            self._take_vocabulary()
            super().instantiate_classes()
            self._check_num_items()
        except (ValueError, OSError, pl.exceptions.PolarsError) as error:
            raise SystemExit(f"skipcl {self.subcommand}: {_root_cause(error)}") from error

    def _check_parts(self) -> None:
        """Raise unless the model and the trainer have settings; jsonargparse lets a number pass."""
        for part in ("model", "trainer"):
            given = self._get(self.config, part)
            if not isinstance(given, Namespace):
                raise ValueError(  # noqa: TRY004 - as for each other wrong setting
                    f"`--{part}` must be a mapping of settings, got {given!r}. See `skipcl configs`."
                )

    def _find_checkpoint(self) -> None:
        """Check that checkpoints exist, and replace `last` and `best` by the path of the newest one."""
        first = self._get(self.config, "init_from")
        if first is not None:
            if self._get(self.config, "ckpt_path") is not None:
                raise ValueError(
                    "`--init_from` must be left out beside `--ckpt_path`, got both. `--ckpt_path` continues "
                    "a run, and `--init_from` begins another one with its weights."
                )
            self._find_newest("init_from")
            _check_checkpoint("init_from", self._get(self.config, "init_from"))
        self._find_newest("ckpt_path")
        path = self._get(self.config, "ckpt_path")
        if path is None and self.subcommand != "fit" and self._trains_skipcl():
            raise ValueError(
                f"`--ckpt_path` must be the checkpoint of a trained model for {self.subcommand}, got none. "
                "Give a file, or `best` for the newest one of `skipcl fit`."
            )
        if path is not None:
            _check_checkpoint("ckpt_path", path)

    def _find_newest(self, name: str) -> None:
        """Replace `last` and `best` by the path of the newest such checkpoint."""
        path = self._get(self.config, name)
        if path not in ("last", "best"):
            return
        root = Path(self._get(self.config, "trainer").get("default_root_dir") or ".")
        found = newest_first(root.glob(f"**/checkpoints/{path}.ckpt"))
        if not found:
            raise ValueError(
                f"`--{name}` must be a checkpoint, got {path!r}, but there is no "
                f"checkpoints/{path}.ckpt below {str(root)!r}. Train with `skipcl fit`, or give the file."
            )
        taken = found[0]
        if path == "last":
            others = newest_first(found[0].parent.glob("*.ckpt"))
            # Without a whole one, reading the newest tells what is wrong with it.
            taken = newest_whole([taken, *(other for other in others if other != taken)]) or taken
        self.config[self.subcommand][name] = str(taken)

    def _take_vocabulary(self) -> None:
        """Take the checkpoint's vocabulary for the data, unless another one is set for this log."""
        first, data = self._get(self.config, "init_from"), self._get(self.config, "data")
        path = self._get(self.config, "ckpt_path") if first is None else first
        settings = {} if data is None else data.get("init_args", {})
        if path is None or "vocabulary" not in settings:
            return
        # The vocabulary in the configuration of a training run is the one from which that run started.
        of_this_log = settings["vocabulary"] is not None and not self._names("data", "log")
        if (of_this_log and first is None) or self._names("data", "vocabulary") or not Path(path).is_file():
            return
        # Without the weights; a model that was fitted with other data has no vocabulary.
        known = open_checkpoint(path, records="settings").get(CHECKPOINT_KEY, {}).get("encoder")
        if known is not None:
            settings["vocabulary"] = str(path)
            if not self._names("data", "new_items"):
                # A store has its own setting.
                is_store = isinstance(settings["log"], str) and Path(settings["log"]).expanduser().is_dir()
                settings["new_items"] = "append" if self.subcommand == "fit" and not is_store else None

    def _names(self, part: str, setting: str) -> bool:
        """Return whether the command line, beside its configurations, sets a setting of a part."""
        return any(re.match(rf"--{part}\.(init_args\.)?{setting}\b", one) for one in self.arguments)

    def _trains_skipcl(self) -> bool:
        """Return whether the model is ours; another may need no checkpoint."""
        model = locate(self._get(self.config, "model")["class_path"])
        return isinstance(model, type) and issubclass(model, SkipCLModule)

    def _check_model(self) -> None:
        """Build the model once before the data, so that wrong settings cost no time."""
        settings = self._get(self.config, "model").clone()
        if settings["class_path"] != MODEL["class_path"]:
            return
        settings["init_args"]["num_items"] = FEW_ITEMS
        settings["init_args"]["id_dropout"] = 0.0  # it needs the content from the data
        parser = TrainingParser()
        parser.add_lightning_class_args(SkipCLModule, "model", subclass_mode=True)
        with torch.random.fork_rng():
            parser.instantiate(Namespace(model=settings))  # type: ignore[no-untyped-call]

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        given = super()._prepare_subcommand_kwargs(subcommand)
        # Always in `SessionTrainer`'s own methods; no setting lets a command run the code of a checkpoint.
        return given | ({"weights_only": True} if subcommand in ("validate", "test") else {})

    def after_fit(self) -> None:
        """Print the result of training, and the commands that use it."""
        if self.trainer.is_global_zero:
            sys.stdout.write(_describe_run(self.trainer))

    def after_predict(self) -> None:
        """Print where the recommendations are."""
        # mypy does not find the list, because Lightning types it elsewhere.
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        writers = [one for one in callbacks if isinstance(one, RecommendationWriter)]
        if writers and self.trainer.is_global_zero:
            sys.stdout.write(f"Recommendations: {writers[-1].path}\n")

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except SystemExit:
            # Lightning exits so after Ctrl-C.
            if subcommand == "fit" and self.trainer.interrupted and self.trainer.is_global_zero:
                sys.stdout.write(_describe_interruption(self.trainer))
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with extra arguments, and our logger and progress bar unless others are set."""
        settings = self._get(self.config_init, "trainer")
        # Not set as the parser's default: a logger of another class would inherit its `name`. Lightning's
        # own default depends on which packages are installed.
        if settings["logger"] is None:
            kwargs["logger"] = CSVLogger(settings["default_root_dir"] or ".", name="lightning_logs")
        callbacks = settings["callbacks"] or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        named = [name for name in DIALS if self._names("model", name)]
        if named and self._trains_skipcl():
            given = self._get(self.config, "model")["init_args"]
            callbacks = [*callbacks, _set_dials({name: given[name] for name in named}, self.subcommand)]
        kwargs["callbacks"] = callbacks
        # Lightning refuses a second bar, and one that is switched off.
        if settings["enable_progress_bar"] is not False and not any(
            isinstance(one, ProgressBar) for one in callbacks
        ):
            kwargs["callbacks"] = [*callbacks, ShortProgressBar()]
        trainer = super().instantiate_trainer(**kwargs)
        keep_checkpoints_whole(trainer)  # for models of the user's own too
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


def _check_checkpoint(name: str, path: str | Path) -> None:
    """Raise unless a checkpoint is whole, before the data take their time."""
    if "://" not in str(path) and not Path(path).exists():
        raise ValueError(f"`--{name}` must be a file that exists, got {str(path)!r}.")
    # A folder of shards is the strategy's own.
    if not Path(path, "meta.pt").is_file():
        open_checkpoint(path)


def _set_dials(values: dict[str, Any], subcommand: str | None) -> LambdaCallback:
    """Return a callback that sets what the command line names, after a checkpoint with its own is loaded."""

    def change(trainer: Trainer, pl_module: SkipCLModule) -> None:  # noqa: ARG001 - Lightning's
        for name, value in values.items():
            setattr(pl_module, name, value)

    begin = "validation" if subcommand == "validate" else subcommand
    return LambdaCallback(**{f"on_{begin}_start": change})


def _describe_run(trainer: Trainer) -> str:
    """Return a summary of a training run, and the commands that use its checkpoint."""
    epochs = f"{trainer.current_epoch} epoch{'s' * (trainer.current_epoch != 1)}"
    lines = [f"Trained {epochs}, {trainer.global_step} steps: {_why_stopped(trainer)}."]
    checkpoint = trainer.checkpoint_callback
    if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_path:
        score = checkpoint.best_model_score
        best = "" if score is None else f" ({checkpoint.monitor} {float(score):.4f})"
        path = _shorten(checkpoint.best_model_path)
        lines.append(f"Best checkpoint{best}: {path}")
        config = Path(checkpoint.best_model_path).parents[1] / "config.yaml"
        if config.exists():
            lines.append(f"Run folder: {_shorten(config.parent)}")
            names = ("test", "predict")
            lines += [f"  skipcl {name} --config {_shorten(config)} --ckpt_path {path}" for name in names]
    return "\n".join(["", *lines, ""])


def _describe_interruption(trainer: Trainer) -> str:
    """Return how to resume a training run that was interrupted."""
    checkpoint = trainer.checkpoint_callback
    path = getattr(checkpoint, "last_model_path", "") or getattr(checkpoint, "best_model_path", "")
    if not path:
        return "\nInterrupted before the first checkpoint.\n"
    config = _shorten(Path(path).parents[1] / "config.yaml")
    return f"\nInterrupted. To resume:\n  skipcl fit --config {config} --ckpt_path {_shorten(path)}\n"


def _why_stopped(trainer: Trainer) -> str:
    for callback in trainer.early_stopping_callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopped_epoch:
            return f"{callback.monitor} did not improve in {callback.patience} epochs (early stopping)"
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return "max_steps reached"
    return "max_epochs reached" if trainer.current_epoch == trainer.max_epochs else "stopped"


def _shorten(path: str | Path) -> str:
    """Return a path relative to the current folder, if it is inside."""
    path = Path(path)
    inside = path.is_absolute() and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd()) if inside else path)


def run_training(arguments: Sequence[str]) -> Any:
    """Run a training command with its settings; return the CLI with its model, data module and trainer."""
    try:
        return TrainingCLI(arguments)
    except ValueError as error:
        # The name of a ready configuration; the CLI itself reports later errors.
        raise SystemExit(f"skipcl {arguments[0]}: {error}") from error


def _suggest_part(message: str) -> str:
    """Return a sentence that suggests the closest name of a built-in part for the words of a message."""
    known = sorted({name for names in PARTS.values() for name in names})
    words = [word for word in re.findall(r"\w+", message) if word not in known and not word.islower()]
    return next((found for word in words if (found := suggest(word, known))), "")


def _root_cause(error: BaseException) -> BaseException:
    """Return the first error of a chain that jsonargparse did not raise, or the start of the chain."""
    while error.__cause__ is not None and _raised_in(error).startswith("jsonargparse"):
        error = error.__cause__
    return error


def _raised_in(error: BaseException) -> str:
    """Return the name of the module that raised an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


def _shorten_metric(name: str) -> str:
    for long, short in SHORT_METRICS.items():
        name = name.replace(long, short)
    return name


def _cut_lines(text: str) -> str:
    """Cut the lines of help or of an error that would fill a screen."""
    lines = text.splitlines()
    return "\n".join(line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…" for line in lines)
