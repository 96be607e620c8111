"""Where tables and pictures of a run go: to each logger in the form that it shows."""

from pathlib import Path
from typing import Any

import polars as pl
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from skipcl_lightning.evaluation.plots import write_whole

__all__ = ["publish_picture", "publish_table"]


def publish_table(trainer: Trainer, key: str, frame: pl.DataFrame) -> None:
    """Give a table to every logger: as a table to W&B, as text to TensorBoard, as a file beside a CSV.

    Other loggers have no form for it, and get none. To be called on rank 0 only.

    Args:
        trainer: The trainer with the loggers.
        key: What it is called; in a file's name `/` becomes `_`.
        frame: The table; lists within it are joined by commas.
    """
    flat = frame.with_columns(
        pl.col(name).cast(pl.List(pl.String)).list.join(", ")
        for name, dtype in frame.schema.items()
        if isinstance(dtype, pl.List)
    )
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            # Through Lightning's own method, which gives the step as a value: W&B drops what comes with a
            # step lower than its latest.
            rows = [list(row) for row in flat.iter_rows()]
            logger.log_table(key, columns=flat.columns, data=rows, step=_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            _summary_writer(logger).add_text(key, _to_markdown(flat), global_step=_step(trainer))
        elif isinstance(logger, CSVLogger):
            write_whole(_place(logger, key, "csv"), flat.write_csv)


def publish_picture(trainer: Trainer, key: str, picture: Path) -> None:
    """Give a picture to every logger: as an image to W&B and TensorBoard, as a file beside a CSV.

    Other loggers get none. To be called on rank 0 only.

    Args:
        trainer: The trainer with the loggers.
        key: What it is called; in a file's name `/` becomes `_`.
        picture: A PNG, which may be gone afterwards.
    """
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [str(picture)], step=_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            from matplotlib.image import imread

            pixels = (imread(picture)[..., :3] * 255).round().astype("uint8")
            _summary_writer(logger).add_image(key, pixels, global_step=_step(trainer), dataformats="HWC")
        elif isinstance(logger, CSVLogger):
            write_whole(_place(logger, key, "png"), lambda path: path.write_bytes(picture.read_bytes()))


def _step(trainer: Trainer) -> int:
    """That of the metrics which Lightning logs at the same moment, so that steps never go back."""
    loop = getattr(getattr(trainer, "fit_loop", None), "epoch_loop", None)
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))


def _summary_writer(logger: TensorBoardLogger) -> Any:
    return logger.experiment


def _place(logger: Logger, key: str, ending: str) -> Path:
    folder = Path(logger.log_dir or ".")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{key.replace('/', '_')}.{ending}"


def _to_markdown(frame: pl.DataFrame) -> str:
    lines = [frame.columns, ["---"] * frame.width, *frame.rows()]
    # A bar or a line break in an id would end the cell.
    cells = [[str(cell).replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
