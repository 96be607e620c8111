"""What a run needs beyond Lightning.

Its files are whole, a resumed run equals one without a break, and a run that cannot end well is stopped.
"""

import random
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor

from skipcl_lightning._files import (
    check_weights_only,
    newest_first,
    newest_whole,
    open_checkpoint,
    save_checkpoint,
)

__all__ = [
    "DivergenceWatch",
    "WholeCheckpointIO",
    "check_precision",
    "check_training_state",
    "correct_progress",
    "draw_seed",
    "keep_checkpoints_whole",
    "refuse_while_running",
    "seed_batch",
    "warn_of_new_processes",
]


# The file by which Lightning takes the weights alone from a process that it has spawned.
_SPAWNED = ".temp.ckpt"
# The names that `ModelCheckpoint(save_last=True)` gives.
_LAST = re.compile(r"last(-v\d+)?\.ckpt")
_NEVER = torch.iinfo(torch.int64).max


class WholeCheckpointIO(TorchCheckpointIO):
    """Plugin for Lightning's checkpoints: files are whole or absent, and are checked when they are read.

    Lightning writes a checkpoint into a temporary folder and copies it, so a kill can leave half a file, and
    it runs the code of a checkpoint from a URL. This plugin writes beside the file, waits for the disk, and
    renames. It compares the checksums that the file holds, and loads only tensors and plain values.

    `SkipCLModule` and the command line use it unless the `Trainer` has another plugin. Files elsewhere, such
    as `s3://…`, are written by Lightning; copy one to a local disk before it is read.

    A training that resumes from a damaged `last.ckpt` takes the newest whole checkpoint of its folder, and
    warns.

    Examples:
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> trainer = Trainer(plugins=[WholeCheckpointIO()], accelerator="cpu", logger=False)
    """

    # Whether a training may resume, which `keep_checkpoints_whole` knows.
    resumes = False

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
            ValueError: It is a URL, is damaged, holds other objects, or `weights_only` is False. If it is
                damaged, the message names the newest whole one of its folder, which a resumed training takes
                for a file `last.ckpt`.
        """
        check_weights_only(weights_only)
        try:
            checkpoint = open_checkpoint(path, map_location=map_location, mmap=False)
        except ValueError as error:
            others = {file for file in Path(path).parent.glob("*.ckpt") if file != Path(path)}
            newest = newest_whole(newest_first(others), quietly=True)
            if newest is None:
                raise
            # Lightning gives a path for "last" too.
            if self.resumes and _LAST.fullmatch(Path(path).name):
                warnings.warn(f"Took {str(newest)!r} for the last checkpoint: {error}", stacklevel=2)
                return self.load_checkpoint(newest, map_location)
            raise ValueError(f"{error} The newest whole one of its folder is {str(newest)!r}.") from error
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
    plugin = trainer.strategy.checkpoint_io
    if isinstance(plugin, WholeCheckpointIO):
        plugin.resumes = trainer.state.fn == TrainerFn.FITTING


def check_averaging(trainer: Trainer) -> None:
    """Raise if a callback would average integers, such as counts of transitions, by which it changes them.

    Args:
        trainer: The trainer that runs.

    Raises:
        ValueError: A `WeightAveraging` has `use_buffers`, and a buffer of the module holds integers.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    averages = [one for one in callbacks if isinstance(one, WeightAveraging) and one._use_buffers]
    integers = [
        name
        for name, buffer in trainer.lightning_module.named_buffers()
        if buffer.dtype in (torch.int32, torch.int64)
    ]
    if averages and integers:
        raise ValueError(
            f"`use_buffers` must be False for {type(averages[0]).__name__}, got True, which would average "
            f"the integers of {integers[0]!r}. Weights are averaged with `use_buffers=False` too."
        )


def check_training_state(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Raise if a checkpoint lacks what Lightning restores next, or has something else in its place.

    Args:
        trainer: The trainer that runs.
        checkpoint: What it has read.

    Raises:
        ValueError: The state of the optimizers, schedules, callbacks or loops is missing or no such state.
    """
    fits = trainer.state.fn == TrainerFn.FITTING
    for name in ("optimizer_states", "lr_schedulers") if fits else ():
        if name not in checkpoint:
            raise ValueError(
                f"`{name}` must be in a checkpoint from which a run goes on, got the weights alone. Begin "
                "another run with them: `SkipCLModule.init_from`, or `skipcl fit --init_from`."
            )
        if any(not isinstance(one, dict) for one in checkpoint[name]):
            raise ValueError(
                f"`{name}` must be dictionaries, got others. Take another checkpoint of the run."
            )
    for state in checkpoint["lr_schedulers"] if fits else ():
        _check_schedule(state)
    if not all(isinstance(one, dict) for one in checkpoint.get("callbacks", {}).values()):
        raise ValueError("`callbacks` must be dictionaries, got others. Take another checkpoint of the run.")
    if trainer.state.fn is not None and "loops" in checkpoint:
        name = f"{trainer.state.fn.value}_loop"
        loop = getattr(trainer, name)
        before = loop.state_dict()
        # Lightning loads it again, but with errors that do not name the file.
        loop.load_state_dict(checkpoint["loops"][name])
        _check_numbers(before, loop.state_dict())


def _check_schedule(state: Mapping[str, Any]) -> None:
    numbers = [state.get(name, 0) for name in ("last_epoch", "_step_count")]
    numbers += [*state.get("base_lrs", ()), *state.get("_last_lr", ())]
    if not all(isinstance(one, int | float) for one in numbers):
        raise ValueError(
            f"`lr_schedulers` must hold numbers, got {numbers!r}. Take another checkpoint of the run."
        )


def _check_numbers(known: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for name, value in known.items():
        if isinstance(value, dict):
            _check_numbers(value, found[name])
        elif isinstance(value, int) and not isinstance(found[name], int):
            raise ValueError(  # noqa: TRY004 - the argument is a file
                f"`{name}` must be an integer in the state of a loop, got {found[name]!r}. Take another "
                "checkpoint of the run."
            )


def correct_progress(checkpoint: dict[str, Any]) -> None:
    """Let a run resume with the first batch that was not trained.

    Lightning counts three things otherwise. The epoch in which `max_steps` or a callback stops a run counts
    as a whole one, so its other batches are never seen. A run with `max_steps` that resumes from the end of
    an epoch leaves out the next one. After an error, `OnExceptionCheckpoint` counts the batch of the error.

    Args:
        checkpoint: What Lightning has read; changed in place if it has the state of a `ResumableLoader`.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    loaders = loop.get("state_dict", {}).get("combined_loader", ())
    if len(loaders) != 1 or not loaders[0].get("batches"):
        return
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    loaders[0]["batches"] = min(loaders[0]["batches"], batches["current"]["processed"])
    if epochs["current"]["processed"] < epochs["current"]["ready"]:
        return
    for counts in epochs.values():
        counts["processed"] = counts["completed"] = counts["ready"] - (not batches["is_last_batch"])
    if batches["is_last_batch"]:
        batches.update(current=dict.fromkeys(batches["current"], 0), is_last_batch=False)


def draw_seed() -> int:
    """Return a new seed for the batches of a run, drawn from torch's generator."""
    return int(torch.randint(2**62, ()))


def seed_batch(seed: int, epoch: int, batch_idx: int, rank: int, device: torch.device) -> None:
    """Seed the global generators of Python, NumPy and torch for one training batch.

    The random numbers of a batch are then a function of these arguments only. A resumed run needs the
    run's seed, but no state of a generator, and each process has random numbers of its own.

    Args:
        seed: The run's seed, 0 or more.
        epoch: The epoch, from 0.
        batch_idx: The batch in the epoch, from 0.
        rank: The process, from 0.
        device: The device that is seeded besides the CPU.
    """
    # Mixed into 32 bits, because torch's generator uses no more of a seed.
    mixed = int(np.random.SeedSequence((seed, epoch, batch_idx, rank)).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)  # noqa: NPY002 - code of users may use the global generator
    # Not `torch.manual_seed`, which collects a traceback on each call where CUDA is not in use.
    torch.default_generator.manual_seed(mixed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(mixed)


class DivergenceWatch:
    """The first step of a run at which each part of the loss was NaN or infinite.

    A step adds a few small operations and no copy to the host; only `check` waits for the device.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.first_steps: Tensor | None = None

    def update(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Take the losses of a step.

        Args:
            losses: Scalars by name, the same names in each step.
            step: The number of optimizer steps before.
        """
        values = torch.stack([value.detach().float() for value in losses.values()])
        if self.first_steps is None:
            self.names = list(losses)
            self.first_steps = torch.full(values.shape, _NEVER, device=values.device)
        self.first_steps = torch.where(values.isfinite(), self.first_steps, self.first_steps.clamp(max=step))

    def check(self, module: LightningModule) -> None:
        """Stop a run whose weights are no longer finite.

        A loss that is not finite is no error by itself: float16 with a scaled loss skips such steps.

        Args:
            module: The module that is trained.

        Raises:
            ValueError: A weight is NaN or infinite.
        """
        weights = dict(module.named_parameters())
        finite = torch.stack([_is_finite(weight) for weight in weights.values()]).tolist()
        bad = [name for name, good in zip(weights, finite, strict=True) if not good]
        if not bad:
            return
        steps = [] if self.first_steps is None else self.first_steps.tolist()
        first = min(steps, default=_NEVER)
        parts = [name for name, step in zip(self.names, steps, strict=True) if step == first]
        where = f"since step {first} in {', '.join(parts)}" if first < _NEVER else "in no loss yet"
        raise ValueError(
            "`learning_rate` must be one at which the training does not diverge, got NaN or infinite values "
            f"{where} and in {len(bad)} of {len(weights)} weights, such as {bad[0]!r}. Lower it, raise "
            "`warmup_steps`, give the Trainer `gradient_clip_val=1.0` or a wider precision, and resume "
            "from a checkpoint before that step."
        )


def check_precision(trainer: Trainer) -> None:
    """Raise if a run would train in pure float16 on a CPU.

    Args:
        trainer: The Trainer that is about to fit.

    Raises:
        ValueError: It would.
    """
    if trainer.precision == "16-true" and trainer.strategy.root_device.type == "cpu":
        raise ValueError(
            "`precision` must not be '16-true' where a CPU trains, got '16-true'. The optimizer's small "
            "numbers are 0 in float16. Take 'bf16-true', 'bf16-mixed' or '32-true'."
        )


def _is_finite(weight: Tensor) -> Tensor:
    finite = weight.detach().isfinite().all()
    return finite.full_tensor() if isinstance(finite, DTensor) else finite


def refuse_while_running(module: LightningModule, method: str) -> None:
    """Raise a `ValueError` if optimizers or other processes hold the weights that a method would change."""
    running = module._trainer is not None and module._trainer.state.status == TrainerStatus.RUNNING
    if running or any(isinstance(weight, DTensor) for weight in module.parameters()):
        raise ValueError(
            f"`{method}` must be called while no Trainer runs and on whole weights, got a module that is "
            f"{'used by a running Trainer' if running else 'sharded'}. Call it before `Trainer.fit`."
        )


def warn_of_new_processes(trainer: Trainer) -> None:
    """Warn if the Trainer trains in processes from which only the weights come back, not the vocabulary."""
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        rank_zero_warn(
            "The strategy trains in processes of its own, from which only the weights come back. The module "
            "will have no item vocabulary afterwards: call `module.take_data(datamodule)` before "
            "`Trainer.fit`, load a checkpoint of the run, or take `strategy='ddp'`."
        )
