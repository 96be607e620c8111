"""Functions that send tables and pictures to each logger in a form that it can show."""

from pathlib import Path

import polars as pl
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from skipcl_lightning._files import write_whole

__all__ = ["publish_picture", "publish_table"]


def publish_table(trainer: Trainer, key: str, frame: pl.DataFrame) -> None:
    """Send a table to W&B as a table, to TensorBoard as text, and to a `CSVLogger` as a file; on rank 0 only.

    Lists in the table are joined by commas. In a file's name, `/` in the key becomes `_`.
    """
    flat = frame.with_columns(
        pl.col(name).cast(pl.List(pl.String)).list.join(", ")
        for name, dtype in frame.schema.items()
        if isinstance(dtype, pl.List)
    )
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            # Lightning's method logs the step as a value. W&B drops data sent with a step below its latest.
            rows = [list(row) for row in flat.iter_rows()]
            logger.log_table(key, columns=flat.columns, data=rows, step=_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(key, _to_markdown(flat), global_step=_step(trainer))
        elif isinstance(logger, CSVLogger):
            write_whole(_place(logger, key, "csv"), flat.write_csv)


def publish_picture(trainer: Trainer, key: str, picture: Path) -> None:
    """Send a PNG file to W&B and TensorBoard as an image, and to a `CSVLogger` as a file; on rank 0 only."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [str(picture)], step=_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            from matplotlib.image import imread

            pixels = (imread(picture)[..., :3] * 255).round().astype("uint8")
            logger.experiment.add_image(key, pixels, global_step=_step(trainer), dataformats="HWC")
        elif isinstance(logger, CSVLogger):
            write_whole(_place(logger, key, "png"), lambda path: path.write_bytes(picture.read_bytes()))


def _step(trainer: Trainer) -> int:
    """Return the step that Lightning gives to metrics logged now, so that steps never decrease."""
    loop = getattr(getattr(trainer, "fit_loop", None), "epoch_loop", None)
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))


def _place(logger: Logger, key: str, ending: str) -> Path:
    folder = Path(logger.log_dir or ".")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{key.replace('/', '_')}.{ending}"


def _to_markdown(frame: pl.DataFrame) -> str:
    lines = [frame.columns, ["---"] * frame.width, *frame.rows()]
    # A bar or a line break in an id ends the cell.
    cells = [[str(cell).replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
