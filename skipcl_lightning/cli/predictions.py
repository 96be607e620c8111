"""A Trainer that may begin with the weights of a checkpoint, and writes predictions into one file."""

import shutil
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from skipcl_lightning._files import path_in_errors, write_whole
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.module import SkipCLModule

__all__ = ["RecommendationWriter", "SessionTrainer", "check_ending", "check_folder", "write_table"]

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]

# Rows to collect in memory before a part is written.
ROWS_IN_MEMORY = 500_000


def check_ending(argument: str, path: Path) -> None:
    """Raise unless a file is a table by its ending."""
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"`{argument}` must end with .csv or .parquet, got {path}.")


def check_folder(output: Path) -> None:
    """Raise unless the folder of an output exists, before there is anything to write."""
    if not output.absolute().parent.is_dir():
        raise ValueError(f"`output` must be in a folder that exists, got {output}. Make the folder first.")


def write_table(table: pl.LazyFrame, path: Path) -> None:
    """Write a table in the format of the ending."""
    write_whole(path, table.sink_csv if path.suffix == ".csv" else table.sink_parquet)


class RecommendationWriter(Callback):
    """Callback that writes the tables of `predict_step` into one file, which appears only when complete.

    Each process writes parts into a hidden folder beside the file, so memory does not grow with the log.
    The first process joins the parts. All processes must share that folder. The path ends with `.parquet` or
    `.csv`; an existing file is replaced at the end.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_ending("output", self.path)
        check_folder(self.path)
        self._parts = self.path.with_name(f".{self.path.name}.parts")
        self._waiting: list[pl.DataFrame] = []
        self._num_parts = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Create an empty folder for parts; an interrupted run may have left an old one."""
        if trainer.is_global_zero:
            shutil.rmtree(self._parts, ignore_errors=True)
            self._parts.mkdir()
        trainer.strategy.barrier("parts")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Collect the table of a batch, the `outputs` of `predict_step`.

        Raises:
            TypeError: `outputs` is not a polars DataFrame.
        """
        if not isinstance(outputs, pl.DataFrame):
            raise TypeError(
                f"`output` must be null where `predict_step` gives no polars DataFrame, got a "
                f"{type(outputs).__name__} from {type(pl_module).__name__}. Write it with a callback of your "
                "own, Lightning's `BasePredictionWriter`."
            )
        self._waiting.append(outputs)
        if sum(len(table) for table in self._waiting) >= ROWS_IN_MEMORY:
            self._write_part(trainer.global_rank)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Join the parts into the file."""
        self._write_part(trainer.global_rank)
        trainer.strategy.barrier("written")
        if trainer.is_global_zero:
            write_table(pl.scan_parquet(sorted(self._parts.iterdir()), glob=False), self.path)
            shutil.rmtree(self._parts)
        trainer.strategy.barrier("joined")

    def on_exception(self, *_: Any) -> None:
        """Delete the parts."""
        shutil.rmtree(self._parts, ignore_errors=True)

    def _write_part(self, rank: int) -> None:
        if not self._waiting:
            return
        name = f"part-{rank:05}-{self._num_parts:07}.parquet"
        # Another process must never read an incomplete part.
        with path_in_errors(self.path):
            write_whole(self._parts / name, pl.concat(self._waiting).write_parquet)
        self._waiting, self._num_parts = [], self._num_parts + 1


class SessionTrainer(Trainer):
    """Customize every aspect of training."""  # Lightning's own line, the heading of the settings.

    def fit(  # type: ignore[override]  # `init_from` in place of dataloaders and `weights_only`
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        init_from: str | Path | None = None,
        ckpt_path: str | Path | None = None,
        compile: CompileMode | None = None,  # noqa: A002 - `torch.compile`'s name
    ) -> None:
        """Train, from random weights or from those of a checkpoint.

        Args:
            model: The model to train.
            datamodule: The sessions.
            init_from: The checkpoint from which the weights and the items are taken; optimizer and epochs
                start anew. Tracks of the log that it does not know are appended.
            ckpt_path: The checkpoint of a run that goes on, with its optimizer and epochs. Tracks of the log
                that it does not know are appended.
            compile: Compile the training step with this mode of `torch.compile`. It takes a minute at first,
                and pays on a GPU in long runs; `reduce-overhead` replays a step as a CUDA graph.
        """
        if compile is not None:
            if not isinstance(model, SkipCLModule):
                raise TypeError(
                    f"`compile` must be null but for a SkipCLModule, got {type(model).__name__}. Compile "
                    "your own model in its `configure_model`."
                )
            if model.model.item_embedding.sparse:
                raise ValueError(
                    f"`compile` must be null beside `sparse_item_table`, got {compile!r}. torch cannot "
                    "compile sparse gradients."
                )
            compiled = torch.compile(model.part_losses, mode=compile, dynamic=True)
            model.part_losses = compiled  # type: ignore[method-assign]
        if init_from is not None:
            if not isinstance(model, SkipCLModule) or not isinstance(datamodule, SessionDataModule):
                raise TypeError(
                    f"`init_from` must be null but for a SkipCLModule and a SessionDataModule, got "
                    f"{type(model).__name__} and {type(datamodule).__name__}. Load your own model's weights."
                )
            model.init_from(init_from, datamodule)
        super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)

    def predict(  # type: ignore[override]  # `output` in place of dataloaders and `weights_only`
        self,
        model: LightningModule | None = None,
        datamodule: LightningDataModule | None = None,
        *,
        output: Path | None = Path("recommendations.parquet"),
        ckpt_path: str | Path | None = None,
    ) -> Any:
        """Write the top next items of every session that the data keep, with external ids, to a file.

        Sessions shorter than `min_session_length` are dropped; `skipcl recommend --file` takes any session.

        Args:
            model: The model to predict with.
            datamodule: The sessions.
            output: The file, .parquet or .csv, with the columns session_id, rank, item_id and score; it
                appears only when complete. Use null if your own model writes its predictions elsewhere.
            ckpt_path: The checkpoint of a trained model.

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
            weights_only=True,
        )
