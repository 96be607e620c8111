"""The plugin by which Lightning writes checkpoints whole, and reads them without running their code."""

import re
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from skipcl_lightning._files import check_weights_only, open_checkpoint, save_checkpoint

__all__ = ["WholeCheckpointIO", "keep_checkpoints_whole"]


# The file by which Lightning takes the weights alone from a process that it has spawned.
_SPAWNED = ".temp.ckpt"


class WholeCheckpointIO(TorchCheckpointIO):
    """Plugin for Lightning's checkpoints: files are whole or absent, and are checked when they are read.

    Lightning writes a checkpoint into a temporary folder and copies it, so a kill can leave half a file, and
    it runs the code of a checkpoint from a URL. This plugin writes beside the file, waits for the disk, and
    renames. It compares the checksums that the file holds, and loads only tensors and plain values.

    `SkipCLModule` and the command line use it unless the `Trainer` has another plugin. Files elsewhere, such
    as `s3://…`, are written by Lightning; copy one to a local disk before it is read.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(plugins=[WholeCheckpointIO()], accelerator="cpu", logger=False)
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint so that it appears complete or not at all.

        Args:
            checkpoint: What Lightning saves.
            path: The file; an existing one is replaced.
            storage_options: None; others are refused.

        Raises:
            OSError: The file cannot be written, for example because the disk is full.
            TypeError: There are `storage_options`.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: _PATH,
        map_location: Any = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: The file.
            map_location: Where tensors go, as for `torch.load`.
            weights_only: True or None, which mean the same.

        Returns:
            Tensors and plain values.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is a URL, is damaged, holds other objects, or `weights_only` is False.
        """
        check_weights_only(weights_only)
        checkpoint = open_checkpoint(path, map_location=map_location, mmap=False)
        version, weights = (checkpoint.get(name) for name in ("pytorch-lightning_version", "state_dict"))
        whole = re.match(r"\d+\.\d+", str(version)) and isinstance(version, str) and isinstance(weights, dict)
        if not whole and Path(path).name != _SPAWNED:
            raise ValueError(
                f"`path` must be a checkpoint of Lightning, got {str(path)!r} without its version or "
                "`state_dict`. `skipcl fit` writes one, and so does `Trainer.save_checkpoint`."
            )
        return checkpoint


def keep_checkpoints_whole(trainer: Trainer) -> None:
    """Give a trainer a `WholeCheckpointIO`, unless it has another plugin than Lightning's own default.

    Args:
        trainer: The trainer.
    """
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()
