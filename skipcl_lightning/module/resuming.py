"""What a resumed run needs besides weights, to be equal to one that was not interrupted."""

import random
from typing import Any

import numpy as np
import torch

__all__ = ["correct_progress", "draw_seed", "seed_batch"]


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
